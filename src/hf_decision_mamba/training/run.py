"""Training: one command from a data set to a scored checkpoint.

Here the rooms meet: trajectories become windows, windows train a model, the model acts, and its card is written.
Source: the recipe of Decision Transformer (Chen et al. 2021, algorithm 1) with the settings of DeMa (arXiv 2405.12094).
"""

import filecmp
import json
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments, set_seed
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils.logging import disable_progress_bar

from ..acting.policy import DecisionMambaPolicy
from ..baselines.architectures import architecture_of
from ..data import DeviceWindowDataset, SequenceDataset, WindowDataset, WindowStream
from ..data.windows import window_settings
from ..data.windows_on_device import fits
from ..evaluation.rollouts import evaluate_policy
from ..evaluation.scores import score_reference
from ..model import DecisionMambaModel, DecisionMambaProcessor
from ..reporting.console import StoppedBySignal, on_interrupt, say, say_when_kernels_compile, waiting
from ..reporting.files import CURVE_FILE, RESULT_FILES, SETTINGS_FILE, portable, replacing
from ..reporting.stretches import go_on
from ..reporting.versions import package_versions
from ..sharing import model_card as hub
from .arguments import (
    DataArguments,
    DecisionMambaTrainingArguments,
    EvaluationArguments,
    ModelArguments,
    parse_arguments,
)
from .callbacks import RolloutCallback, as_saved, score_metrics
from .checkpoints import last_complete_checkpoint, processes_of
from .factory import build
from .record import settings_to_repeat, write_settings
from .report import (
    closing_lines,
    draw_curve_of,
    hardware_of,
    preset_of,
    processes_in_words,
    remarks_on_schedule,
    resolved_settings,
    run_record,
    run_summary,
    settings_of,
    settings_remarks,
)
from .resuming import checkpoint_to_resume, delete_files, delete_run, resume
from .task import RunData, data_seed_of, load_data, prepare_environment, target_returns_of
from .trainer import DecisionMambaTrainer, StopOnInterrupt, check_hub_arguments

_ROLLOUT_SEED = 1_000_000  # other episodes than the final evaluation's, which the choice of the best would flatter
_MOST_USEFUL_THREADS = 8  # matrices this small gain nothing from more


def main(argv: Sequence[str] | None = None, default_config: Path | None = None) -> dict[str, float]:
    """Train, evaluate, and write checkpoint, card and results into `output_dir`; push them if asked for.

    Args:
        argv: arguments, see `parse_arguments`; those of the process when not given.
        default_config: the YAML file when `argv` names none.

    Returns:
        What was measured: loss, eval_loss, global_step, train_runtime, and the scores of the first target return.

    Raises:
        ValueError, OSError: a setting, file or data set that cannot be right, before any training.
        FloatingPointError: the loss is not finite.
        StoppedBySignal: SIGINT or SIGTERM came; the message says how to go on.
    """
    with _saying_how_to_go_on() as begun:
        return _run(sys.argv[1:] if argv is None else list(argv), default_config, begun)


def _run(argv: list[str], default_config: Path | None, begun: list[Path]) -> dict[str, float]:
    """Run `main`; note in `begun` the folder from which on it can be resumed."""
    model_args, data_args, eval_args, args = arguments = parse_arguments(argv, default_config)
    for remark in arguments.remarks:
        say(remark)
    _check_arguments(data_args, eval_args, args)
    checkpoint = checkpoint_to_resume(model_args, data_args, args)
    _set_cpu_threads(args)
    disable_progress_bar()  # transformers' own: one for each file of each checkpoint

    reading = (
        f"data         reading {'a sample of ' if data_args.streaming else ''}{' '.join(data_args.dataset_name or [])}"
    )
    with args.main_process_first(desc="loading the data set"), waiting(reading):
        data = load_data(data_args, eval_args, args)
    set_seed(args.seed)
    model, processor, window_length = build(model_args, data_args, data.train, data.statistics.length_max)
    processor.env_id, processor.env_kwargs = data.env_id, data.env_kwargs
    evaluates = prepare_environment(eval_args, model, processor, data)
    processor.target_return = target_returns_of(eval_args, data)[0]
    trainer = _build_trainer(model, processor, window_length, data, data_args, eval_args if evaluates else None, args)
    remarks = remarks_on_schedule(args, trainer.last_step, arguments.given)
    now, sizes = _now(model_args, data_args, trainer, data), data.sizes()
    if checkpoint is None:
        trainer.run = {**sizes, "stretches": go_on([], 0, now)}
    else:
        resume(checkpoint, trainer, now, sizes)
    invisible = data.train.statistics().remark_on_scale(processor.return_scale)
    for line in (run_summary(model_args, data, trainer), *remarks, *([f"Warning: {invisible}."] if invisible else [])):
        say(line)
    if args.device.type == "cpu" and model.config.model_type == "decision_mamba":
        say_when_kernels_compile()

    output_dir = trainer.output_dir
    if args.overwrite_output_dir and args.should_save:
        delete_run(output_dir)
    begun.append(output_dir)
    runtime = _train(trainer, checkpoint)
    trainer.remove_callback(RolloutCallback)
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    metrics = {
        "global_step": trainer.state.global_step,
        **({"train_runtime": runtime} if checkpoint is None else {}),
        **({"loss": losses[-1]} if losses else {}),
        **{name: value for name, value in metrics.items() if name == "eval_loss"},
    }
    written = checkpoint is not None and _is_written(checkpoint, trainer)
    if args.should_save and not written:
        delete_files(output_dir, (*RESULT_FILES, SETTINGS_FILE))  # of an earlier run: not of these weights
    if not written:
        trainer.save_model(_internal_call=True)  # it is pushed with its scores
    if args.should_save:
        if not written:
            record = run_record(model_args, trainer, data, argv, metrics, now)
            with replacing(output_dir / "training.json") as draft:
                draft.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            resolved = resolved_settings(model_args, eval_args, trainer, data)
            resolved["max_steps"] = record["arguments"]["max_steps"]  # where it came too late to be used
            settings = settings_to_repeat(arguments, resolved)
            write_settings(output_dir / SETTINGS_FILE, settings, settings_remarks(record, data))
            draw_curve_of(output_dir / CURVE_FILE, record)
        hub.write_model_card(output_dir)
        if evaluates and written and (output_dir / "evaluation.json").exists():
            say(f"scored       {output_dir / 'evaluation.json'}; hf-decision-mamba evaluate scores it again")
        elif evaluates:
            metrics |= _evaluate(trainer, eval_args, data)
        say(closing_lines(output_dir))
        if args.push_to_hub:
            trainer.push_or_say(output_dir, failed="The training is finished, but not pushed.")
    trainer.accelerator.wait_for_everyone()
    return metrics


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


def _check_arguments(
    data_args: DataArguments, eval_args: EvaluationArguments, args: DecisionMambaTrainingArguments
) -> None:
    """Refuse what is wrong whatever the data; adapt what follows from other settings."""
    if data_args.dataset_name is None:
        raise ValueError("No data set: give --dataset_name, a Hub repository (org/name), a folder or a file.")
    eval_args.environment_kwargs()
    if not 0 <= data_args.held_out_fraction < 1:
        raise ValueError(f"held_out_fraction={data_args.held_out_fraction} must be 0 or more and below 1.")
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
    if args.metric_for_best_model in ("normalized_score", "eval_normalized_score") and not eval_args.rollout_episodes:
        raise ValueError(
            "metric_for_best_model=eval_normalized_score needs rollouts in training: --rollout_episodes 10"
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
    windows = {"context_length": window_length, **window_settings(processor)}
    in_order, recurrent = data_args.train_mode == "sequences", isinstance(model, DecisionMambaModel)
    scans = recurrent and model.config.ssm != "gru"
    for setting, impossible, needed in (
        ("train_mode=sequences", in_order and not recurrent, "state to carry"),
        (f"time_dilation={args.time_dilation:g}", args.time_dilation > 0 and not scans, "step sizes to multiply"),
    ):
        if impossible:
            name = "gru" if recurrent else architecture_of(model.config)
            raise ValueError(f"{setting}: --architecture {name} has no {needed}.")
    if not in_order:
        windows["placement"] = data_args.window_placement
    train_dataset: WindowDataset | WindowStream
    if in_order:
        train_dataset = SequenceDataset(data.train, **windows)
    elif _goes_to_the_device(data, args):
        train_dataset = DeviceWindowDataset(data.train, device=args.device, **windows)
        args.dataloader_pin_memory = False  # for copies that are not made any more
    elif data.stream is None:
        train_dataset = WindowDataset(data.train, **windows)
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
        if args.metric_for_best_model and "score" in args.metric_for_best_model and not score_reference(data.env_id):
            raise ValueError(
                f"metric_for_best_model={args.metric_for_best_model}: {data.env_id} has no reference scores; take "
                "eval_return_mean."
            )
        callbacks.append(
            RolloutCallback(
                str(data.env_id),
                episodes=eval_args.rollout_episodes,
                target_return=float(processor.target_return or 0.0),
                seed=_ROLLOUT_SEED,
                mode=eval_args.eval_mode,
                max_episode_steps=eval_args.eval_max_episode_steps,
                env_kwargs=data.env_kwargs,
            )
        )
    return DecisionMambaTrainer(
        model,
        args,
        train_dataset=train_dataset,
        eval_dataset=None if data.held_out is None else cut(data.held_out, **windows),
        processing_class=processor,
        callbacks=callbacks,
    )


def _goes_to_the_device(data: RunData, args: DecisionMambaTrainingArguments) -> bool:
    """Whether the training data is kept where the model is.

    Raises:
        ValueError: it was asked for, and cannot be.
    """
    obstacle = {"streaming": data.stream is not None, "dataloader_num_workers": args.dataloader_num_workers > 0}
    if args.data_on_device is None:
        return args.device.type == "cuda" and not any(obstacle.values()) and fits(data.train, args.device)
    for name, given in obstacle.items():
        if args.data_on_device and given:
            raise ValueError(f"data_on_device and {name} exclude each other: leave out one of them.")
    return args.data_on_device


def _train(trainer: DecisionMambaTrainer, checkpoint: Path | None) -> float:
    """Train to the end and return the seconds that it took; a run that was at its end is only loaded."""
    if checkpoint is None:
        return _train_until_interrupted(trainer)
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < trainer.last_step:
        say(f"Resuming from {checkpoint}.")
        _say_who_resumes(checkpoint, trainer)
        return _train_until_interrupted(trainer, resume_from_checkpoint=str(checkpoint))
    say(f"{checkpoint} is the end of this training: nothing left to train.")
    trainer.state = state
    trainer.model.load_state_dict(load_file(_final_weights(checkpoint, trainer)))
    return 0.0


def _train_until_interrupted(trainer: DecisionMambaTrainer, **options: Any) -> float:
    """Train and return the seconds that it took.

    Raises:
        StoppedBySignal: SIGINT or SIGTERM came. A single process saves a checkpoint first, at the end of its step;
            several may be at different steps.
    """
    stop = StopOnInterrupt()
    trainer.add_callback(stop)
    with on_interrupt(stop.note) if trainer.args.world_size == 1 else nullcontext():
        runtime = trainer.train(**options).metrics["train_runtime"]
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
    """The weights of a run that ended at a checkpoint."""
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return Path(best or checkpoint) / "model.safetensors"


def _is_written(checkpoint: Path, trainer: DecisionMambaTrainer) -> bool:
    """Whether the checkpoint is the end of a run whose weights and record are in their places, as they should be."""
    ours, record = trainer.output_dir / "model.safetensors", hub.read_json(trainer.output_dir / "training.json")
    step = trainer.state.global_step
    at_the_end = checkpoint.name == f"checkpoint-{step}" and record.get("global_step") == step
    return at_the_end and ours.is_file() and filecmp.cmp(ours, _final_weights(checkpoint, trainer), shallow=False)


def _evaluate(trainer: DecisionMambaTrainer, eval_args: EvaluationArguments, data: RunData) -> dict[str, float]:
    """Score the finished model, and write the results and the card that shows them."""
    if not eval_args.eval_episodes:
        return {}
    policy = DecisionMambaPolicy(as_saved(trainer.model), trainer.processing_class, mode=eval_args.eval_mode)
    result = evaluate_policy(
        policy,
        data.env_id,
        episodes=eval_args.eval_episodes,
        target_returns=target_returns_of(eval_args, data),
        max_episode_steps=eval_args.eval_max_episode_steps,
        env_kwargs=data.env_kwargs,
        progress=not trainer.args.disable_tqdm,
    )
    result.checkpoint = "best" if trainer.args.load_best_model_at_end else "last"
    result.save(
        trainer.output_dir,
        dataset_return_mean=data.statistics.return_mean,
        dataset_return_max=data.statistics.return_max,
    )
    trainer.create_model_card()
    say(f"\n{result.table()}")
    return score_metrics(result)


def _now(
    model_args: ModelArguments, data_args: DataArguments, trainer: DecisionMambaTrainer, data: RunData
) -> dict[str, Any]:
    """What a stretch of the run is trained with: settings, hardware and versions, but no folders of the machine."""
    processor = trainer.processing_class
    given = {**vars(model_args), **vars(data_args), "preset": preset_of(model_args), "dataset_name": data.name}
    given |= {} if data_args.streaming else {"streaming": None, "streaming_buffer": None}
    given["architecture"] = architecture_of(trainer.model.config)
    given["dataset_revision"] = data.revision
    given["frame_stack"] = processor.frame_stack if data.train.state_type == "image" else None
    given["model_name_or_path"] = portable(model_args.model_name_or_path or "") or None
    return {
        "settings": {
            **{name: value for name, value in given.items() if value is not None},
            "context_length": trainer.train_dataset.context_length,
            "return_scale": processor.return_scale,
            "action_type": data.train.action_type,
            **settings_of(trainer.args),
        },
        "hardware": hardware_of(trainer.args),
        "versions": {
            "python": platform.python_version(),
            **package_versions("accelerate", "datasets", "numpy", "numba"),
        },
    }
