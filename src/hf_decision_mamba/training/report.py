"""A run as one object, and what it tells of itself: its summary, its remarks, and the record that it leaves.

Source of the summary's parameter counts: DeMa (arXiv 2405.12094), see `baselines.architectures`.
"""

import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType

from ..baselines.architectures import WITH_SCANS, architecture_of, paper_parameter_count
from ..data import DeviceWindowDataset, WindowDataset
from ..model import DecisionMambaProcessor
from ..model.selective_scan import choose_backend
from ..reporting.figures import number
from ..reporting.files import portable
from ..reporting.stretches import WITHOUT_WARM_UP, is_of_one_piece
from ..reporting.versions import package_versions
from ..views import VIEWS
from .arguments import (
    Arguments,
    DataArguments,
    DecisionMambaTrainingArguments,
    EvaluationArguments,
    ModelArguments,
)
from .record import RECIPE, learning_history
from .task import RunData
from .trainer import DecisionMambaTrainer


@dataclass(frozen=True)
class Run:
    """A run that is about to train: what it was told, what it learns from, and what trains it; made once.

    Attributes:
        arguments: the four groups of its settings.
        command: which repeats it; None where its data were given in memory, and no command can.
        data: what it learns from.
        trainer: with model, processor and windows.
        targets: returns that its policy is asked for; None of data without rewards.
        evaluates: whether its environment can be played in.
    """

    arguments: Arguments
    command: str | None
    data: RunData
    trainer: DecisionMambaTrainer
    targets: list[float] | None
    evaluates: bool

    @property
    def model_args(self) -> ModelArguments:
        return self.arguments[0]

    @property
    def data_args(self) -> DataArguments:
        return self.arguments[1]

    @property
    def eval_args(self) -> EvaluationArguments:
        return self.arguments[2]

    @property
    def args(self) -> DecisionMambaTrainingArguments:
        return self.arguments[3]

    @property
    def model(self) -> PreTrainedModel:
        return self.trainer.model

    @property
    def processor(self) -> DecisionMambaProcessor:
        processor: DecisionMambaProcessor = self.trainer.processing_class
        return processor

    @property
    def window_length(self) -> int:
        """Steps of the windows that are learned from."""
        length: int = self.trainer.train_dataset.context_length
        return length

    @property
    def output_dir(self) -> Path:
        return self.trainer.output_dir

    @cached_property
    def architecture(self) -> str:
        return architecture_of(self.model.config)

    @cached_property
    def preset(self) -> str | None:
        """The preset that the model was built from; None for baselines and fine-tuned checkpoints."""
        return self.model_args.preset if self.model_args.builds_a_preset else None

    @cached_property
    def num_parameters(self) -> int:
        return self.model.num_parameters()

    @cached_property
    def num_parameters_as_published(self) -> int:
        return paper_parameter_count(self.model, self.preset)

    @cached_property
    def now(self) -> dict[str, Any]:
        """What a stretch of it is trained with: settings, hardware and versions, but no folders of the machine."""
        given = {**vars(self.model_args), **vars(self.data_args), "preset": self.preset, "dataset_name": self.data.name}
        given |= {} if self.data_args.streaming else {"streaming": None, "streaming_buffer": None}
        given |= {name: None for name in VIEWS if not given[name]}  # as of runs that were before there were any
        given["architecture"] = self.architecture
        given["dataset_revision"] = self.data.revision
        given["frame_stack"] = self.frame_stack
        given["conditioning"] = self.conditioning
        given["goals"] = self.data.goals
        given["model_name_or_path"] = portable(self.model_args.model_name_or_path or "") or None
        return {
            "settings": {
                **{name: value for name, value in given.items() if value is not None},
                "context_length": self.window_length,
                **({} if self.return_scale is None else {"return_scale": self.return_scale}),
                "action_type": self.data.train.action_type,
                **settings_of(self.args),
            },
            "hardware": hardware_of(self.args),
            "versions": {
                "python": platform.python_version(),
                **package_versions("accelerate", "datasets", "numpy", "numba"),
            },
        }

    @property
    def conditioning(self) -> str | None:
        """What the model is asked for, where it was said or followed from data without rewards."""
        follows = self.preset is not None and not self.data.train.has_rewards and self.data.goals is None
        return "none" if follows else self.model_args.conditioning

    @property
    def return_scale(self) -> float | None:
        """What divides the returns-to-go; None of data without rewards."""
        return self.processor.return_scale if self.data.train.has_rewards else None

    @property
    def frame_stack(self) -> int | None:
        """Frames in a state; None for vectors."""
        return self.processor.frame_stack if self.data.train.state_type == "image" else None


def processes_in_words(processes: int) -> str:
    return f"{processes} process{'es' if processes > 1 else ''}"


def run_summary(run: Run) -> str:
    """Say what is about to happen, in five lines."""
    data, statistics, args, trainer = run.data, run.data.statistics, run.args, run.trainer
    returns = "no rewards: conditioning=none"
    if statistics.return_mean is not None:
        spread = number(statistics.return_std, 0, beside=[statistics.return_mean])
        returns = (
            f"return {number(statistics.return_mean, 0)} ± {spread}, at best {number(statistics.return_max, 0)}, "
            f"divided by {number(run.processor.return_scale)}"
        )
    if data.goals is not None:
        returns = f"{data.goals} goals of {data.train.goal_dim} numbers"
    config: Any = run.model.config
    of = "" if data.best_of is None else f", the best by return of {data.best_of:,}"
    held_out = f" ({data.held_out.num_episodes:,} held out)" if data.held_out is not None else ""
    device, count, as_published = args.device, run.num_parameters, run.num_parameters_as_published
    published = f" ({as_published:,} as its paper counts)" if as_published != count else ""
    backend = ""
    if run.architecture in WITH_SCANS:
        backend = f", scan backend {choose_backend(torch.empty(0, device=device), config.scan_backend)}"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    holds_data = " (holds the data)" if isinstance(trainer.train_dataset, DeviceWindowDataset) else ""
    steps = f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    processes = f", {args.world_size} processes" if args.world_size > 1 else ""
    name = data.name if data.stream is None else f"{data.name} is streamed; a sample"
    drawn = drawn_by_return(trainer.train_dataset)
    return (
        f"data         {name}: {statistics.episodes:,} episodes{of}{held_out}, {statistics.transitions:,} transitions, "
        f"{returns}\n"
        f"model        {run.model_args.model_name_or_path or run.preset or run.model_args.architecture}: {count:,} "
        f"parameters{published}, {config.n_layer} layers of width {config.hidden_size}{backend}\n"
        f"training     {steps} of {trainer.windows_per_step} windows of {run.window_length} time "
        f"steps{drawn and ', '}{drawn}, learning rate {args.learning_rate:g}, seed {args.seed}\n"
        f"device       {device}{holds_data}{threads}{processes}\n"
        f"output       {args.output_dir}"
    )


def drawn_by_return(dataset: Any) -> str:
    """Say from how few episodes half of the windows are drawn, where good ones are drawn more often; else nothing."""
    weights = dataset.episode_weights() if isinstance(dataset, WindowDataset) else None
    if weights is None:
        return ""
    shares = np.sort(weights * dataset.trajectories.lengths)[::-1]
    half = int(np.searchsorted(np.cumsum(shares), shares.sum() / 2)) + 1
    return f"half of them from {half:,} of {len(shares):,} episodes (return_temperature {dataset.return_temperature:g})"


def remarks_on_schedule(run: Run) -> list[str]:
    """Remark on settings that do not do what they seem to: a warm-up that does not end, or never begins.

    Raises:
        ValueError: the schedule does not take its settings.
    """
    args, last_step, given = run.args, run.trainer.last_step, run.arguments.given
    schedule_type, warm_up = SchedulerType(args.lr_scheduler_type).value, args.get_warmup_steps(last_step)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    settings: Any = args.lr_scheduler_kwargs
    try:
        schedule: Any = get_scheduler(schedule_type, optimizer, warm_up, last_step, settings)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"lr_scheduler_kwargs={settings} is not for lr_scheduler_type={schedule_type}: {error}"
        ) from error
    remarks = []
    steps = f"max_steps={last_step}" if args.max_steps > 0 else f"{last_step} steps"
    if args.max_steps > 0 and "num_train_epochs" in given:
        remarks.append(f"num_train_epochs={args.num_train_epochs:g} is not used, but {steps} (-1 counts epochs)")
    if schedule_type in WITHOUT_WARM_UP:
        unused = warm_up > 0 and "warmup_steps" in given
        remarks += [f"warmup_steps={warm_up} is not used: lr_scheduler_type={schedule_type} has none"] if unused else []
    elif warm_up >= last_step:
        highest = args.learning_rate * schedule.lr_lambdas[0](last_step - 1)
        remarks.append(f"warmup_steps={warm_up} of {steps}: the learning rate only reaches {highest:.1e}")
    return [f"schedule     {remark}" for remark in remarks]


def closing_lines(output_dir: Path) -> str:
    plot = output_dir / "returns.png"
    return f"\ncheckpoint   {output_dir}\ncard         {output_dir / 'README.md'}" + (
        f"\nplot         {plot}" if plot.is_file() else ""
    )


def run_record(run: Run, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Make training.json: what a reader needs to judge the run and to repeat it, without the machine's folders."""
    stretches = run.trainer.run["stretches"]
    stretches[-1]["to_step"] = metrics["global_step"]
    settings = stretches[-1]["settings"] or run.now["settings"]
    rates = [stretch.get("highest_learning_rate") for stretch in stretches]
    return {
        "preset": run.preset,
        "architecture": run.architecture,
        "num_parameters": run.num_parameters,
        "num_parameters_as_published": run.num_parameters_as_published,
        "dataset": run.data.summary(),
        "arguments": settings,
        "command": run.command,
        "train_runtime_seconds": metrics.get("train_runtime"),
        "hardware": run.now["hardware"],
        "versions": run.now["versions"],
        "loss_function": "mean squared error" if run.data.train.action_type == "continuous" else "cross-entropy",
        "loss": metrics.get("loss"),
        "eval_loss": metrics.get("eval_loss"),
        "global_step": metrics["global_step"],
        "highest_learning_rate": None if None in rates else max(rates, default=None),
        "stretches": stretches,
        "history": learning_history(run.trainer.state.log_history),
    }


def resolved_settings(run: Run) -> dict[str, Any]:
    """Return what followed from data and model where no setting said it."""
    return {
        "preset": run.preset,
        "dataset_revision": run.data.revision,
        "conditioning": run.conditioning,
        "goals": run.data.goals,
        "context_length": run.window_length,
        "return_scale": run.return_scale,
        "frame_stack": run.frame_stack,
        "env_id": run.data.env_id,
        "env_kwargs": run.data.env_kwargs,
        "target_return": run.targets,
        "num_train_epochs": run.args.num_train_epochs if run.args.max_steps <= 0 else None,
    }


def settings_remarks(record: dict[str, Any], data: RunData) -> list[str]:
    """Remark on what a reader of train.yaml has to know to repeat the run."""
    made = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    on_cpu = "CPU" in record["hardware"]
    where = f"{record['hardware']} ({torch.get_num_threads()} threads)" if on_cpu else record["hardware"]
    path = [] if data.revision else ["A dataset_name that is a path is relative to the folder of the command."]
    if data.in_memory:
        path = ["The data were given in memory, which no command repeats."]
    if not is_of_one_piece(record):
        return [
            "The settings at the end of the run that made the weights beside it. This file alone does not repeat them: "
            "the run had others before, see stretches in training.json.",
            f"Made on {where} with {made}.",
            *path,
        ]
    processes = record["arguments"].get("world_size")
    command = [
        "accelerate launch",
        *([f"--multi_gpu --num_processes {processes}"] if processes else []),
        "train.py train.yaml",
    ]
    program = f"train(data, dataset_name={data.name!r}, **yaml.safe_load(open('train.yaml'))) of hf_decision_mamba"
    return [
        f"Repeats the run that made the weights beside it: {program if data.in_memory else ' '.join(command)}",
        f"Made on {where} with {made}.{' There it gives the same weights to the bit.' if on_cpu else ''}",
        *path,
    ]


def settings_of(args: TrainingArguments) -> dict[str, Any]:
    """Return the training arguments that differ from transformers' own defaults, and those that always matter."""
    always = {*RECIPE, "per_device_train_batch_size", "gradient_accumulation_steps", "seed"}
    always |= {"num_train_epochs"} if args.max_steps < 0 else set()
    never = re.compile(
        r"dir|path|hub|token|do_eval|resume|report|log|project|run_name|tqdm|label|column|pin|local_rank"
    )
    defaults = {entry.name: entry.default for entry in fields(TrainingArguments)}
    settings = {"world_size": args.world_size} if args.world_size > 1 else {}
    for name, default in defaults.items():
        value = getattr(args, name, None)
        value = getattr(value, "value", value)  # enumerations by their names
        default = getattr(default, "value", default)
        differs = value != default and bool(value or default) and not never.search(name)  # False for None is no change
        types = (bool, int, float, str, dict) if name in RECIPE else (bool, int, float, str)
        if isinstance(value, types) and (name in always or differs):
            settings[name] = value
    if getattr(args, "time_dilation", 0):  # of DecisionMambaTrainingArguments
        settings |= {name: getattr(args, name) for name in ("time_dilation", "time_dilation_max")}
    return settings


def command_of(argv: Sequence[str]) -> str:
    """Write the command that was given, without tokens, resuming and the machine's folders."""
    return _repeating(Path(sys.argv[0]).name == "train.py", argv)


def command_with(given: Mapping[str, Any]) -> str:
    """Write the command that does what these settings do, which were given from Python."""
    words: list[str] = []
    for name, value in given.items():
        values = [str(item).lower() if isinstance(item, bool) else str(item) for item in _listed(value)]
        words += [f"--{name}={values[0]}"] if len(values) == 1 else [f"--{name}", *values]
    return _repeating(False, words)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _repeating(launched: bool, argv: Sequence[str]) -> str:
    words = ["accelerate", "launch", "train.py"] if launched else ["hf-decision-mamba", "train"]
    dropped, skip = ("--hub_token", "--resume_from_checkpoint", "--overwrite_output_dir"), False
    for word in argv:
        name = word.split("=")[0].replace("-", "_").replace("__", "--", 1)
        if name in dropped:
            skip = "=" not in word
        elif skip and not word.startswith("--"):
            skip = False
        else:
            skip = False
            option, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
            words.append(option + equals + portable(value))
    return shlex.join(words)


def hardware_of(args: TrainingArguments) -> str:
    if args.device.type == "cuda":
        return f"{args.world_size} × {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} {platform.machine()} {args.device.type.upper()} cores"
