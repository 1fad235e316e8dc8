"""D4RL's HDF5 files: flat columns of all episodes, `terminals` where the task was over, `timeouts` at the time limit.

The groups beside them (`metadata`, `infos`) are left alone: nothing of a file is read but the columns.
Source: D4RL (Fu et al. 2020, arXiv 2004.07219), https://github.com/Farama-Foundation/D4RL.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..columns import find_columns
from ..facts import facts_beside
from ..trajectories import Trajectories
from .arrays import read_flat_arrays
from .rows import unreadable

SUFFIXES = (".hdf5", ".h5")


def read_d4rl(text: str, path: Path, columns: Mapping[str, str]) -> Trajectories:
    """Read a D4RL file.

    Args:
        text: what errors call it.
        path: where it is.
        columns: names of its columns by ours, where they differ.

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
            names = find_columns(text, found, columns)
            arrays: dict[str, np.ndarray] = {theirs: found[theirs][()] for theirs in names.values()}
    except OSError as error:
        if error.errno is not None:
            raise  # the disk or the rights to the file are to blame, not the data
        raise unreadable(text, "the file", error) from error
    return read_flat_arrays(arrays, text, path.stem, columns, facts_beside(path))
