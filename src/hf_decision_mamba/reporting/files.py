"""The files of a run folder, and what all that write or read them have in common."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Of one target return, and of each of several. The first is the name that the Hub shows on top of such models' pages.
VIDEO_FILES = ("replay.mp4", "replay-target-*.mp4")
EVALUATION_FILE, EPISODES_FILE, RETURNS_FILE = "evaluation.json", "evaluation.parquet", "returns.png"
#: What an evaluation leaves in a folder, the videos included. Without the first, the others mean nothing.
EVALUATION_FILES = (EVALUATION_FILE, EPISODES_FILE, RETURNS_FILE, *VIDEO_FILES)
CONFIG_FILE, PROCESSOR_FILE, CARD_FILE = "config.json", "preprocessor_config.json", "README.md"
TRAINING_FILE, SETTINGS_FILE, CURVE_FILE = "training.json", "train.yaml", "learning_curve.png"
RUN_FILE = "run.json"  # in each checkpoint to resume from
RESULT_FILES = (*EVALUATION_FILES, CURVE_FILE, TRAINING_FILE)
SHARED_FILES = (CONFIG_FILE, PROCESSOR_FILE, TRAINING_FILE, SETTINGS_FILE, CURVE_FILE, *EVALUATION_FILES, CARD_FILE)
RUN_FILES = (CONFIG_FILE, "model.safetensors", PROCESSOR_FILE, *RESULT_FILES)

_LARGEST_WRITTEN_OUT = 1e15


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
    """Return a path that means something elsewhere: relative to the working directory, of a path outside only its name.

    What is no path of this machine (a Hub repository, an id) stays as it is, and so do prefixes (`sb3:sac:`).
    """
    prefix, place = re.fullmatch(r"((?:\w{2,}:(?!//))*)(.*)", value, re.DOTALL).groups()  # type: ignore[union-attr]
    path = Path(place).expanduser()
    if not path.is_absolute() and ".." not in path.parts:
        return prefix + (os.path.normpath(place) if place.startswith("./") else place)
    inside = os.path.relpath(path)
    return prefix + (path.name if inside.startswith("..") else inside)


def command_line(*words: str, **options: Any) -> str:
    """Return a command of `hf-decision-mamba` as a shell takes it.

    Args:
        words: the verb and what stands without an option.
        options: by their names in Python. What is None or False is left out, True stands for itself, a dictionary is
            written as JSON, and of a list or tuple each item is a word.
    """
    said = ["hf-decision-mamba", *words]
    for name, value in options.items():
        if value is None or value is False:
            continue
        said.append(f"--{name.replace('_', '-')}")
        items = [] if value is True else value if isinstance(value, (list, tuple)) else [value]
        said += map(_as_word, items)
    return shlex.join(said)


def _as_word(value: object) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    whole = isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_WRITTEN_OUT
    return f"{value:.0f}" if whole else str(value)


def video_names(targets: Sequence[float]) -> list[str]:
    """Return the name of each target return's video: replay.mp4, or of several replay-target-1800.mp4 and so on."""
    return ["replay.mp4"] if len(targets) == 1 else [f"replay-target-{target:.10g}.mp4" for target in targets]


def write_json(path: Path, content: Any, **options: Any) -> None:
    """Write a JSON file as the whole package does, and never half of it.

    Args:
        options: of `json.dumps`.
    """
    text = json.dumps(content, **{"indent": 2, **options})
    with replacing(path) as draft:
        draft.write_text(f"{text}\n", encoding="utf-8", newline="\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one when the file does not exist."""
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
    """Return paths of the matching files, no deeper than the patterns say: the Hub client's match in subfolders too."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in found)
