"""Checkpoints to resume from: which one is complete, and how many processes it is of."""

import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerState

from ..reporting.console import say
from .record import read_run

#: The place in trainer_state.json where a checkpoint says how many processes trained: it has a random state of each.
PROCESSES = "processes"


def last_complete_checkpoint(output_dir: str | Path, *, quiet: bool = False) -> Path | None:
    """Return the newest checkpoint of a run that can be resumed from.

    Complete means: trainer_state.json (written last) can be parsed, and weights, optimizer, scheduler and the random
    states of all processes are there and not cut short.

    Args:
        output_dir: of the run.
        quiet: name no newer ones that a kill left half-written.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        problem = what_is_missing(folder)
        if problem is None:
            return folder
        if not quiet:
            say(f"Skipping {folder}, which is not complete: {problem}.")
    return None


def what_is_missing(checkpoint: Path) -> str | None:
    """Say why a checkpoint cannot be resumed from; None if it can."""
    try:
        processes = processes_of(checkpoint)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"trainer_state.json cannot be read ({type(error).__name__})"
    try:
        read_run(checkpoint)
    except (OSError, ValueError) as error:
        return str(error)
    states = ["rng_state.pth"] if processes == 1 else [f"rng_state_{number}.pth" for number in range(processes)]
    for name in ("optimizer.pt", "scheduler.pt", *states):
        if not zipfile.is_zipfile(checkpoint / name):
            return f"{name} is missing or cut short"
    try:
        with safe_open(checkpoint / "model.safetensors", "pt"):
            return None
    except (OSError, SafetensorError):
        return "model.safetensors is missing or cut short"


def processes_of(checkpoint: Path) -> int:
    """Return how many processes saved a checkpoint.

    Raises:
        OSError, ValueError, TypeError, KeyError: its trainer_state.json is missing or damaged.
    """
    callbacks: Any = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).stateful_callbacks
    if PROCESSES in callbacks:
        return int(callbacks[PROCESSES]["args"]["count"])
    return max(len([*checkpoint.glob("rng_state_*.pth")]), 1)  # saved before it was noted
