"""What a source says about itself beside its columns: its environment, what it observes, the actions that it takes.

A data set says it in the front matter of its card, `environment: {id, obs_shape, num_actions, ...}`; a single file in
the JSON file beside it that has its name, `{"env_id", "obs_shape", "num_actions", ...}`. All of it is optional: a card
that cannot be read, as people write them by hand, is warned of, and the data are read without it.
Environments and Minari say it with gymnasium's spaces, which are put into the same words here.
"""

from __future__ import annotations

import json
import logging
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from gymnasium import Space
    from gymnasium.envs.registration import EnvSpec

logger = logging.getLogger(__name__)

#: Endings of compressed files.
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

#: A larger JSON file beside the data holds data itself.
_LARGEST_JSON = 1 << 20
#: The names of what is said beside the environment's id.
FIELDS = (
    *("obs_shape", "observation_parts", "action_type", "num_actions", "action_start", "action_low", "action_high"),
    *("max_episode_steps", "env_kwargs", "fps"),
)
#: Keyword arguments of gymnasium's `make` and `make_vec` that do not change what an environment does.
_OF_THE_MAKER = ("render_mode", "num_envs", "vectorization_mode", "vector_kwargs", "wrappers")
#: Pictures have at least so many pixels on each side; smaller arrays of three dimensions are numbers like others.
_SMALLEST_PICTURE = 32
#: Bounds of a front matter: its letters, those of a number or word, its levels, and its values with repetitions.
_LONGEST_FRONT_MATTER = 1 << 22
_LONGEST_NUMBER = 1 << 10
_DEEPEST = 100
_MOST_VALUES = 10**6
_LARGEST_COUNT = 2**63 - 1
_HIGHEST_RATE = 1e9
_YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the former is not everywhere


@dataclass(frozen=True)
class SourceMetadata:
    """What the file `where` says; values are checked where they are needed, so that others cannot stand in the way."""

    where: str | None = None
    env_id: str | None = None
    obs_shape: Any = None
    action_type: Any = None
    num_actions: Any = None
    action_low: Any = None
    action_high: Any = None
    max_episode_steps: Any = None
    observation_parts: Any = None
    action_start: Any = None
    env_kwargs: Any = None
    fps: Any = None

    def over(self, others: SourceMetadata) -> SourceMetadata:
        """Return this metadata, and the other where this says nothing."""
        where = " or ".join(metadata.where for metadata in (self, others) if metadata.where is not None)
        said = {name: value for name, value in vars(self).items() if value is not None}
        return replace(others, **{**said, "where": where or None})

    def frame_shape(self) -> tuple[int, int] | None:
        """Return (height, width) of a frame, when it is said.

        Raises:
            ValueError: `obs_shape` is something else.
        """
        if self.obs_shape is None:
            return None
        if isinstance(self.obs_shape, list) and len(self.obs_shape) == 2 and all(map(_is_count, self.obs_shape)):
            return self.obs_shape[0], self.obs_shape[1]
        raise ValueError(
            f"{self.where}: obs_shape must be [height, width] of one grey frame, found {_shown(self.obs_shape)}; "
            "correct it"
        )

    def said_action_type(self) -> str | None:
        """Return what the actions are, when it is said: by name, or by what only one of the two types has.

        Raises:
            ValueError: `action_type` is something else.
        """
        if self.action_type in ("continuous", "discrete"):
            return str(self.action_type)
        if self.action_type is not None:
            where = "" if self.where is None else f"{self.where}: "
            raise ValueError(
                f"{where}action_type must be continuous or discrete, found {self.action_type!r}; correct it"
            )
        if self.num_actions is not None:
            return "discrete"
        return None if self.action_low is None and self.action_high is None else "continuous"

    def action_count(self) -> int | None:
        """Return the number of discrete actions, when it is said.

        Raises:
            ValueError: `num_actions` is something else.
        """
        return self._count("num_actions", self.num_actions)

    def first_action(self) -> int:
        """Return the number of the first discrete action, 0 when nothing is said.

        Raises:
            ValueError: `action_start` is no whole number.
        """
        start = 0 if self.action_start is None else self.action_start
        if isinstance(start, int) and not isinstance(start, bool):
            return start
        raise ValueError(f"{self.where}: action_start must be a whole number, found {start!r}; correct it")

    def parts(self, state_dim: int) -> list[dict[str, Any]] | None:
        """Return what vectors of so many numbers were concatenated from, when it is said.

        Raises:
            ValueError: `observation_parts` is no list of parts, or describes other vectors.
        """
        parts = self.observation_parts
        if parts is None:
            return None
        known = parts if isinstance(parts, list) and all(isinstance(part, Mapping) for part in parts) else []
        sizes: list[Any] = [part.get("size") for part in known]
        if all(map(_is_count, sizes)) and sum(sizes) == state_dim:
            return [dict(part) for part in known]
        raise ValueError(
            f'{self.where}: observation_parts must be a list of {{"path": [...], "shape": [...], "size": n}} whose '
            f"sizes add up to the {state_dim} numbers of an observation, found {parts!r}; correct it"
        )

    def environment_kwargs(self) -> dict[str, Any] | None:
        """Return the keyword arguments that `gymnasium.make` made the environment with, when they are said.

        Raises:
            ValueError: `env_kwargs` are no names with values.
        """
        if self.env_kwargs is None or isinstance(self.env_kwargs, dict):
            return self.env_kwargs or None
        raise ValueError(f"{self.where}: env_kwargs must be names with values, found {self.env_kwargs!r}; correct it")

    def control_rate(self) -> float | None:
        """Return the steps a second that the data were recorded at, when they are said.

        Raises:
            ValueError: `fps` is no positive number.
        """
        is_number = isinstance(self.fps, (int, float)) and not isinstance(self.fps, bool)
        if self.fps is None or (is_number and 0 < self.fps <= _HIGHEST_RATE):
            return None if self.fps is None else float(self.fps)
        raise ValueError(
            f"{self.where}: fps must be the steps a second, a positive number, found {_shown(self.fps)}; correct it"
        )

    def step_limit(self) -> int | None:
        """Return the number of steps after which the environment cuts an episode off, when it is said.

        Raises:
            ValueError: `max_episode_steps` is something else.
        """
        return self._count("max_episode_steps", self.max_episode_steps)

    def action_bounds(self, act_dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return the (lowest, highest) continuous action, each (A,), when they are said.

        Raises:
            ValueError: `action_low` or `action_high` is neither a number nor one for each dimension.
        """
        if self.action_low is None and self.action_high is None:
            return None
        return self._bound("action_low", self.action_low, act_dim), self._bound(
            "action_high", self.action_high, act_dim
        )

    def _count(self, name: str, value: Any) -> int | None:
        if value is None or _is_count(value):
            return value
        raise ValueError(f"{self.where}: {name} must be a positive whole number, found {_shown(value)}; correct it")

    def _bound(self, name: str, value: ArrayLike | None, act_dim: int) -> NDArray[np.float32]:
        try:
            with np.errstate(over="ignore"):
                bound = np.broadcast_to(np.asarray(value, dtype=np.float32), (act_dim,))
        except (TypeError, ValueError, OverflowError):
            bound = np.full(act_dim, np.nan, np.float32)
        if np.isnan(bound).any():
            raise ValueError(
                f"{self.where}: {name} must be a number or a list of {act_dim}, one for each dimension of the actions, "
                f"as action_low and action_high go together; found {_shown(value)}; correct "
                "it"
            )
        return bound


def registered_step_limit(env_id: str | None) -> int | None:
    """Return the time limit of an environment by gymnasium's registry, which makes and imports no environment.

    A version that is no longer there, such as `"HalfCheetah-v2"`, has that of all the other ones, if they agree.

    Returns:
        None where there is no limit, or it cannot be told.
    """
    if env_id is None:
        return None
    try:
        from gymnasium import registry
    except ImportError:
        return None
    known = registry.get(env_id)
    if known is not None and known.max_episode_steps is not None:
        return known.max_episode_steps
    family = re.sub(r"-v\d+$", "", env_id)
    limits = {spec.max_episode_steps for name, spec in registry.items() if re.sub(r"-v\d+$", "", name) == family}
    limits -= {None}
    return limits.pop() if len(limits) == 1 else None


def metadata_of_card(card: Path) -> SourceMetadata:
    """Read the front matter of a data set's card, if there is one."""
    if not card.is_file():
        return SourceMetadata()
    try:
        data = check_card(card)
    except ValueError as error:
        logger.warning("%s", error)
        return SourceMetadata()
    return metadata_of(card, data.get("environment") if isinstance(data, Mapping) else None, env_id="id")


def check_card(card: Path) -> Any:
    """Return what the front matter of a card says; None where it has none, or there is no card.

    Raises:
        ValueError: it cannot be read, or would grow without bounds.
    """
    if not card.is_file():
        return None
    try:
        with open(card, encoding="utf-8") as file:
            found = REGEX_YAML_BLOCK.search(file.read(_LONGEST_FRONT_MATTER))
        if found is None:
            return None
        _check_growth(found[2])
        return yaml.load(found[2], Loader=_YAML)
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{card}: its front matter cannot be read ({type(error).__name__}: {reason}); correct or remove it"
        ) from error


def _check_growth(front_matter: str) -> None:
    """Check how much a front matter is: names for parts of it can make much of little."""
    made = 0
    begun: list[tuple[str | None, int]] = []
    named: dict[str | None, int] = {}
    for event in yaml.parse(front_matter, Loader=_YAML):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in named:
                raise ValueError(f"it has no part {event.anchor[:50]!r} before it refers to it")
            made += named[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, made))
            made += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            named[anchor] = made - before
        elif isinstance(event, yaml.ScalarEvent):
            made += 1
            named[event.anchor] = 1
            if event.implicit[0] and len(event.value) > _LONGEST_NUMBER and " " not in event.value:
                raise ValueError(f"a number, or a word, of it has {len(event.value):,} letters")
        if len(begun) > _DEEPEST or made > _MOST_VALUES:
            raise ValueError(f"it has more than {_DEEPEST} levels or {_MOST_VALUES:,} values")


def beside(file: Path) -> Path:
    """Return where the JSON file would be that describes a data file."""
    unpacked = file.with_suffix("") if file.suffix.lower() in COMPRESSED else file
    return unpacked.with_suffix(".json")


def agreed(found: Iterable[SourceMetadata], otherwise: str = "") -> SourceMetadata:
    """Return what several files say of the same data.

    Args:
        found: what each of them says.
        otherwise: what else can be done when they do not agree.

    Raises:
        ValueError: two of them say different things.
    """
    places: list[str | None] = []
    said: dict[str, tuple[Any, str | None]] = {}
    for metadata in found:
        places.append(metadata.where)
        for name in ("env_id", *FIELDS):
            value = getattr(metadata, name)
            if value is None:
                continue
            first, where = said.setdefault(name, (value, metadata.where))
            if first != value:
                raise ValueError(
                    f"{where} says {name}={first!r}, and {metadata.where} says {value!r}, but their data are read as "
                    f"one; correct one of them{otherwise}"
                )
    sayers = dict.fromkeys([str(where) for _, where in said.values()]) or filter(None, places[:1])
    return SourceMetadata(" and ".join(sayers) or None, **{name: value for name, (value, _) in said.items()})


def metadata_beside(file: Path) -> SourceMetadata:
    """Read the JSON file beside a data file, if there is one.

    Raises:
        ValueError: it is not JSON, or nested without end.
    """
    path = beside(file)
    if path == file or not path.is_file() or path.stat().st_size > _LARGEST_JSON:
        return SourceMetadata()
    try:
        # Only the first value: episodes saved as lines of JSON beside those saved as parquet are no damaged file.
        metadata, _ = json.JSONDecoder().raw_decode(path.read_text(encoding="utf-8").strip())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, which describes {file.name}, is not JSON ({error}); correct or remove it") from error
    return metadata_of(path, metadata)


def describe_observations(what: str, space: Space) -> list[dict[str, Any]] | None:
    """Return the parts of which a space's observations are concatenated, in the order of FlattenObservation.

    Args:
        what: whose observations these are, for errors.
        space: gymnasium's.

    Returns:
        For each part the path of keys and indices that leads to it, its shape, its size in the vector, and of whole
        numbers that become one of n the counts and the smallest of each. None for vectors and grey frames of uint8,
        which stay as they are.

    Raises:
        ValueError: the space has a part that is not read.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Box) and (len(space.shape) == 1 or is_frame(space)):
        return None
    parts: list[dict[str, Any]] = []
    _add_parts(what, space, [], parts)
    return parts


def _add_parts(what: str, space: Space, path: list[str | int], parts: list[dict[str, Any]]) -> None:
    from gymnasium import spaces

    nested: list[tuple[Any, Any]] | None = None
    if isinstance(space, spaces.Dict):
        nested = list(space.spaces.items())  # sorted by gymnasium, unless they were given in an order
    elif isinstance(space, spaces.Tuple):
        nested = list(enumerate(space.spaces))
    if nested and (isinstance(space, spaces.Tuple) or all(isinstance(key, str) for key, _ in nested)):
        for key, inner in nested:
            _add_parts(what, inner, [*path, key], parts)
        return
    shape = [int(length) for length in space.shape or ()]
    part = {"path": path, "shape": shape, "size": int(np.prod(shape))}
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        counts = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec).tolist()
        parts.append({**part, "size": sum(counts), "counts": counts, "starts": np.ravel(space.start).tolist()})
        return
    picture = len(shape) == 3 and sorted(shape)[1] >= _SMALLEST_PICTURE
    if not isinstance(space, (spaces.Box, spaces.MultiBinary)) or picture or not part["size"]:
        name = ".".join(map(str, ["observations", *path]))
        raise ValueError(
            f"{what}, {name!r}: observations from {space} are not read, only numbers, grey frames (height, width) of "
            "uint8, and Dict and Tuple spaces of numbers; put what makes such of them around the environment, as "
            "gymnasium.wrappers.TransformObservation does"
        )
    parts.append(part)


def is_frame(space: Space) -> bool:
    """Return whether a space's observations are grey frames (height, width)."""
    return space.dtype == np.uint8 and len(space.shape or ()) == 2


def has_channels(space: Space) -> bool:
    """Return whether a space's observations are bytes of frames with an axis of channels; data keep one frame."""
    shape = space.shape or ()
    picture = len(shape) == 3 and (1 in shape or sorted(shape)[1] >= _SMALLEST_PICTURE)
    return space.dtype == np.uint8 and picture


def describe_actions(what: str, space: Space) -> dict[str, Any]:
    """Return a space of actions in the words of `SourceMetadata`.

    Args:
        what: whose actions these are, for errors.
        space: gymnasium's.

    Returns:
        `num_actions` and `action_start`, or `action_low` and `action_high`, one number a dimension.

    Raises:
        ValueError: no model here gives such actions; says what to do.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return {"num_actions": int(space.n), "action_start": int(space.start)}
    floats = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)
    if isinstance(space, spaces.Box) and floats and len(space.shape) == 1 and space.shape[0]:
        return {"action_low": space.low.tolist(), "action_high": space.high.tolist()}
    if floats:
        advice = "make vectors of them with gymnasium.wrappers.TransformAction"
    elif isinstance(space, spaces.Box):
        advice = "take floats and round them with gymnasium.wrappers.TransformAction"
    elif isinstance(space, (spaces.Dict, spaces.Tuple)):
        advice = "concatenate them into one Box with gymnasium.wrappers.TransformAction"
    else:
        advice = "number their combinations as one Discrete space with gymnasium.wrappers.TransformAction"
    raise ValueError(
        f"{what}: actions from {space} are not read or given, only those of a Box of floats with one dimension and of "
        f"a Discrete space; {advice}"
    )


def describe_env_kwargs(spec: EnvSpec) -> dict[str, Any] | None:
    """Return the keyword arguments beside those registered that an environment was made with, as JSON holds them.

    Args:
        spec: gymnasium's.

    Returns:
        None where there are none, or JSON cannot hold them.
    """
    import gymnasium

    registered = gymnasium.registry.get(spec.id)
    usual = {} if registered is None else registered.kwargs
    try:
        plain: dict[str, Any] = json.loads(json.dumps({k: v for k, v in spec.kwargs.items() if k not in _OF_THE_MAKER}))
        return {name: value for name, value in plain.items() if name not in usual or usual[name] != value} or None
    except (TypeError, ValueError):
        return None


def metadata_of(where: Path | str, metadata: object, env_id: str = "env_id") -> SourceMetadata:
    """Return what a mapping says that stands at `where`, in which `env_id` is the name of the environment's id."""
    if not isinstance(metadata, Mapping):
        return SourceMetadata()
    name = metadata.get(env_id)
    return SourceMetadata(
        where=str(where),
        env_id=name if isinstance(name, str) else None,
        **{said: metadata.get(said) for said in FIELDS},
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_COUNT


def _shown(value: object) -> str:
    """Return a value as an error shows it."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a number of more digits than Python shows
        return f"a long {type(value).__name__}"
