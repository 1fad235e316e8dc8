"""Training: one command from a data set to a scored checkpoint.

Here the rooms meet: trajectories become windows, windows train a model, the model acts, and its card is written.
Source: the recipe of Decision Transformer (Chen et al. 2021, algorithm 1) with the settings of DeMa (arXiv 2405.12094).
"""

import filecmp
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments, set_seed
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from ..acting.policy import DecisionMambaPolicy
from ..baselines.architectures import WITH_PRESETS, WITH_SCANS, architecture_of
from ..data import DeviceWindowDataset, SequenceDataset, Trajectories, WindowDataset, WindowStream
from ..data.sources import Source, named_sources
from ..data.windows import window_settings
from ..data.windows_on_device import fits
from ..evaluation.result import EvaluationResult
from ..evaluation.rollouts import evaluate_policy
from ..evaluation.scores import score_reference
from ..model import DecisionMambaProcessor
from ..reporting.console import StoppedBySignal, on_interrupt, say, say_when_kernels_compile, waiting
from ..reporting.files import (
    CURVE_FILE,
    EVALUATION_FILE,
    RESULT_FILES,
    SETTINGS_FILE,
    TRAINING_FILE,
    read_json,
    write_json,
)
from ..reporting.stretches import go_on
from ..sharing import model_card as hub
from .arguments import (
    Arguments,
    DataArguments,
    DecisionMambaTrainingArguments,
    EvaluationArguments,
    arguments_from,
    parse_arguments,
)
from .callbacks import SCORES, RolloutCallback, as_saved, score_metrics
from .checkpoints import last_complete_checkpoint, processes_of
from .factory import asks_for_goals, build
from .record import draw_learning_curve, settings_to_repeat, write_settings
from .report import (
    Run,
    closing_lines,
    command_of,
    command_with,
    processes_in_words,
    remarks_on_schedule,
    resolved_settings,
    run_record,
    run_summary,
    settings_remarks,
)
from .resuming import checkpoint_to_resume, delete_files, delete_run, resume
from .task import RunData, data_seed_of, load_data, name_in_memory, prepare_environment, target_returns_of
from .trainer import DecisionMambaTrainer, StopOnInterrupt, check_hub_arguments

_ROLLOUT_SEED = 1_000_000  # other episodes than the final evaluation's, which the choice of the best would flatter
_MOST_USEFUL_THREADS = 8  # matrices this small gain nothing from more


@dataclass(frozen=True)
class TrainingResult:
    """What a training ends with.

    Attributes:
        policy: the trained model with its processor, ready to act, on the device that it was trained on.
        metrics: loss, eval_loss, global_step, train_runtime, and the scores of the first target return.
        folder: the checkpoint, with card, settings and results.
        evaluation: its scores; None where no environment was played in, and on other processes than the main one.
    """

    policy: DecisionMambaPolicy
    metrics: dict[str, float]
    folder: Path
    evaluation: EvaluationResult | None


def main(
    argv: Sequence[str] | None = None, default_config: Path | None = None, *, plays_later: bool = False
) -> dict[str, float]:
    """Train, evaluate, and write checkpoint, card and results into `output_dir`; push them if asked for.

    Args:
        argv: arguments, see `parse_arguments`; those of the process when not given.
        default_config: the YAML file when `argv` names none.
        plays_later: whether the model is to play in its environment, which so has to fit, though no episodes are asked
            for here.

    Returns:
        What was measured: loss, eval_loss, global_step, train_runtime, and the scores of the first target return.

    Raises:
        ValueError, OSError: a setting, file or data set that cannot be right, before any training.
        FloatingPointError: the loss is not finite.
        StoppedBySignal: SIGINT or SIGTERM came; the message says how to go on.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parse_arguments(argv, default_config)
    return _run(arguments, command_of(argv), stops_on_signals=True, plays_later=plays_later)[1]


def train(data: Source | Trajectories | None = None, **settings: Any) -> TrainingResult:
    """Train a model on trajectories, score it in its environment, and write checkpoint, card and results.

    Does what `train.py` does, with its settings by their names: `train(data, preset="dmm", max_steps=500,
    learning_rate=3e-4, env_id="Pendulum-v1", output_dir="runs/mine")`. `hf-decision-mamba train --help` lists them;
    messages spell them as it does, `--max_steps 500`. Those of a YAML file are `**yaml.safe_load(open(path))`. Settings
    in JSON may be dicts, and None is the default. No signal handlers are installed.

    Args:
        data: what `load_trajectories` takes, or what it returned: a name or path, or several; a loaded `Dataset`; a
            list of episodes or a dict of flat arrays; `Trajectories`. When not given, `dataset_name` says it.
        **settings: of data in memory, `dataset_name` is what card and messages call them.

    Returns:
        Policy, metrics, folder and evaluation.

    Raises:
        TypeError: `data` or a setting is of another type.
        ValueError, OSError: an unknown setting, or a value, file or data set that cannot be right, before any training.
        FloatingPointError: the loss is not finite.
        StoppedBySignal: a KeyboardInterrupt came; the message says how to go on.
    """
    names = None if data is None or isinstance(data, Trajectories) else named_sources(data)
    if names is not None:
        if settings.get("dataset_name") is not None:
            raise ValueError("data and dataset_name both name what to learn from; give one of them.")
        settings["dataset_name"] = [*map(str, names)]
    elif data is not None:
        settings["dataset_name"] = name_in_memory(data, settings.get("dataset_name"))
    with _environment_kept():
        arguments = arguments_from(settings)
        if names is None and data is not None:
            run, metrics, evaluation = _run(arguments, None, data)
        else:
            run, metrics, evaluation = _run(arguments, command_with(arguments.given))
        return TrainingResult(_policy_of(run), metrics, run.output_dir, evaluation)


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo what a training changes for the process: accelerate's variables, transformers' progress bars."""
    before, bars = {**os.environ}, is_progress_bar_enabled()
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if name.startswith("ACCELERATE_")})
        if bars:
            enable_progress_bar()


def _run(
    arguments: Arguments,
    command: str | None,
    in_memory: Any = None,
    stops_on_signals: bool = False,
    plays_later: bool = False,
) -> tuple[Run, dict[str, float], EvaluationResult | None]:
    """Do what `main` and `train` say; return the run, what it was measured by, and its scores.

    Args:
        command: which repeats the run; None where none can.
        in_memory: the data, where they are not what `dataset_name` names.
        stops_on_signals: whether SIGINT and SIGTERM end it with a checkpoint.
        plays_later: see `main`.
    """
    with _saying_how_to_go_on() as begun:
        model_args, data_args, eval_args, args = arguments
        for remark in arguments.remarks:
            say(remark)
        check_arguments(data_args, eval_args, args)
        checkpoint = checkpoint_to_resume(model_args, data_args, args)
        _set_cpu_threads(args)
        disable_progress_bar()  # transformers' own: one for each file of each checkpoint
        run = _prepare(arguments, command, in_memory, plays_later)
        _tell_and_resume(run, checkpoint)
        if args.overwrite_output_dir and args.should_save:
            delete_run(run.output_dir)
        begun.append(run.output_dir)
        runtime = _train(run.trainer, checkpoint, stops_on_signals)
        metrics = _measured(run.trainer, runtime if checkpoint is None else None)
        evaluation = _finish(run, metrics, written=checkpoint is not None and _is_written(checkpoint, run.trainer))
        metrics |= {} if evaluation is None else score_metrics(evaluation)
        run.trainer.accelerator.wait_for_everyone()
        return run, metrics, evaluation


def _prepare(arguments: Arguments, command: str | None, in_memory: Any, plays_later: bool) -> Run:
    """Read the data and make all that trains on them."""
    model_args, data_args, eval_args, args = arguments
    reading = (
        f"data         reading {'a sample of ' if data_args.streaming else ''}{' '.join(data_args.dataset_name or [])}"
    )
    with args.main_process_first(desc="loading the data set"), waiting(reading):
        data = load_data(data_args, eval_args, args, in_memory, asks_for_goals(model_args))
    set_seed(args.seed)
    model, processor, window_length = build(model_args, data_args, data.train, data.statistics.length_max)
    processor.env_id, processor.env_kwargs = data.env_id, data.env_kwargs
    evaluates = prepare_environment(eval_args, model, processor, data, plays_later)
    targets = target_returns_of(eval_args, data, getattr(model.config, "conditioning", "return"))
    processor.target_return = None if targets is None else targets[0]
    trainer = _build_trainer(model, processor, window_length, data, data_args, eval_args if evaluates else None, args)
    return Run(arguments, command, data, trainer, targets, evaluates)


def _tell_and_resume(run: Run, checkpoint: Path | None) -> None:
    """Say what is about to happen, and begin the run's history or take up that of a checkpoint."""
    remarks, sizes = remarks_on_schedule(run), run.data.sizes()
    if checkpoint is None:
        run.trainer.run = {**sizes, "stretches": go_on([], 0, run.now)}
    else:
        resume(checkpoint, run.trainer, run.now, sizes)
    invisible = run.data.train.statistics().remark_on_scale(run.processor.return_scale)
    for line in (run_summary(run), *remarks, *([f"Warning: {invisible}."] if invisible else [])):
        say(line)
    if run.args.device.type == "cpu" and run.architecture in WITH_SCANS:
        say_when_kernels_compile()


def _measured(trainer: DecisionMambaTrainer, runtime: float | None) -> dict[str, float]:
    """Measure a training that has ended: steps, seconds, last loss, and that of the held-out episodes."""
    trainer.remove_callback(RolloutCallback)
    evaluated = trainer.evaluate() if trainer.eval_dataset is not None else {}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "global_step": trainer.state.global_step,
        **({} if runtime is None else {"train_runtime": runtime}),
        **({"loss": losses[-1]} if losses else {}),
        **{name: value for name, value in evaluated.items() if name == "eval_loss"},
    }


def _finish(run: Run, metrics: Mapping[str, float], written: bool) -> EvaluationResult | None:
    """Write the trained model and all that tells of it, score it, and push it if asked for; return its scores.

    Args:
        written: whether weights and record are in their places already.
    """
    trainer, args, output_dir = run.trainer, run.args, run.output_dir
    if args.should_save and not written:
        delete_files(output_dir, (*RESULT_FILES, SETTINGS_FILE))  # of an earlier run: not of these weights
    if not written:
        trainer.save_model(_internal_call=True)  # it is pushed with its scores
    if not args.should_save:
        return None
    if not written:
        _write_record(run, metrics)
    hub.write_model_card(output_dir)
    evaluation = None
    if run.evaluates and written and (output_dir / EVALUATION_FILE).exists():
        say(f"scored       {output_dir / EVALUATION_FILE}; hf-decision-mamba evaluate scores it again")
    elif run.evaluates and run.eval_args.eval_episodes:
        evaluation = _evaluate(run)
    say(closing_lines(output_dir))
    if args.push_to_hub:
        trainer.push_or_say(output_dir, failed="The training is finished, but not pushed.")
    return evaluation


def _write_record(run: Run, metrics: Mapping[str, float]) -> None:
    """Write training.json, train.yaml and the learning curve."""
    record = run_record(run, metrics)
    write_json(run.output_dir / TRAINING_FILE, record)
    resolved = resolved_settings(run)
    resolved["max_steps"] = record["arguments"]["max_steps"]  # where it came too late to be used
    settings = settings_to_repeat(run.arguments, resolved, ["dataset_name"] if run.data.in_memory else [])
    write_settings(run.output_dir / SETTINGS_FILE, settings, settings_remarks(record, run.data))
    draw_learning_curve(run.output_dir / CURVE_FILE, record["history"], record["loss_function"])


@contextmanager
def _saying_how_to_go_on() -> Iterator[list[Path]]:
    """Yield a list for the folder of a run that has begun; what ends the run then says whether it can be resumed."""
    begun: list[Path] = []
    try:
        yield begun
    except (OSError, KeyboardInterrupt) as error:
        if not begun:
            raise
        checkpoint = last_complete_checkpoint(begun[0], quiet=True)
        how = f"{checkpoint} is complete: the same command with --resume_from_checkpoint last goes on from there."
        if checkpoint is None:
            how = "No checkpoint was complete yet: start again (--overwrite_output_dir true)."
        if isinstance(error, OSError):
            raise OSError(f"{error}. {how}") from error
        raise StoppedBySignal(getattr(error, "number", signal.SIGINT), how) from None


def check_arguments(
    data_args: DataArguments, eval_args: EvaluationArguments, args: DecisionMambaTrainingArguments
) -> None:
    """Refuse what is wrong whatever the data; adapt what follows from other settings."""
    if data_args.dataset_name is None:
        raise ValueError("No data set: give --dataset_name, a Hub repository (org/name), a folder or a file.")
    eval_args.environment_kwargs()
    if not 0 <= data_args.held_out_fraction < 1:
        raise ValueError(f"held_out_fraction={data_args.held_out_fraction} must be 0 or more and below 1.")
    if not 0 < data_args.top_fraction <= 1:
        raise ValueError(f"top_fraction={data_args.top_fraction} must be above 0 and at most 1.")
    temperature = data_args.return_temperature
    if temperature is not None and not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"return_temperature={temperature} must be a positive number.")
    if temperature is not None and data_args.train_mode == "sequences":
        raise ValueError(
            f"return_temperature={temperature} draws windows, and train_mode=sequences learns from every step of every "
            "episode as often; leave out one of them."
        )
    top_fraction = data_args.top_fraction if data_args.top_fraction < 1 else None
    for name, value in (("top_fraction", top_fraction), ("return_temperature", temperature)):
        if data_args.streaming and value is not None:
            raise ValueError(
                f"{name}={value} and streaming exclude each other, as nobody knows the returns of a stream before it "
                "is read; leave out one of them."
            )
    for name in ("eval_episodes", "rollout_episodes"):
        if getattr(eval_args, name) < 0:
            raise ValueError(f"{name}={getattr(eval_args, name)} must be 0 or more.")
    for name, value in (
        ("eval_max_episode_steps", eval_args.eval_max_episode_steps),
        ("frame_stack", data_args.frame_stack),
        ("streaming_buffer", data_args.streaming_buffer),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if data_args.streaming and args.max_steps <= 0:
        raise ValueError("streaming has no epochs, as nobody knows how long a stream is; say --max_steps.")
    if not np.isfinite(eval_args.target_return or [0.0]).all():
        raise ValueError(f"target_return={eval_args.target_return} must be finite.")
    metric = _best_by(args)
    if metric not in (None, "loss", *SCORES):
        known = ", ".join(f"eval_{name}" for name in ("loss", *SCORES))
        raise ValueError(f"metric_for_best_model={args.metric_for_best_model} is not measured; there are {known}.")
    if metric in SCORES and not eval_args.rollout_episodes:
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model} needs rollouts in training: --rollout_episodes 10"
        )
    if args.push_to_hub:
        check_hub_arguments(args)
    if data_args.train_mode == "sequences" and (data_args.streaming or args.data_on_device):
        other = "streaming" if data_args.streaming else "data_on_device"
        raise ValueError(f"train_mode=sequences and {other} exclude each other: leave out one of them.")
    _check_trackers(args)
    if data_args.held_out_fraction == 0:
        if args.load_best_model_at_end or eval_args.rollout_episodes:
            raise ValueError("held_out_fraction=0 leaves nothing to evaluate during training; hold episodes out.")
        args.set_evaluate(strategy="no", loss_only=True)


def _check_trackers(args: TrainingArguments) -> None:
    """Refuse trackers (`--report_to`) that there are none of; `all` has become those that are installed.

    Raises:
        ImportError: one is not installed.
        ValueError: there is no such tracker.
    """
    installed = get_available_reporting_integrations()
    for name in args.report_to or []:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(f"report_to={name} is no tracker; there are {', '.join(INTEGRATION_TO_CALLBACK)}.")
        if name not in (*installed, "flyte"):  # which is not among those that transformers looks for
            raise ImportError(
                f"report_to={name}: {name} is not installed. Install it, or leave --report_to out; installed here: "
                f"{', '.join(installed) or 'none'}."
            )


def _set_cpu_threads(args: DecisionMambaTrainingArguments) -> None:
    """Undo `accelerate launch`'s OMP_NUM_THREADS=1, which it sets where nobody chose a number, for training on CPU."""
    if args.cpu_threads is not None:
        torch.set_num_threads(args.cpu_threads)
    elif args.device.type == "cpu" and "ACCELERATE_MIXED_PRECISION" in os.environ and torch.get_num_threads() == 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, min(cores // processes, _MOST_USEFUL_THREADS)))


def _build_trainer(
    model: PreTrainedModel,
    processor: DecisionMambaProcessor,
    window_length: int,
    data: RunData,
    data_args: DataArguments,
    eval_args: EvaluationArguments | None,
    args: DecisionMambaTrainingArguments,
) -> DecisionMambaTrainer:
    windows = {"context_length": window_length, **window_settings(processor), "goals": data.goals}
    in_order, architecture = data_args.train_mode == "sequences", architecture_of(model.config)
    for setting, given, needed, able in (
        ("train_mode=sequences", in_order, "state to carry", WITH_PRESETS),
        (f"time_dilation={args.time_dilation:g}", args.time_dilation > 0, "step sizes to multiply", WITH_SCANS),
    ):
        if given and architecture not in able:
            raise ValueError(f"{setting}: --architecture {architecture} has no {needed}.")
    if not in_order:
        windows["placement"] = data_args.window_placement
    temperature = data_args.return_temperature
    train_dataset: WindowDataset | WindowStream
    if in_order:
        train_dataset = SequenceDataset(data.train, **windows)
    elif goes_to_the_device(data, args):
        train_dataset = DeviceWindowDataset(data.train, device=args.device, return_temperature=temperature, **windows)
        args.dataloader_pin_memory = False  # for copies that are not made any more
    elif data.stream is None:
        train_dataset = WindowDataset(data.train, return_temperature=temperature, **windows)
    else:
        train_dataset = WindowStream(
            data.stream,
            batch_size=args.train_batch_size,
            buffer_steps=data.buffer_steps,
            seed=data_seed_of(args),
            rank=args.process_index,
            world_size=args.world_size,
            **windows,
        )
    cut = SequenceDataset if in_order else WindowDataset.covering
    callbacks: list[TrainerCallback] = []
    if eval_args is not None and eval_args.rollout_episodes:
        rollouts = RolloutCallback(
            str(data.env_id),
            episodes=eval_args.rollout_episodes,
            target_return=processor.target_return,
            seed=_ROLLOUT_SEED,
            mode=eval_args.eval_mode,
            max_episode_steps=eval_args.eval_max_episode_steps,
            env_kwargs=data.env_kwargs,
        )
        _check_measured(_best_by(args), rollouts, model, processor)
        callbacks.append(rollouts)
    elif _best_by(args) in SCORES:
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model} needs rollouts in training, and there is no "
            "environment to play in; take eval_loss."
        )
    return DecisionMambaTrainer(
        model,
        args,
        train_dataset=train_dataset,
        eval_dataset=None if data.held_out is None else cut(data.held_out, **windows),
        processing_class=processor,
        callbacks=callbacks,
    )


def _best_by(args: TrainingArguments) -> str | None:
    """Return what the best checkpoint is chosen by, without the prefix that transformers lets people leave out."""
    return args.metric_for_best_model and args.metric_for_best_model.removeprefix("eval_")


def _check_measured(
    metric: str | None, rollouts: RolloutCallback, model: PreTrainedModel, processor: DecisionMambaProcessor
) -> None:
    """Refuse to choose by what an environment does not say: reference scores, or which episodes were a success."""
    if metric == "normalized_score" and not score_reference(rollouts.env_id):
        raise ValueError(
            f"metric_for_best_model=eval_{metric}: {rollouts.env_id} has no reference scores; take eval_return_mean."
        )
    if metric == "success_rate" and f"eval_{metric}" not in rollouts.scores(model, processor, episodes=1):
        raise ValueError(
            f"metric_for_best_model=eval_{metric}: {rollouts.env_id} does not say which episodes were a success (info "
            "has no success or is_success at the end of one); take eval_return_mean."
        )


def goes_to_the_device(data: RunData, args: DecisionMambaTrainingArguments) -> bool:
    """Tell whether the training data is kept where the model is.

    Raises:
        ValueError: it was asked for, and cannot be.
    """
    obstacle = {"streaming": data.stream is not None, "dataloader_num_workers": args.dataloader_num_workers > 0}
    if args.data_on_device is None:
        return args.device.type == "cuda" and not any(obstacle.values()) and fits(data.train, args.device, data.goals)
    for name, given in obstacle.items():
        if args.data_on_device and given:
            raise ValueError(f"data_on_device and {name} exclude each other: leave out one of them.")
    return args.data_on_device


def _train(trainer: DecisionMambaTrainer, checkpoint: Path | None, stops_on_signals: bool) -> float:
    """Train to the end and return the seconds that it took; a run that was at its end is only loaded."""
    train: Any = _train_until_interrupted if stops_on_signals else _train_undisturbed
    if checkpoint is None:
        return train(trainer)
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < trainer.last_step:
        say(f"Resuming from {checkpoint}.")
        _say_who_resumes(checkpoint, trainer)
        return train(trainer, resume_from_checkpoint=str(checkpoint))
    say(f"{checkpoint} is the end of this training: nothing left to train.")
    trainer.state = state
    trainer.model.load_state_dict(load_file(_final_weights(checkpoint, trainer)))
    return 0.0


def _train_undisturbed(trainer: DecisionMambaTrainer, **options: Any) -> float:
    """Train and return the seconds that it took; what signals do is not changed."""
    runtime: float = trainer.train(**options).metrics["train_runtime"]
    return runtime


def _train_until_interrupted(trainer: DecisionMambaTrainer, **options: Any) -> float:
    """Train and return the seconds that it took.

    Raises:
        StoppedBySignal: SIGINT or SIGTERM came. A single process saves a checkpoint first, at the end of its step;
            several may be at different steps.
    """
    stop = StopOnInterrupt()
    trainer.add_callback(stop)
    with on_interrupt(stop.note) if trainer.args.world_size == 1 else nullcontext():
        runtime = _train_undisturbed(trainer, **options)
    if stop.signal is not None:
        raise StoppedBySignal(stop.signal)
    return runtime


def _say_who_resumes(checkpoint: Path, trainer: DecisionMambaTrainer) -> None:
    """Say so where another number of processes goes on than began."""
    before, now = processes_of(checkpoint), trainer.args.world_size
    if before != now:
        other, same = processes_in_words(now), processes_in_words(before)
        say(
            f"{checkpoint} was saved by {same}, and {other} will go on, with other random numbers and "
            f"{trainer.windows_per_step} windows a step. Only {same} would end in the weights of a run that was never "
            "interrupted."
        )


def _final_weights(checkpoint: Path, trainer: DecisionMambaTrainer) -> Path:
    """Find the weights of a run that ended at a checkpoint."""
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return Path(best or checkpoint) / "model.safetensors"


def _is_written(checkpoint: Path, trainer: DecisionMambaTrainer) -> bool:
    """Tell whether the checkpoint is the end of a run whose weights and record are in place, as they should be."""
    weights, record = trainer.output_dir / "model.safetensors", read_json(trainer.output_dir / TRAINING_FILE)
    step = trainer.state.global_step
    at_the_end = checkpoint.name == f"checkpoint-{step}" and record.get("global_step") == step
    return at_the_end and weights.is_file() and filecmp.cmp(weights, _final_weights(checkpoint, trainer), shallow=False)


def _policy_of(run: Run) -> DecisionMambaPolicy:
    return DecisionMambaPolicy(as_saved(run.model), run.processor, mode=run.eval_args.eval_mode)


def _evaluate(run: Run) -> EvaluationResult:
    """Score the finished model, and write the results and the card that shows them."""
    eval_args, statistics = run.eval_args, run.data.statistics
    result = evaluate_policy(
        _policy_of(run),
        run.data.env_id,
        episodes=eval_args.eval_episodes,
        target_returns=run.targets,
        max_episode_steps=eval_args.eval_max_episode_steps,
        env_kwargs=run.data.env_kwargs,
        progress=not run.args.disable_tqdm,
    )
    result.checkpoint = "best" if run.args.load_best_model_at_end else "last"
    result.save(run.output_dir, dataset_return_mean=statistics.return_mean, dataset_return_max=statistics.return_max)
    run.trainer.create_model_card()
    say(f"\n{result.table()}")
    return result
