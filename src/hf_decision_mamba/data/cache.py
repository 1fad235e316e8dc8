"""What has been read once is not read again: the columns of every source are kept below the cache of `datasets`.

An entry is a folder whose name says all that it depends on: which files (their sizes and times), or which commit of the
Hub, read with which arguments. It appears whole or not at all: it is written elsewhere and renamed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import datasets

from .metadata import beside
from .trajectories import Trajectories

logger = logging.getLogger(__name__)

#: Raise it when the files of an entry change, or the rules by which a source is read.
_FORMAT = 5
_ABANDONED_SECONDS = 24 * 60 * 60.0
_UNFINISHED = "unfinished-"


def cache_folder() -> Path:
    """Return the folder of the entries. Deleting it, or an entry, does no harm."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "hf_decision_mamba"


def cached(source_name: str, identity: list[object], read: Callable[[], Trajectories]) -> Trajectories:
    """Return what `read` returns, from the cache where it has been read before, with the warnings that it gave.

    Args:
        source_name: what messages call the data set.
        identity: all that decides what is read; JSON.
        read: reads it.
    """
    if not datasets.is_caching_enabled():
        return read()
    warnings: list[str]
    key = hashlib.sha256(json.dumps([_FORMAT, *identity]).encode()).hexdigest()[:32]
    entry = cache_folder() / key
    if entry.is_dir():
        try:
            trajectories, more = Trajectories.open(entry)
            warnings = more["warnings"]
        except Exception as error:  # whatever a damaged file leads to
            logger.warning("data set %r: its cache %s is damaged (%s), so it is read again", source_name, entry, error)
        else:
            _warn(warnings)
            return trajectories
    warnings = []
    try:
        with noted_warnings(str(__package__)) as warnings:
            trajectories = read()
    finally:
        _warn(warnings)
    try:
        return _keep(trajectories, entry, warnings)
    except OSError as error:
        logger.warning("data set %r is not kept in the cache %s: %s", source_name, entry.parent, error)
        return trajectories


def files_of(path: Path) -> list[object]:
    """Return what identifies a file, or all files of a folder: path, size and time of the last change of each.

    Hidden files are left out. With a file comes the JSON file beside it, if there is one.
    """
    files = [path, beside(path)]
    if path.is_dir():
        hidden = re.compile(r"(^|/)\.")
        files = [file for file in path.rglob("*") if not hidden.search(file.relative_to(path).as_posix())]
    stats = [(str(file.absolute()), file.stat()) for file in sorted({*files}) if file.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _keep(trajectories: Trajectories, entry: Path, warnings: list[str]) -> Trajectories:
    """Write the entry and return it, memory-mapped; another process may do the same at the same time."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    _delete_abandoned(entry.parent)
    unfinished, damaged = (entry.parent / f"{_UNFINISHED}{uuid4().hex}" for _ in range(2))
    unfinished.mkdir()
    try:
        trajectories.save(unfinished, warnings=warnings)
        with suppress(OSError):  # another process was faster: its entry is as good
            if entry.exists():
                entry.rename(damaged)
            unfinished.rename(entry)
        return Trajectories.open(entry)[0]
    finally:
        for folder in (unfinished, damaged):
            shutil.rmtree(folder, ignore_errors=True)


def _delete_abandoned(folder: Path) -> None:
    """Delete what processes left that were killed while they wrote an entry."""
    for unfinished in folder.glob(f"{_UNFINISHED}*"):
        with suppress(OSError):  # its process has just renamed it
            if time.time() - unfinished.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(unfinished)


class _Listener(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def noted_warnings(package: str) -> Iterator[list[str]]:
    """Note what a package's loggers warn of meanwhile, instead of printing it."""
    messages: list[str] = []
    loggers, listener = logging.getLogger(package), _Listener(messages)
    propagates, loggers.propagate = loggers.propagate, False
    loggers.addHandler(listener)
    try:
        yield messages
    finally:
        loggers.removeHandler(listener)
        loggers.propagate = propagates


def _warn(messages: list[str]) -> None:
    for message in messages:
        logger.warning("%s", message)
