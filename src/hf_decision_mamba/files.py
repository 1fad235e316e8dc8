"""Files that are whole whenever somebody looks: written beside their place and renamed, whatever ends the process."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


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
