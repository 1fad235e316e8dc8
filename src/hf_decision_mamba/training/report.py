"""What a run tells of itself: its summary before it trains, its remarks, and the record that it leaves.

Source of the summary's parameter counts: DeMa (arXiv 2405.12094), see `baselines.architectures`.
"""

import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType

from ..baselines.architectures import architecture_of, paper_parameter_count
from ..data import DeviceWindowDataset
from ..model.selective_scan import choose_backend
from ..reporting.console import say
from ..reporting.figures import number
from ..reporting.files import portable
from ..reporting.stretches import WITHOUT_WARM_UP, is_of_one_piece
from .arguments import DecisionMambaTrainingArguments, EvaluationArguments, ModelArguments
from .record import RECIPE, draw_learning_curve, learning_history
from .task import RunData, target_returns_of
from .trainer import DecisionMambaTrainer


def processes_in_words(processes: int) -> str:
    return f"{processes} process{'es' if processes > 1 else ''}"


def run_summary(model_args: ModelArguments, data: RunData, trainer: DecisionMambaTrainer) -> str:
    """What is about to happen, in five lines."""
    statistics, args = data.statistics, trainer.args
    mean = statistics.return_mean
    config: Any = trainer.model.config
    held_out = f" ({data.held_out.num_episodes:,} held out)" if data.held_out is not None else ""
    device = trainer.args.device
    preset, count = preset_of(model_args), trainer.model.num_parameters()
    as_published = paper_parameter_count(trainer.model, preset)
    published = f" ({as_published:,} as its paper counts)" if as_published != count else ""
    backend = ""
    if config.model_type == "decision_mamba":
        backend = f", scan backend {choose_backend(torch.empty(0, device=device), config.scan_backend)}"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    resident = " (holds the data)" if isinstance(trainer.train_dataset, DeviceWindowDataset) else ""
    steps = f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    processes = f", {args.world_size} processes" if args.world_size > 1 else ""
    name = data.name if data.stream is None else f"{data.name} is streamed; a sample"
    return (
        f"data         {name}: {statistics.episodes:,} episodes{held_out}, {statistics.transitions:,} transitions,"
        f" return {number(mean, 0)} ± {number(statistics.return_std, 0, beside=[mean])}, at best "
        f"{number(statistics.return_max, 0)}, divided by {number(trainer.processing_class.return_scale)}\n"
        f"model        {model_args.model_name_or_path or preset or model_args.architecture}: {count:,} parameters"
        f"{published}, {config.n_layer} layers of width {config.hidden_size}{backend}\n"
        f"training     {steps} of {trainer.windows_per_step} windows of {trainer.train_dataset.context_length} time "
        f"steps, learning rate {args.learning_rate:g}, seed {args.seed}\n"
        f"device       {device}{resident}{threads}{processes}\n"
        f"output       {args.output_dir}"
    )


def remarks_on_schedule(args: DecisionMambaTrainingArguments, last_step: int, given: Mapping[str, Any]) -> list[str]:
    """What is to be said of settings that do not do what they seem to: a warm-up that does not end, or never begins.

    Args:
        last_step: of the training.
        given: the settings that somebody asked for.

    Raises:
        ValueError: the schedule does not take its settings.
    """
    kind, warm_up = SchedulerType(args.lr_scheduler_type).value, args.get_warmup_steps(last_step)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    settings: Any = args.lr_scheduler_kwargs
    try:
        schedule: Any = get_scheduler(kind, optimizer, warm_up, last_step, settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"lr_scheduler_kwargs={settings} is not for lr_scheduler_type={kind}: {error}") from error
    remarks = []
    steps = f"max_steps={last_step}" if args.max_steps > 0 else f"{last_step} steps"
    if args.max_steps > 0 and "num_train_epochs" in given:
        remarks.append(f"num_train_epochs={args.num_train_epochs:g} is not used, but {steps} (-1 counts epochs)")
    if kind in WITHOUT_WARM_UP:
        unused = warm_up > 0 and "warmup_steps" in given
        remarks += [f"warmup_steps={warm_up} is not used: lr_scheduler_type={kind} has none"] if unused else []
    elif warm_up >= last_step:
        highest = args.learning_rate * schedule.lr_lambdas[0](last_step - 1)
        remarks.append(f"warmup_steps={warm_up} of {steps}: the learning rate only reaches {highest:.1e}")
    return [f"schedule     {remark}" for remark in remarks]


def preset_of(model_args: ModelArguments) -> str | None:
    """The preset that a model was built from; None for baselines and fine-tuned checkpoints."""
    built = model_args.model_name_or_path is None and model_args.architecture == "decision_mamba"
    return model_args.preset if built else None


def closing_lines(output_dir: Path) -> str:
    plot = output_dir / "returns.png"
    return f"\ncheckpoint   {output_dir}\ncard         {output_dir / 'README.md'}" + (
        f"\nplot         {plot}" if plot.is_file() else ""
    )


def run_record(
    model_args: ModelArguments,
    trainer: DecisionMambaTrainer,
    data: RunData,
    argv: Sequence[str],
    metrics: dict[str, float],
    now: dict[str, Any],
) -> dict[str, Any]:
    """training.json: what a reader needs to judge the run and to repeat it, and nothing about the machine's folders."""
    preset, count = preset_of(model_args), trainer.model.num_parameters()
    stretches = trainer.run["stretches"]
    stretches[-1]["to_step"] = metrics["global_step"]
    settings = stretches[-1]["settings"] or now["settings"]
    rates = [stretch.get("highest_learning_rate") for stretch in stretches]
    return {
        "preset": preset,
        "architecture": architecture_of(trainer.model.config),
        "num_parameters": count,
        "num_parameters_as_published": paper_parameter_count(trainer.model, preset),
        "dataset": data.facts(),
        "arguments": settings,
        "command": _command(argv),
        "train_runtime_seconds": metrics.get("train_runtime"),
        "hardware": now["hardware"],
        "versions": now["versions"],
        "loss_function": "mean squared error" if data.train.action_type == "continuous" else "cross-entropy",
        "loss": metrics.get("loss"),
        "eval_loss": metrics.get("eval_loss"),
        "global_step": metrics["global_step"],
        "highest_learning_rate": None if None in rates else max(rates, default=None),
        "stretches": stretches,
        "history": learning_history(trainer.state.log_history),
    }


def resolved_settings(
    model_args: ModelArguments, eval_args: EvaluationArguments, trainer: DecisionMambaTrainer, data: RunData
) -> dict[str, Any]:
    """What followed from data and model where no setting said it."""
    processor, args = trainer.processing_class, trainer.args
    return {
        "preset": preset_of(model_args),
        "dataset_revision": data.revision,
        "context_length": trainer.train_dataset.context_length,
        "return_scale": processor.return_scale,
        "frame_stack": processor.frame_stack if data.train.state_type == "image" else None,
        "env_id": data.env_id,
        "env_kwargs": data.env_kwargs,
        "target_return": target_returns_of(eval_args, data),
        "num_train_epochs": args.num_train_epochs if args.max_steps <= 0 else None,
    }


def settings_remarks(record: dict[str, Any], data: RunData) -> list[str]:
    """What a reader of train.yaml has to know to repeat the run."""
    made = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    on_cpu = "CPU" in record["hardware"]
    where = f"{record['hardware']} ({torch.get_num_threads()} threads)" if on_cpu else record["hardware"]
    path = [] if data.revision else ["A dataset_name that is a path is relative to the folder of the command."]
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
    return [
        f"Repeats the run that made the weights beside it: {' '.join(command)}",
        f"Made on {where} with {made}.{' There it gives the same weights to the bit.' if on_cpu else ''}",
        *path,
    ]


def draw_curve_of(path: Path, record: dict[str, Any]) -> None:
    try:
        draw_learning_curve(path, record["history"], record["loss_function"])
    except ImportError:
        say(f"{path.name} was not drawn: matplotlib is not installed.")


def settings_of(args: TrainingArguments) -> dict[str, Any]:
    """The training arguments that differ from transformers' own defaults, and those that always matter."""
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
        kinds = (bool, int, float, str, dict) if name in RECIPE else (bool, int, float, str)
        if isinstance(value, kinds) and (name in always or differs):
            settings[name] = value
    return settings


def _command(argv: Sequence[str]) -> str:
    """The command that was given, without tokens, resuming and the machine's folders."""
    program = Path(sys.argv[0]).name
    words = ["accelerate", "launch", "train.py"] if program == "train.py" else ["hf-decision-mamba", "train"]
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
