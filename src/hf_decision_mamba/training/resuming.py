"""Resuming: from which checkpoint a run goes on, whether the settings are still its own, and which of them are new.

What a run keeps to its end stands in `record.FIXED`; whatever else is new is used from the step where it goes on.
"""

import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, PreTrainedConfig, TrainerState

from ..baselines.architectures import embeds_time
from ..data import WindowStream
from ..data.formats.dqn_replay import find_logs
from ..data.sources import joined_names
from ..model import DecisionMambaProcessor
from ..reporting.console import say
from ..reporting.files import CONFIG_FILE, PROCESSOR_FILE, RUN_FILES, TRAINING_FILE, files_at_top, portable, read_json
from ..reporting.stretches import changes, go_on
from ..views import VIEWS
from .arguments import DataArguments, DecisionMambaTrainingArguments, ModelArguments
from .checkpoints import last_complete_checkpoint, what_is_missing
from .record import FIXED, RECIPE, kept_settings, other_settings, read_run, with_held
from .trainer import DecisionMambaTrainer


def delete_run(output_dir: Path) -> None:
    """Delete what an earlier run left; the card stays, and is rendered again unless somebody edited it."""
    for folder in output_dir.glob("checkpoint-*"):
        shutil.rmtree(folder)
    delete_files(output_dir, RUN_FILES)


def delete_files(output_dir: Path, patterns: tuple[str, ...]) -> None:
    for name in files_at_top(output_dir, patterns):
        (output_dir / name).unlink()


_OF_A_MODEL = {"model_type", *(entry.name for entry in fields(ModelArguments))}
_OTHER_DATA = 1e-3  # deviations by which statistics of the same data never differ, whatever computes them


def checkpoint_to_resume(
    model_args: ModelArguments, data_args: DataArguments, args: DecisionMambaTrainingArguments
) -> Path | None:
    """Return the checkpoint that `--resume_from_checkpoint` means; None for a run that begins.

    Raises:
        ValueError: there is no such checkpoint, or the output folder holds a run that nobody asked to write over.
    """
    output_dir, wanted = Path(str(args.output_dir)), args.resume_from_checkpoint
    if wanted is None or str(wanted).lower() in ("false", "no"):
        if not args.overwrite_output_dir:
            _refuse_to_write_over(output_dir, _known_settings(model_args, data_args, args), same_too=True)
        return None
    if args.overwrite_output_dir:
        raise ValueError("resume_from_checkpoint and overwrite_output_dir contradict each other; give one of them.")
    if str(wanted).lower() in ("last", "true", "yes"):
        checkpoint = last_complete_checkpoint(output_dir)
        if checkpoint is None:
            _refuse_to_write_over(output_dir, _known_settings(model_args, data_args, args), same_too=False)
            say(f"No complete checkpoint in {output_dir} yet: training starts at the beginning.")
        return checkpoint
    checkpoint = Path(wanted)
    problem = what_is_missing(checkpoint) if checkpoint.is_dir() else "there is no such folder"
    if problem is not None:
        raise ValueError(f"Cannot resume from {checkpoint}: {problem}. `last` takes the newest complete checkpoint.")
    _refuse_to_write_over(output_dir, _known_settings(model_args, data_args, args), same_too=False)
    return checkpoint


def resume(checkpoint: Path, trainer: DecisionMambaTrainer, now: Mapping[str, Any], data: Mapping[str, int]) -> None:
    """Give a trainer what its run has been so far, and say which settings are new.

    Args:
        checkpoint: where the run goes on.
        trainer: built with the settings of now.
        now: `settings`, `hardware` and `versions`, see `stretches.go_on`.
        data: `episodes` and `transitions` of the data set.

    Raises:
        ValueError: the settings are those of another run, or come too late to be used.
    """
    state, run = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")), read_run(checkpoint)
    if run is None:
        say(
            f"{checkpoint} was written by an earlier version, which did not keep the settings: which ones it was "
            "trained with is not known, and that seed and data are the same is checked only in part."
        )
        run = {**data, "stretches": [{"from_step": 0, "to_step": state.global_step, "settings": None}]}
    last = run["stretches"][-1]
    held = last["settings"] or _held_settings(checkpoint.parent)[0]
    if held:
        _refuse(checkpoint, other_settings(held, kept_settings(now["settings"])))
        now = {**now, "settings": with_held(now["settings"], held)}
    _refuse(checkpoint, _differing(run, data, data))
    _check_same_model(checkpoint, trainer.model.config)
    _check_same_processor(checkpoint, trainer.processing_class)
    if not isinstance(trainer.train_dataset, WindowStream):
        _check_same_epochs(checkpoint, state, trainer.steps_per_epoch)
    new = changes(last, now) if last["settings"] else {}
    step, too_late = state.global_step, [name for name in new if name in RECIPE and name != "max_steps"]
    if step > trainer.last_step or (step == trainer.last_step and too_late):
        unused = ", ".join(f"{name}={new[name][1]} (it has {new[name][0]})" for name in too_late)
        raise ValueError(
            f"Cannot resume from {checkpoint}: it is at step {step:,}, and training ends at step {trainer.last_step:,}"
            f"{f', so that {unused} would never be used' if unused else ''}; raise --max_steps or --num_train_epochs."
        )
    if step < trainer.last_step:
        run["stretches"] = go_on(run["stretches"], step, now)
        if new:
            listed = ", ".join(f"{name}={_word(value)} (was {_word(before)})" for name, (before, value) in new.items())
            say(f"From step {step:,} on: {listed}.")
    trainer.run = run


def _refuse_to_write_over(output_dir: Path, asked: Mapping[str, Any], same_too: bool) -> None:
    """Refuse a folder that holds another run than the one that is asked for; with `same_too`, one that holds any."""
    if not [*files_at_top(output_dir, RUN_FILES), *output_dir.glob("checkpoint-*")]:
        return
    keep = "keep it: --output_dir another/folder; or delete it and start again: --overwrite_output_dir true"
    held, fields_held = _held_settings(output_dir)
    held = {**fields_held, **held} if held else {}
    asked = {name: value for name, value in asked.items() if name in held or (held and name in FIXED)}
    others = other_settings(held, asked) if held else {}
    if others:
        named = ", ".join(f"{name}={_word(had)} (asked for: {_word(value)})" for name, (had, value) in others.items())
        raise ValueError(f"output_dir {output_dir} already holds another run, with {named}. To {keep}")
    if same_too:
        raise ValueError(
            f"output_dir {output_dir} already holds a run. Go on with it: --resume_from_checkpoint last; {keep}"
        )


def _known_settings(
    model_args: ModelArguments, data_args: DataArguments, args: DecisionMambaTrainingArguments
) -> dict[str, Any]:
    """Return what a run would keep to its end, as far as it is known before its data are read."""
    names = [*("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size")]
    names += ["dataloader_num_workers"]
    known = {**vars(data_args), **{name: getattr(args, name) for name in names}}
    sources = [_name_of_data(name) for name in data_args.dataset_name or []]
    known["dataset_name"] = None if None in sources else joined_names([name for name in sources if name])
    known |= {name: getattr(data_args, name) or None for name in ("streaming", *VIEWS)}
    known["streaming_buffer"] = data_args.streaming_buffer if data_args.streaming else None
    known["model_name_or_path"] = portable(model_args.model_name_or_path or "") or None
    if model_args.model_name_or_path is None:
        built = {"architecture": model_args.architecture, **model_args.overrides()}
        known |= {**built, "preset": model_args.preset} if model_args.builds_a_preset else built
    for name in ("dataset_revision", "scan_backend", "max_ep_len"):
        known.pop(name, None)
    follow = ("dataset_name", "action_type", "context_length", "return_scale", "frame_stack")
    return {name: value for name, value in known.items() if value is not None or name not in follow}


def _name_of_data(source: str) -> str | None:
    """Return what a data set is called when it has been read, as far as that is known before."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve().name if find_logs(path) is None else None
    return path.stem if path.is_file() else source


def _held_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the settings of the run that a folder holds, and its model's config; both are empty if it does not say."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for place in (folder, *checkpoints):
        with suppress(OSError, ValueError):  # half-written, or edited by hand
            record, run = read_json(place / TRAINING_FILE), read_run(place)
            if run is not None:
                settings = run["stretches"][-1]["settings"]
            else:
                settings = record.get("arguments", {})
                settings |= {"dataset_revision": record.get("dataset", {}).get("revision")} if settings else {}
            if settings:
                return settings, read_json(place / CONFIG_FILE)
    return {}, {}


def _refuse(checkpoint: Path, others: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse to resume with settings that are another run's: by name, what it has and what is asked for."""
    if not others:
        return
    (name, values), *more = others.items()
    had, asked = map(_word, values)
    also = f" (and others: {', '.join(other for other, _ in more)})" if more else ""
    weights = "" if name in _OF_A_MODEL else f", where --model_name_or_path {checkpoint} begins with these weights"
    raise ValueError(
        f"Cannot resume from {checkpoint}: it has {name}={had}, and the settings say {asked}{also}. Resume with the "
        f"settings that the run was started with, or use another --output_dir{weights}."
    )


def _differing(held: Mapping[str, Any], asked: Mapping[str, Any], names: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    return {name: (held.get(name), asked.get(name)) for name in names if held.get(name) != asked.get(name)}


def _word(value: Any) -> str:
    return "unset" if value is None else str(value)


def _check_same_epochs(checkpoint: Path, state: TrainerState, steps_per_epoch: int) -> None:
    """Refuse another number of steps an epoch: then the data or the windows of a step are others."""
    had = round(state.global_step / state.epoch) if state.epoch else steps_per_epoch
    _refuse(checkpoint, _differing({"steps_per_epoch": had}, {"steps_per_epoch": steps_per_epoch}, ["steps_per_epoch"]))


def _check_same_model(checkpoint: Path, config: PreTrainedConfig) -> None:
    """Refuse a run of another model."""
    saved, asked = AutoConfig.from_pretrained(checkpoint).to_dict(), config.to_dict()
    ignored = {"transformers_version", "_name_or_path", "architectures", "dtype", "use_cache", "scan_backend"}
    ignored |= set() if embeds_time(config) else {"max_ep_len"}
    names = ["model_type", *sorted({*saved, *asked} - ignored)]
    _refuse(checkpoint, _differing(saved, asked, names))


def _check_same_processor(checkpoint: Path, processor: DecisionMambaProcessor) -> None:
    """Refuse a run whose model knows windows, returns or states in another form, of which the data decide too."""
    if not (checkpoint / PROCESSOR_FILE).is_file():
        return
    saved = DecisionMambaProcessor.from_pretrained(checkpoint)
    _refuse(checkpoint, _differing(vars(saved), vars(processor), ("context_length", "return_scale", "frame_stack")))
    if saved.state_mean is None:
        return
    deviation = np.array(saved.state_std)
    moved = [np.array(getattr(saved, name)) - getattr(processor, name) for name in ("state_mean", "state_std")]
    if np.abs(moved / deviation).max() > _OTHER_DATA:
        raise ValueError(
            f"Cannot resume from {checkpoint}: the states that it learned from have another mean or deviation than "
            "those of the data set now. Resume with its own data and seed, or use another --output_dir."
        )
