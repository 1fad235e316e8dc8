"""The files of a run folder, and what all that write or read them have in common."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Of one target return, and of each of several. The first is the name that the Hub shows on top of such models' pages.
VIDEO_FILES = ("replay.mp4", "replay-target-*.mp4")
#: What an evaluation leaves in a folder, the videos included. Without the first, the others mean nothing.
EVALUATION_FILES = ("evaluation.json", "evaluation.parquet", "returns.png", *VIDEO_FILES)
SETTINGS_FILE, CURVE_FILE = "train.yaml", "learning_curve.png"
RUN_FILE = "run.json"  # in each checkpoint to resume from
RESULT_FILES = (*EVALUATION_FILES, CURVE_FILE, "training.json")
RUN_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", *RESULT_FILES)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write a file that takes its place when it is complete; after an error the earlier one stays."""
    draft = path.with_name(f".{path.stem}.draft{path.suffix}")  # writers read the format from the ending
    try:
        with writing(path):
            yield draft
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def replacing_together(folder: Path, last: str, others: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a folder in which to write files that belong together; they take their places when all are complete.

    Whenever the process ends, `folder` holds the earlier files, or the new ones, or no `last`.

    Args:
        folder: where they belong; made if it does not exist.
        last: the file without which the others mean nothing: the first to go and the last to come.
        others: names or patterns of files that would be of an earlier time, where they are not written again.
    """
    draft = folder / f".{Path(last).stem}.draft"
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
    draft.mkdir(parents=True)
    try:
        with writing(folder):
            yield draft
            (folder / last).unlink(missing_ok=True)
            for earlier in {path for pattern in others for path in folder.glob(pattern)}:
                earlier.unlink()
            for path in sorted(draft.iterdir(), key=lambda path: path.name == last):
                os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name a file or folder in the system's errors that name none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def portable(value: str) -> str:
    """A path that means something elsewhere: relative to the working directory, of a path outside only its name."""
    path = Path(value).expanduser()
    if not path.is_absolute() and ".." not in path.parts:
        return os.path.normpath(value) if value.startswith("./") else value
    inside = os.path.relpath(path)
    return path.name if inside.startswith("..") else inside


def video_names(targets: Sequence[float]) -> list[str]:
    """Return the name of each target return's video: replay.mp4, or of several replay-target-1800.mp4 and so on."""
    return ["replay.mp4"] if len(targets) == 1 else [f"replay-target-{target:.10g}.mp4" for target in targets]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when the file does not exist."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}). Write it again, or remove it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object. Write it again, or remove it.")
    return content


def files_at_top(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    """Paths of the matching files, no deeper than the patterns say. (The Hub client's own match in subfolders too.)"""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in found)
