"""D4RL's HDF5 files: flat columns of all episodes, `terminals` where the task was over, `timeouts` at the time limit.

Nothing of a file is read but the columns, and what it says about its environment, as attributes or below `metadata`.
Source: D4RL (Fu et al. 2020, arXiv 2004.07219), https://github.com/Farama-Foundation/D4RL.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..facts import SAID, SourceFacts, facts_of
from ..trajectories import Trajectories
from .arrays import flat_columns, read_flat_arrays
from .rows import unreadable

SUFFIXES = (".hdf5", ".h5")


def read_d4rl(text: str, path: Path, columns: Mapping[str, str], facts: SourceFacts) -> Trajectories:
    """Read a D4RL file.

    Args:
        text: what errors call it.
        path: where it is.
        columns: names of its columns by ours, where they differ.
        facts: what is known about it; the file is asked for the rest.

    Raises:
        ImportError: h5py is not installed.
        ValueError: the file is damaged, a column is missing or wrong, or nothing says where episodes end.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f'{text}: HDF5 files need h5py ({error}); install it with: pip install "hf_decision_mamba[hdf5]"'
        ) from error
    try:
        with h5py.File(path, "r") as file:
            found = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
            groups = [f"{name}/" for name in file if name not in found]
            if not found and groups:
                raise ValueError(
                    f"data set {text!r} has no columns, only groups: {', '.join(groups[:5])}; D4RL's files have "
                    "observations, actions, rewards, terminals at the top (a Minari data set is read by its id, "
                    "minari:NAME)"
                )
            names = flat_columns(text, found, columns)
            arrays: dict[str, np.ndarray] = {theirs: found[theirs][()] for theirs in names.values()}
            said = _said(file)
            facts = facts.over(facts_of(f"the metadata of {text}", said)) if said else facts
    except OSError as error:
        if error.errno is not None:
            raise  # the disk or the rights to the file are to blame, not the data
        raise unreadable(text, "the file", error) from error
    return read_flat_arrays(arrays, text, path.stem, columns, facts)


def _said(file: Any) -> dict[str, Any]:
    """Return what a file says about its environment."""
    said = {}
    for name in ("env_id", *SAID):
        kept = file.get(f"metadata/{name}")
        value = kept[()] if getattr(kept, "shape", None) == () else file.attrs.get(name)
        if value is not None:
            value = np.asarray(value).tolist()
            said[name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return said
