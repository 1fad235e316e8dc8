"""Minari's data sets, by their ids: `minari:mujoco/hopper/medium-v0`, from the local folder or downloaded.

Observations of Dict and Tuple spaces become one vector, as gymnasium's FlattenObservation makes it. The package reads;
here is what its spaces mean for the columns.
Source: Minari, https://minari.farama.org.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..metadata import SourceMetadata, describe_actions, describe_env_kwargs, describe_observations, has_channels
from ..trajectories import Trajectories
from .arrays import read_episode_arrays
from .d4rl import check_all_stored
from .rows import ALWAYS_UNPACKED, DAMAGE, check_taken, in_short, reading

PREFIX = "minari:"

_HDF5 = "main_data.hdf5"
_MOST_EPISODES = 1 << 24


def read_minari(source_name: str, metadata: SourceMetadata) -> Trajectories:
    """Read a Minari data set.

    Args:
        source_name: `minari:` and its id.
        metadata: what is known about it; the data set is asked for the rest.

    Raises:
        ImportError: minari is not installed.
        FileNotFoundError: there is no such data set, or it cannot be downloaded.
        ValueError: its spaces are of a kind that is not read, or an episode is not what it should be.
    """
    data = open_minari(source_name, source_name.removeprefix(PREFIX))
    metadata = metadata.over(_metadata(source_name, data))
    folder, taken, episodes = Path(data.storage.data_path), 0, []
    if (folder / _HDF5).is_file():
        check_all_stored(source_name, folder / _HDF5)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    with reading(source_name, f"the folder {folder}"):
        for episode in data.iterate_episodes():
            episodes.append(_columns(source_name, data.observation_space, episode))
            taken += episodes[-1]["observations"].nbytes
            check_taken(source_name, str(folder), taken, size)
    return read_episode_arrays(episodes, source_name, source_name, {}, metadata)


def open_minari(source_name: str, name: str) -> Any:
    try:
        import minari
        from minari.storage import get_dataset_path, hosting
    except ImportError as error:
        raise ImportError(
            f"{source_name}: Minari data sets need minari ({error}); install it with: "
            'pip install "hf_decision_mamba[minari]"'
        ) from error
    folder = Path(get_dataset_path(name))
    if not (folder / "data").is_dir():
        try:
            hosting.download_dataset(name)
        except Exception as error:  # each of its servers has errors of its own
            raise FileNotFoundError(
                f"no data set {source_name!r}: it is not in {get_dataset_path()} (MINARI_DATASETS_PATH), and "
                f"downloading it failed: {in_short(error)}"
            ) from error
    try:
        _check_metadata(folder / "data" / "metadata.json")
        return minari.load_dataset(name)
    except DAMAGE as error:
        raise ValueError(f"data set {source_name!r} cannot be read from {folder}: {in_short(error)}") from error


def _check_metadata(path: Path) -> None:
    """Check that the file about a data set says its spaces: where not, minari runs what it calls its environment."""
    if not path.is_file():
        return  # which minari says
    said = json.loads(path.read_text(encoding="utf-8"))
    if any(not isinstance(said.get(f"{what}_space"), str) for what in ("observation", "action")):
        raise ValueError(
            f"{path.name} does not say its observation_space and action_space, and the environment that it names is "
            "not run to find them out; add them, as minari.create_dataset_from_buffers does"
        )
    if not 0 <= said["total_episodes"] <= _MOST_EPISODES:
        raise ValueError(f"{path.name} counts more than {_MOST_EPISODES:,} episodes")


def find_minari(source_name: str) -> Path:
    """Return the folder of a Minari data set, which is downloaded if it is not there yet.

    Raises:
        ImportError, FileNotFoundError, ValueError: as `read_minari`.
    """
    name = source_name.removeprefix(PREFIX)
    open_minari(source_name, name)
    from minari.storage import get_dataset_path

    return Path(get_dataset_path(name))


def _metadata(source_name: str, data: Any) -> SourceMetadata:
    """Return what the data set says about its environment, when its spaces are of a kind that is read."""
    spec = data.env_spec
    return SourceMetadata(
        where=source_name,
        env_id=None if spec is None else spec.id,
        env_kwargs=None if spec is None else describe_env_kwargs(spec),
        observation_parts=_parts(f"data set {source_name!r}", data.observation_space),
        **describe_actions(f"data set {source_name!r}, column 'actions'", data.action_space),
    )


def _columns(source_name: str, space: Any, episode: Any) -> dict[str, np.ndarray]:
    """Return the columns of an episode of T steps; there are T + 1 observations, or T where the last is not kept."""
    where = f"data set {source_name!r}, episode {episode.id}"
    return {
        "observations": observations_of(where, space, episode.observations),
        "actions": np.asarray(episode.actions),
        "rewards": np.asarray(episode.rewards),
        "terminations": np.asarray(episode.terminations),
        "truncations": np.asarray(episode.truncations),
    }


def _parts(where: str, space: Any) -> list[dict[str, Any]] | None:
    """Return what vectors are concatenated from; None where observations stay as they are."""
    return None if has_channels(space) else describe_observations(where, space)


def observations_of(where: str, space: Any, values: Any) -> np.ndarray:
    """Return vectors (T + 1, S) or frames, (T + 1, H, W) or stacks of them."""
    parts = _parts(where, space)
    if parts is None:
        return np.asarray(values)
    columns: list[tuple[str, np.ndarray]] = []
    for part in parts:
        found, name = values, ".".join(map(str, ["observations", *part["path"]]))
        for key in part["path"]:
            found = found[key]
        columns.append((name, _part(f"{where}, column {name!r}", part, np.asarray(found))))
    for name, column in columns:
        if len(column) != len(columns[0][1]):
            raise ValueError(
                f"{where}: the number of steps differs, {len(columns[0][1])} in {columns[0][0]!r} and {len(column)} in "
                f"{name!r}; every step needs a value in each part"
            )
    return np.concatenate([column for _, column in columns], axis=1)


def _part(where: str, part: dict[str, Any], values: np.ndarray) -> np.ndarray:
    """Return the numbers (T + 1, D) of one part of all observations of an episode."""
    values = values.reshape(len(values), -1)
    if "counts" not in part:
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is reported with its place
            return values.astype(np.float32)
    if len(values) * part["size"] * 4 > ALWAYS_UNPACKED:
        raise ValueError(f"{where}: {values.size:,} values, each one of {max(part['counts'])}, are too many")
    places = values.astype(np.int64) - part["starts"]
    wrong = np.argwhere((places < 0) | (places >= part["counts"]))
    if len(wrong):
        step, place = wrong[0]
        first = part["starts"][place]
        raise ValueError(
            f"{where}, step {step}: the value is {values[step, place]}, but the space has {first} to "
            f"{first + part['counts'][place] - 1}; correct or remove this episode"
        )
    one_of = [places[:, place, None] == np.arange(count) for place, count in enumerate(part["counts"])]
    return np.concatenate(one_of, axis=1).astype(np.float32)
