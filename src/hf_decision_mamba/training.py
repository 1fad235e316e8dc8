"""Training: one command from a data set to a scored checkpoint.

Here the rooms meet: trajectories become windows, windows train a model, the model acts, and its card is written.
Source: the recipe of Decision Transformer (Chen et al. 2021, algorithm 1) with the settings of DeMa (arXiv 2405.12094).
"""

import filecmp
import json
import os
import platform
import re
import reprlib
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    get_scheduler,
    set_seed,
)
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import SchedulerType
from transformers.utils.logging import disable_progress_bar

from . import hub
from .building import architecture_of, build, embeds_time, paper_parameter_count, window_settings
from .console import (
    StoppedBySignal,
    on_interrupt,
    report_user_errors,
    say,
    say_when_kernels_compile,
    waiting,
)
from .data import (
    EpisodeStream,
    ResidentWindows,
    Trajectories,
    TrajectoryStatistics,
    WindowDataset,
    WindowStream,
    load_trajectories,
    open_stream,
)
from .data.formats.hub import PARQUET_REVISION, is_repository_id, resolved_commit
from .data.inspection import QUANTILES, spread
from .data.resident import fits
from .environments import action_bounds, check_spaces, is_env_id, make_environments, score_reference
from .evaluation import evaluate_policy, package_versions
from .figures import number
from .files import replacing
from .model import DecisionMambaProcessor
from .model.selective_scan import choose_backend
from .policy import DecisionMambaPolicy
from .pushing import files_at_top
from .resuming import checkpoint_to_resume, resume
from .run_files import (
    CURVE_FILE,
    RECIPE,
    RESULT_FILES,
    RUN_FILES,
    SETTINGS_FILE,
    WITHOUT_WARM_UP,
    draw_learning_curve,
    go_on,
    is_of_one_piece,
    learning_history,
    portable,
    settings_to_repeat,
    write_settings,
)
from .trainer import (
    DecisionMambaTrainer,
    RolloutCallback,
    StopOnInterrupt,
    as_saved,
    check_hub_arguments,
    last_complete_checkpoint,
    processes_of,
    score_metrics,
)
from .training_arguments import (
    DataArguments,
    DecisionMambaTrainingArguments,
    EvaluationArguments,
    ModelArguments,
    parse_arguments,
)

#: Returns that the papers ask for (DeMa, section 5; Decision Transformer, table 8), by environment family. Elsewhere,
#: Atari included, the best return of the data set is asked for.
TARGET_RETURNS = {"hopper": 3600.0, "halfcheetah": 12000.0, "walker2d": 5000.0}

_ROLLOUT_SEED = 1_000_000  # other episodes than the final evaluation's, which the choice of the best would flatter
_MOST_USEFUL_THREADS = 8  # matrices this small gain nothing from more


def _delete_run(output_dir: Path) -> None:
    """Delete what an earlier run left; the card stays, and is rendered again unless somebody edited it."""
    for folder in output_dir.glob("checkpoint-*"):
        shutil.rmtree(folder)
    _delete_files(output_dir, RUN_FILES)


def _delete_files(output_dir: Path, patterns: tuple[str, ...]) -> None:
    for name in files_at_top(output_dir, patterns):
        (output_dir / name).unlink()


# -------------------------------------------------------------------------------------------------------- the run


@dataclass
class _Data:
    """The data set of a run: whole, and split into what is learned from and what is held out.

    Of a stream, `statistics` and `train` are those of the sample that it is known from.
    """

    statistics: TrajectoryStatistics
    train: Trajectories
    held_out: Trajectories | None
    env_id: str | None
    env_kwargs: dict[str, Any] | None = None
    stream: EpisodeStream | None = None
    buffer_steps: int = 0
    revision: str | None = None

    @property
    def name(self) -> str:
        return self.train.name

    def sizes(self) -> dict[str, int]:
        """What tells it from others in short."""
        return {"episodes": self.statistics.episodes, "transitions": self.statistics.transitions}

    def facts(self) -> dict[str, Any]:
        """What training.json and the card say about it."""
        kept = ("episodes", "transitions", "return_mean", "return_std", "return_min", "return_max")
        statistics = {name: self.statistics.to_dict()[name] for name in kept}
        parts = [self.train] if self.held_out is None else [self.train, self.held_out]
        returns = spread(np.concatenate([part.returns() for part in parts]))
        statistics["return_quantiles"] = {name: returns[name] for name in QUANTILES}
        return {
            "name": self.name,
            "revision": self.revision,
            "env_id": self.env_id,
            **({"env_kwargs": self.env_kwargs} if self.env_kwargs else {}),
            **(statistics if self.stream is None else {"streaming_sample": statistics}),
            "held_out_episodes": self.held_out.num_episodes if self.held_out is not None else 0,
        }


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
        data = _load_data(data_args, eval_args, args)
    set_seed(args.seed)
    model, processor, window_length = build(model_args, data_args, data.train, data.statistics.length_max)
    processor.env_id, processor.env_kwargs = data.env_id, data.env_kwargs
    evaluates = _prepare_environment(eval_args, model, processor, data)
    processor.target_return = _target_returns(eval_args, data)[0]
    trainer = _build_trainer(model, processor, window_length, data, eval_args if evaluates else None, args)
    remarks = _remarks_on_schedule(args, trainer.last_step, arguments.given)
    now, sizes = _now(model_args, data_args, trainer, data), data.sizes()
    if checkpoint is None:
        trainer.run = {**sizes, "stretches": go_on([], 0, now)}
    else:
        resume(checkpoint, trainer, now, sizes)
    invisible = data.train.statistics().remark_on_scale(processor.return_scale)
    for line in (_summary(model_args, data, trainer), *remarks, *([f"Warning: {invisible}."] if invisible else [])):
        say(line)
    if args.device.type == "cpu" and model.config.model_type == "decision_mamba":
        say_when_kernels_compile()

    output_dir = trainer.output_dir
    if args.overwrite_output_dir and args.should_save:
        _delete_run(output_dir)
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
        _delete_files(output_dir, (*RESULT_FILES, SETTINGS_FILE))  # of an earlier run: not of these weights
    if not written:
        trainer.save_model(_internal_call=True)  # it is pushed with its scores
    if args.should_save:
        if not written:
            record = _record(model_args, trainer, data, argv, metrics, now)
            with replacing(output_dir / "training.json") as draft:
                draft.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            resolved = _resolved(model_args, eval_args, trainer, data)
            resolved["max_steps"] = record["arguments"]["max_steps"]  # where it came too late to be used
            settings = settings_to_repeat(arguments, resolved)
            write_settings(output_dir / SETTINGS_FILE, settings, _remarks(record, data))
            _draw_learning_curve(output_dir / CURVE_FILE, record)
        hub.write_model_card(output_dir)
        if evaluates and written and (output_dir / "evaluation.json").exists():
            say(f"scored       {output_dir / 'evaluation.json'}; hf-decision-mamba evaluate scores it again")
        elif evaluates:
            metrics |= _evaluate(trainer, eval_args, data)
        say(_closing(output_dir))
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


def _load_data(data_args: DataArguments, eval_args: EvaluationArguments, args: TrainingArguments) -> _Data:
    source: dict[str, Any] = {
        "config": data_args.dataset_config,
        "revision": data_args.dataset_revision,
        "split": data_args.dataset_split,
        "columns": data_args.columns(),
        "action_type": data_args.action_type,
    }
    revision = _revision(data_args)
    if data_args.streaming:
        steps, stream = data_args.streaming_buffer, open_stream(data_args.dataset_name or [], **source)
        stream, train, held_out = stream.sample(steps, data_args.held_out_fraction)
        return _Data(train.statistics(), train, held_out, *_environment(eval_args, train), stream, steps, revision)
    trajectories = load_trajectories(data_args.dataset_name or [], **source)
    train, held_out = trajectories, None
    if data_args.held_out_fraction > 0:
        train, held_out = trajectories.split(data_args.held_out_fraction, _data_seed(args))
    environment = _environment(eval_args, trajectories)
    return _Data(trajectories.statistics(), train, held_out, *environment, revision=revision)


def _environment(eval_args: EvaluationArguments, data: Trajectories) -> tuple[str | None, dict[str, Any] | None]:
    """The environment's id and keyword arguments: those given, else the data set's."""
    given, env_id = eval_args.environment_kwargs(), _env_id(eval_args, data)
    if given and env_id is None:
        raise ValueError(f"env_kwargs={eval_args.env_kwargs} needs an environment: --env_id")
    return env_id, (data.env_kwargs if given is None and env_id == data.env_id else given) or None


def _env_id(eval_args: EvaluationArguments, data: Trajectories) -> str | None:
    """The environment that was asked for, else the data set's; a text there that cannot be one is left out."""
    if eval_args.env_id is not None and not is_env_id(eval_args.env_id):
        raise ValueError(f"env_id={eval_args.env_id!r} is no gymnasium id, [module:][namespace/]name[-vN].")
    if eval_args.env_id is None and data.env_id is not None and not is_env_id(data.env_id):
        said = reprlib.repr(data.env_id)
        say(f"{data.name} names the environment {said}, which is no gymnasium id: left out; --env_id names one.")
        return None
    return eval_args.env_id or data.env_id


def _revision(data_args: DataArguments) -> str | None:
    """The commit that a Hub repository is read at; as it was given where that is a copy or cannot be found out."""
    names, revision = data_args.dataset_name or [], data_args.dataset_revision
    if len(names) != 1:
        return revision  # each has commits of its own
    name = names[0]
    if Path(name).expanduser().exists() or not is_repository_id(name) or revision == PARQUET_REVISION:
        return revision
    return resolved_commit(name, revision) or revision


def _data_seed(args: TrainingArguments) -> int:
    return args.seed if args.data_seed is None else args.data_seed


def _prepare_environment(
    eval_args: EvaluationArguments, model: PreTrainedModel, processor: DecisionMambaProcessor, data: _Data
) -> bool:
    """Make the environment once, if there are episodes to play: whether it can be evaluated in, and its action bounds.

    Raises:
        ValueError: the environment is unknown, or not the one that the data set is of; or the model cannot act in it.
    """
    wanted = eval_args.eval_episodes > 0 or eval_args.rollout_episodes > 0
    if data.env_id is None:
        if wanted:
            say("No evaluation in an environment: the data set's card names none, and --env_id is not given.")
        return False
    policy = DecisionMambaPolicy(model, processor, mode=eval_args.eval_mode)
    if not wanted:
        return False
    try:
        limit = eval_args.eval_max_episode_steps
        envs = make_environments(data.env_id, 1, max_episode_steps=limit, env_kwargs=data.env_kwargs)
        try:
            check_spaces(data.env_id, envs, policy)
            limit = limit or getattr(envs.spec, "max_episode_steps", None)
            if limit is not None and embeds_time(model.config) and limit > model.config.max_ep_len:
                raise ValueError(
                    f"Episodes of {data.env_id} last up to {limit} steps, but the model knows only max_ep_len="
                    f"{model.config.max_ep_len}; raise --max_ep_len or cut them with --eval_max_episode_steps."
                )
            bounds = action_bounds(envs.single_action_space)
            if bounds is not None and np.abs(bounds).min() < np.finfo(np.float32).max:
                processor.action_low, processor.action_high = bounds
            if processor.observation_parts is None:  # the data say nothing, and evaluation flattens like this
                processor.observation_parts = getattr(envs, "observation_parts", None)
        finally:
            envs.close()
    except ImportError as error:
        say(f"No evaluation in an environment: {error}")
        return False
    except ValueError as error:
        raise ValueError(f"{error} (--env_id names another one, --eval_episodes 0 trains without.)") from error
    return True


def _target_returns(eval_args: EvaluationArguments, data: _Data) -> list[float]:
    """The returns to ask for: those given, else the papers' for this family, else the best of the data set."""
    if eval_args.target_return:
        return eval_args.target_return
    family = re.sub(r"-v\d+$", "", (data.env_id or "").rsplit("/")[-1]).lower()
    return [TARGET_RETURNS.get(family, data.statistics.return_max)]


def _build_trainer(
    model: PreTrainedModel,
    processor: DecisionMambaProcessor,
    window_length: int,
    data: _Data,
    eval_args: EvaluationArguments | None,
    args: DecisionMambaTrainingArguments,
) -> DecisionMambaTrainer:
    windows = {"context_length": window_length, **window_settings(processor)}
    train_dataset: WindowDataset | WindowStream
    if _goes_to_the_device(data, args):
        train_dataset = ResidentWindows(data.train, device=args.device, **windows)
        args.dataloader_pin_memory = False  # for copies that are not made any more
    elif data.stream is None:
        train_dataset = WindowDataset(data.train, **windows)
    else:
        train_dataset = WindowStream(
            data.stream,
            batch_size=args.train_batch_size,
            buffer_steps=data.buffer_steps,
            seed=_data_seed(args),
            rank=args.process_index,
            world_size=args.world_size,
            **windows,
        )
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
        eval_dataset=None if data.held_out is None else WindowDataset.covering(data.held_out, **windows),
        processing_class=processor,
        callbacks=callbacks,
    )


def _goes_to_the_device(data: _Data, args: DecisionMambaTrainingArguments) -> bool:
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
        say(
            f"{checkpoint} was saved by {_counted(before)}, and {_counted(now)} will go on, with other random numbers "
            f"and {trainer.windows_per_step} windows a step. Only {_counted(before)} would end in the weights of a run "
            "that was never interrupted."
        )


def _counted(processes: int) -> str:
    return f"{processes} process{'es' if processes > 1 else ''}"


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


def _evaluate(trainer: DecisionMambaTrainer, eval_args: EvaluationArguments, data: _Data) -> dict[str, float]:
    """Score the finished model, and write the results and the card that shows them."""
    if not eval_args.eval_episodes:
        return {}
    policy = DecisionMambaPolicy(as_saved(trainer.model), trainer.processing_class, mode=eval_args.eval_mode)
    result = evaluate_policy(
        policy,
        data.env_id,
        episodes=eval_args.eval_episodes,
        target_returns=_target_returns(eval_args, data),
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


# ----------------------------------------------------------------------------------------- what a run tells of itself


def _summary(model_args: ModelArguments, data: _Data, trainer: DecisionMambaTrainer) -> str:
    """What is about to happen, in five lines."""
    statistics, args = data.statistics, trainer.args
    mean = statistics.return_mean
    config: Any = trainer.model.config
    held_out = f" ({data.held_out.num_episodes:,} held out)" if data.held_out is not None else ""
    device = trainer.args.device
    preset, count = _preset(model_args), trainer.model.num_parameters()
    as_published = paper_parameter_count(trainer.model, preset)
    published = f" ({as_published:,} as its paper counts)" if as_published != count else ""
    backend = ""
    if config.model_type == "decision_mamba":
        backend = f", scan backend {choose_backend(torch.empty(0, device=device), config.scan_backend)}"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    resident = " (holds the data)" if isinstance(trainer.train_dataset, ResidentWindows) else ""
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


def _remarks_on_schedule(args: DecisionMambaTrainingArguments, last_step: int, given: Mapping[str, Any]) -> list[str]:
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


def _preset(model_args: ModelArguments) -> str | None:
    """The preset that a model was built from; None for baselines and fine-tuned checkpoints."""
    built = model_args.model_name_or_path is None and model_args.architecture == "decision_mamba"
    return model_args.preset if built else None


def _closing(output_dir: Path) -> str:
    plot = output_dir / "returns.png"
    return f"\ncheckpoint   {output_dir}\ncard         {output_dir / 'README.md'}" + (
        f"\nplot         {plot}" if plot.is_file() else ""
    )


def _now(
    model_args: ModelArguments, data_args: DataArguments, trainer: DecisionMambaTrainer, data: _Data
) -> dict[str, Any]:
    """What a stretch of the run is trained with: settings, hardware and versions, but no folders of the machine."""
    processor = trainer.processing_class
    given = {**vars(model_args), **vars(data_args), "preset": _preset(model_args), "dataset_name": data.name}
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
            **_settings(trainer.args),
        },
        "hardware": _hardware(trainer.args),
        "versions": {
            "python": platform.python_version(),
            **package_versions("accelerate", "datasets", "numpy", "numba"),
        },
    }


def _record(
    model_args: ModelArguments,
    trainer: DecisionMambaTrainer,
    data: _Data,
    argv: Sequence[str],
    metrics: dict[str, float],
    now: dict[str, Any],
) -> dict[str, Any]:
    """training.json: what a reader needs to judge the run and to repeat it, and nothing about the machine's folders."""
    preset, count = _preset(model_args), trainer.model.num_parameters()
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


def _resolved(
    model_args: ModelArguments, eval_args: EvaluationArguments, trainer: DecisionMambaTrainer, data: _Data
) -> dict[str, Any]:
    """What followed from data and model where no setting said it."""
    processor, args = trainer.processing_class, trainer.args
    return {
        "preset": _preset(model_args),
        "dataset_revision": data.revision,
        "context_length": trainer.train_dataset.context_length,
        "return_scale": processor.return_scale,
        "frame_stack": processor.frame_stack if data.train.state_type == "image" else None,
        "env_id": data.env_id,
        "env_kwargs": data.env_kwargs,
        "target_return": _target_returns(eval_args, data),
        "num_train_epochs": args.num_train_epochs if args.max_steps <= 0 else None,
    }


def _remarks(record: dict[str, Any], data: _Data) -> list[str]:
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


def _draw_learning_curve(path: Path, record: dict[str, Any]) -> None:
    try:
        draw_learning_curve(path, record["history"], record["loss_function"])
    except ImportError:
        say(f"{path.name} was not drawn: matplotlib is not installed.")


def _settings(args: TrainingArguments) -> dict[str, Any]:
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


def _hardware(args: TrainingArguments) -> str:
    if args.device.type == "cuda":
        return f"{args.world_size} × {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} {platform.machine()} {args.device.type.upper()} cores"


__all__ = ["TARGET_RETURNS", "main", "report_user_errors"]
