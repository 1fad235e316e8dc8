"""Minari's data sets, by their ids: `minari:mujoco/hopper/medium-v0`, from the local folder or downloaded.

Observations of Dict and Tuple spaces become one vector, as gymnasium's FlattenObservation makes it. The package reads;
here is what its spaces mean for the columns.
Source: Minari, https://minari.farama.org.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..facts import SourceFacts
from ..trajectories import Trajectories
from .arrays import read_episode_arrays

PREFIX = "minari:"

_SMALLEST_FRAME = 32  # pixels each way; a smaller grid with channels is a vector


def read_minari(text: str, facts: SourceFacts) -> Trajectories:
    """Read a Minari data set.

    Args:
        text: `minari:` and its id.
        facts: what is known about it; the data set is asked for the rest.

    Raises:
        ImportError: minari is not installed.
        FileNotFoundError: there is no such data set, or it cannot be downloaded.
        ValueError: its spaces are of a kind that is not read, or an episode is not what it should be.
    """
    data = open_minari(text, text.removeprefix(PREFIX))
    facts = facts.over(_facts(text, data))
    episodes = [_columns(text, data.observation_space, episode) for episode in data.iterate_episodes()]
    return read_episode_arrays(episodes, text, text, {}, facts)


def open_minari(text: str, name: str) -> Any:
    try:
        import minari
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise ImportError(
            f'{text}: Minari data sets need minari ({error}); install it with: pip install "hf_decision_mamba[minari]"'
        ) from error
    if (get_dataset_path(name) / "data").is_dir():
        try:
            return minari.load_dataset(name)
        except (ValueError, KeyError, OSError, AssertionError) as error:
            raise ValueError(f"data set {text!r} cannot be read from {get_dataset_path(name)}: {error}") from error
    try:
        return minari.load_dataset(name, download=True)
    except Exception as error:  # each of its servers has errors of its own
        raise FileNotFoundError(
            f"no data set {text!r}: it is not in {get_dataset_path()} (MINARI_DATASETS_PATH), and downloading it "
            f"failed: {type(error).__name__}: {error}"
        ) from error


def find_minari(text: str) -> Path:
    """Return the folder of a Minari data set, which is downloaded if it is not there yet.

    Raises:
        ImportError, FileNotFoundError, ValueError: as `read_minari`.
    """
    name = text.removeprefix(PREFIX)
    open_minari(text, name)
    from minari.storage import get_dataset_path

    return Path(get_dataset_path(name))


def _facts(text: str, data: Any) -> SourceFacts:
    """Return what the data set says about its environment, when its actions are of a kind that is read."""
    from gymnasium import spaces

    space = data.action_space
    said: dict[str, Any] = {"where": text, "env_id": None if data.env_spec is None else data.env_spec.id}
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return SourceFacts(num_actions=int(space.n), **said)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return SourceFacts(action_low=space.low.tolist(), action_high=space.high.tolist(), **said)
    raise ValueError(
        f"data set {text!r}, column 'actions': actions from {space} are not read, only those of a Box with one "
        "dimension and of a Discrete space that counts from 0"
    )


def _columns(text: str, space: Any, episode: Any) -> dict[str, np.ndarray]:
    """Return the columns of an episode of T steps; there are T + 1 observations, or T where the last is not kept."""
    where = f"data set {text!r}, episode {episode.id}"
    return {
        "observations": _observations(where, space, episode.observations),
        "actions": np.asarray(episode.actions),
        "rewards": np.asarray(episode.rewards),
        "terminations": np.asarray(episode.terminations),
        "truncations": np.asarray(episode.truncations),
    }


def _observations(where: str, space: Any, values: Any) -> np.ndarray:
    """Return vectors (T + 1, S) or frames, (T + 1, H, W) or stacks of them."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and _are_frames(space.shape):
        return np.asarray(values)
    parts = _parts(where, "observations", space, values)
    for path, part in parts:
        if len(part) != len(parts[0][1]):
            raise ValueError(
                f"{where}: the number of steps differs, {len(parts[0][1])} in {parts[0][0]!r} and {len(part)} in "
                f"{path!r}; every step needs a value in each part"
            )
    return np.concatenate([part for _, part in parts], axis=1)


def _are_frames(shape: tuple[int, ...]) -> bool:
    """Whether bytes of this shape are a frame: two axes, or large ones and an axis of channels."""
    return len(shape) == 2 or (len(shape) == 3 and (1 in shape or sorted(shape)[1] >= _SMALLEST_FRAME))


def _parts(where: str, path: str, space: Any, values: Any) -> list[tuple[str, np.ndarray]]:
    """Return the parts of nested observations, (T + 1, D) each, with the path of each: keys sorted, tuples in order."""
    from gymnasium import spaces

    nested: list[tuple[Any, Any]] | None = None
    if isinstance(space, spaces.Dict):
        nested = sorted(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        nested = list(enumerate(space.spaces))
    if nested is not None:
        return [part for key, inner in nested for part in _parts(where, f"{path}.{key}", inner, values[key])]
    array = np.asarray(values)
    if isinstance(space, spaces.Discrete):  # as FlattenObservation: one of n
        return [(path, (array.reshape(-1, 1) == space.start + np.arange(space.n)).astype(np.float32))]
    pictures = len(space.shape or ()) == 3 and min(space.shape[:2]) >= 32
    if not isinstance(space, (spaces.Box, spaces.MultiBinary)) or pictures:
        raise ValueError(
            f"{where}, column {path!r}: observations from {space} are not read, only numbers, grey frames (height, "
            "width) of uint8, and Dict and Tuple spaces of numbers"
        )
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is reported with its place
        return [(path, array.reshape(len(array), -1).astype(np.float32))]
