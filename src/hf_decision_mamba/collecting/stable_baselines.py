"""Policies of stable-baselines3, rebuilt from what their zip files hold without unpickling any of it.

Their pickled settings are never opened, only the readable part of these, and the weights are loaded as weights.
Source: https://stable-baselines3.readthedocs.io, the format of its files.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from numpy.typing import NDArray

from ..data.formats.dt_pickle import Budget, Name, PickleMachine, Refused, checked
from ..data.formats.rows import in_short, shown
from ..evaluation.rollouts import Job
from .policies import require_zero_start

if TYPE_CHECKING:
    from gymnasium import Space
    from gymnasium.vector import VectorEnv

PREFIX = "sb3:"
#: stable-baselines3's algorithms, and the actions that they are for.
ALGORITHMS: dict[str, tuple[str, ...]] = {
    "ppo": ("continuous", "discrete"),
    "a2c": ("continuous", "discrete"),
    "sac": ("continuous",),
    "td3": ("continuous",),
    "dqn": ("discrete",),
}
INSTALL = 'pip install "hf_decision_mamba[collect]"'

_ACTOR_CRITIC = "common"  # where PPO's and A2C's policy is
#: Settings of a policy that its weights or its actions depend on, and those that only training needs.
_SETTINGS = {
    *("net_arch", "activation_fn", "use_sde", "log_std_init", "full_std", "use_expln", "squash_output", "clip_mean"),
    *("n_critics", "share_features_extractor", "normalize_images"),
}
_OF_TRAINING = {"ortho_init", "optimizer_class", "optimizer_kwargs", ":type:", ":serialized:"}
#: Types of numbers in tensors, by torch's names.
_STORAGES = {
    **{"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
    "Bool": torch.bool,
}
#: What a file of an archive may take: so many bytes always, and so many times what it takes there.
_ALWAYS_UNPACKED = 1 << 20
_MOST_UNPACKED = 100
_NORMALISATION = ("vec_normalize.pkl", "vecnormalize.pkl")


class StableBaselinesPolicy:
    """A policy that stable-baselines3 has saved. Frames are stacked as it was trained on them.

    Args:
        source: `sb3:sac:file.zip`, `sb3:file.zip`, or a Hub repository or a file of one in the place of the file.
        envs: what it will act in.
        sample: draw actions from the policy's distribution, instead of taking its mode.
        seed: of these draws.

    Raises:
        ImportError: stable-baselines3 is not installed.
        FileNotFoundError: there is no such file.
        ValueError: the file is no such policy, or for another kind of environment.
    """

    def __init__(self, source: str, envs: VectorEnv, env_id: str, *, sample: bool, seed: int):
        require_stable_baselines()
        require_zero_start(f"policy {source!r}", env_id, envs.single_action_space)
        algorithm, place = split_source(source)
        saved = _Saved.read(source, _find_file(source, place))
        self.algorithm = saved.check_algorithm(algorithm)
        self.policy, self._frames = saved.build(envs.single_observation_space, envs.single_action_space, env_id)
        self._sample, self._seed = sample, seed
        self.stacks: NDArray[np.uint8] | None = None
        self._begins: NDArray[np.bool_] = np.empty(0, np.bool_)

    def reset(self, jobs: Sequence[Job]) -> None:
        """Start new episodes in all rows."""
        torch.manual_seed(self._seed)  # its distributions draw from torch's global generator
        if hasattr(self.policy, "reset_noise") and getattr(self.policy, "use_sde", False):
            self.policy.reset_noise()
        self._begins = np.ones(len(jobs), np.bool_)

    def reset_rows(self, rows: NDArray[np.bool_], jobs: Sequence[Job]) -> None:
        """Start new episodes in the rows of a mask (n,)."""
        self._begins |= rows

    def act(self, observations: NDArray[Any], rewards: NDArray[np.float64] | None) -> NDArray[Any]:
        """Return the next actions (n, ...)."""
        if self._frames:
            observations = self._stacked(observations)
        actions, _ = self.policy.predict(observations, deterministic=not self._sample)
        return np.asarray(actions)

    def override_actions(self, actions: NDArray[Any]) -> None:
        """Forget them: these policies see observations only."""

    def _stacked(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the last frames (n, k, height, width); before the first one there are blank ones."""
        if self.stacks is None:
            self.stacks = np.zeros((len(frames), self._frames, *frames.shape[1:]), np.uint8)
        self.stacks[self._begins] = 0
        self._begins[:] = False
        self.stacks = np.concatenate([self.stacks[:, 1:], frames[:, None]], axis=1)
        return self.stacks


def require_stable_baselines() -> None:
    """Check that stable-baselines3 is there.

    Raises:
        ImportError: it is not; says what to install.
    """
    try:
        import stable_baselines3  # noqa: F401
    except ImportError as error:
        raise ImportError(f"This needs stable-baselines3 ({error}); install it with: {INSTALL}") from error


def split_source(source: str) -> tuple[str | None, str]:
    """Return (algorithm, file or repository) of `sb3:algorithm:place` or `sb3:place`.

    Raises:
        ValueError: no such algorithm, or no place.
    """
    name, colon, place = source.removeprefix(PREFIX).partition(":")
    if not colon:
        name, place = "", name
    if not place or (name and name.lower() not in ALGORITHMS):
        raise ValueError(
            f"policy {source!r}: expected {PREFIX}ALGORITHM:FILE.zip or {PREFIX}ALGORITHM:owner/name, with one of the "
            f"algorithms {', '.join(ALGORITHMS)}"
        )
    return name.lower() or None, place


def _find_file(source: str, place: str) -> Path:
    """Return the file on this machine; from the Hub, the one .zip of a repository or the one that is named."""
    path = Path(place).expanduser()
    if path.is_file():
        _refuse_normalisation(source, (file.name for file in path.parent.iterdir()))
        return path
    repository = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:/(.+))?", place)
    if path.suffix == ".zip" and (repository is None or repository[2] is None):
        raise FileNotFoundError(f"policy {source!r}: there is no file {path.absolute()}")
    if repository is None:
        raise FileNotFoundError(f"policy {source!r}: there is no file {path.absolute()}, and it is no Hub repository")
    name, file = repository.groups()
    try:
        files = HfApi().list_repo_files(name)
        found = [file] if file else [one for one in files if one.endswith(".zip")]
        if len(found) != 1:
            raise ValueError(
                f"policy {source!r}: the repository has {len(found)} .zip files ({', '.join(found) or 'none'}); name "
                f"one, {source}/FILE.zip"
            )
        _refuse_normalisation(source, files)
        return Path(hf_hub_download(name, found[0]))
    except (HfHubHTTPError, HFValidationError, ConnectionError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"policy {source!r}: there is no file {path.absolute()}, and on the Hub: {reason}"
        ) from error


def _refuse_normalisation(source: str, files: Iterable[str]) -> None:
    beside = [file for file in files if file.rsplit("/")[-1] in _NORMALISATION]
    if beside:
        raise ValueError(
            f"policy {source!r} reads observations that were normalised by {beside[0]} beside it, a pickle, which is "
            "not loaded; without it the policy would act at random. Use one that was trained without VecNormalize, or "
            "remove that file if it belongs to another policy"
        )


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a file of an archive, which is not much larger than what it takes there."""
    found = archive.getinfo(name)
    if found.file_size > _ALWAYS_UNPACKED + _MOST_UNPACKED * found.compress_size:
        raise ValueError(f"{name} unpacks to {found.file_size:,} bytes")
    return archive.read(found)


def _read_weights(content: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that `torch.save` wrote of them; of its pickle, no more than their places is read.

    `torch.load` obeys 200 bytes that take years, even where it loads nothing but weights.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        described = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        pickled = _member(archive, described)
        found = _WeightsMachine(Budget(len(pickled))).run(io.BytesIO(pickled))
        weights: dict[str, torch.Tensor] = {}
        left = _ALWAYS_UNPACKED + _MOST_UNPACKED * len(content)  # a storage can be named again and again
        for name, place in checked(found, dict).items():
            weights[name] = checked(place, _Place).read(archive, described)
            left -= place.numbers * place.dtype.itemsize
            if left < 0:
                raise ValueError(f"its tensors are more than {len(content):,} bytes can hold")
            if not torch.isfinite(weights[name]).all():
                raise ValueError(f"{name[:100]} is not finite")
    return weights


@dataclass(frozen=True)
class _Place:
    """Where a tensor is: the file of its storage, and which of its numbers, of how many, are its own."""

    file: str
    dtype: torch.dtype
    numbers: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Place:
        """Return the place that `torch._utils._rebuild_tensor_v2` would be called with."""
        _, dtype, file, _, numbers = checked(storage, tuple)
        counts = (numbers, offset, *checked(size, tuple), *checked(stride, tuple))
        if not all(type(count) is int and 0 <= count < 2**40 for count in counts) or math.prod(size) > numbers:
            raise Refused("its tensors have no sizes that can be")
        return cls(checked(file, str), checked(dtype, _Numbers).dtype, numbers, offset, size, stride)

    def read(self, archive: zipfile.ZipFile, described: str) -> torch.Tensor:
        """Return the tensor; `described` is the name of the file that describes it."""
        content = bytearray(_member(archive, described.replace("data.pkl", f"data/{self.file}")))
        if len(content) != self.numbers * self.dtype.itemsize:
            raise ValueError(
                f"a tensor has {len(content)} bytes where {self.numbers} numbers of {self.dtype} should be"
            )
        stored = torch.frombuffer(content, dtype=self.dtype) if content else torch.empty(0, dtype=self.dtype)
        return stored.as_strided(self.size, self.stride, self.offset)


class _Numbers(Name):
    """The name of a type of numbers, as torch writes it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype


class _WeightsMachine(PickleMachine):
    """A machine for the pickle of a dict of tensors."""

    names: Mapping[tuple[str, str], Name] = {
        ("collections", "OrderedDict"): Name(lambda: {}),
        ("torch._utils", "_rebuild_tensor_v2"): Name(_Place.of),
        **{("torch", f"{name}Storage"): _Numbers(dtype) for name, dtype in _STORAGES.items()},
    }

    def obey(self, name: str, argument: Any) -> None:
        """Obey one instruction."""
        if name == "BINPERSID":  # of the description of a storage, which stands for itself
            checked(self.stack[-1], tuple)
        elif name == "BUILD":
            self.stack.pop()  # the attributes of an OrderedDict
        else:
            super().obey(name, argument)


class _Saved:
    """What is read of a file: its settings, as far as they are plain, and its weights."""

    def __init__(self, source: str, settings: Mapping[str, Any], weights: Mapping[str, Any]):
        self.source = source
        self.settings = settings
        self.weights = weights
        described = settings.get("policy_class")
        module = described.get("__module__", "") if isinstance(described, dict) else ""
        found = re.fullmatch(r"stable_baselines3\.(\w+)\.policies", str(module))
        if found is None or found[1] not in (*ALGORITHMS, _ACTOR_CRITIC):
            raise ValueError(
                f"policy {source!r} is of {shown(str(module), 100) or 'an unknown class'}; only stable-baselines3's "
                f"own policies are read, of {', '.join(ALGORITHMS)}"
            )
        self.module = found[1]

    @classmethod
    def read(cls, source: str, path: Path) -> _Saved:
        """Read a file; nothing of it is unpickled."""
        try:
            with zipfile.ZipFile(path) as archive:
                settings = json.loads(_member(archive, "data"))
                weights = _read_weights(_member(archive, "policy.pth"))
        except Exception as error:  # zipfile, json and torch have many ways to say that a file is not what it should be
            raise ValueError(
                f"policy {source!r}: {path.name} is not what stable-baselines3 saves ({in_short(error)})"
            ) from error
        if not isinstance(settings, dict):
            raise ValueError(f"policy {source!r}: {path.name} is not what stable-baselines3 saves; save it again")
        return cls(source, settings, weights)

    def check_algorithm(self, wanted: str | None) -> str:
        """Return the algorithm's name, as far as the file or the user says it."""
        fits = (wanted in ("ppo", "a2c")) if self.module == _ACTOR_CRITIC else wanted == self.module
        if wanted is not None and not fits:
            name = "ppo or a2c" if self.module == _ACTOR_CRITIC else self.module
            raise ValueError(f"policy {self.source!r} was trained by {name}, not by {wanted}; correct the name")
        return wanted or ("actor-critic" if self.module == _ACTOR_CRITIC else self.module)

    def build(self, observations: Space, actions: Space, env_id: str) -> tuple[Any, int]:
        """Return the policy with its weights, and how many frames it stacks (0 for vectors)."""
        from gymnasium.spaces import Box

        frames = 0
        if len(observations.shape or ()) == 2:
            first = next((value for value in self.weights.values() if value.ndim == 4), None)
            if first is None:
                raise ValueError(f"policy {self.source!r} reads no frames, which {env_id} shows")
            frames = int(first.shape[1])
            observations = Box(0, 255, (frames, *(observations.shape or ())), np.uint8)
        arguments = self._arguments()
        try:
            policy = self._class(bool(frames))(observations, actions, lr_schedule=lambda _: 0.0, **arguments)
            policy.load_state_dict(self.weights)
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise ValueError(
                f"policy {self.source!r} does not fit {env_id}, which shows {observations} and takes {actions}, or was "
                f"saved by another version of stable-baselines3: {in_short(error)}"
            ) from error
        policy.set_training_mode(False)
        return policy, frames

    def _class(self, images: bool) -> Callable[..., Any]:
        import stable_baselines3

        name = "ppo" if self.module == _ACTOR_CRITIC else self.module
        aliases: dict[str, Any] = getattr(stable_baselines3, name.upper()).policy_aliases
        found: Callable[..., Any] = aliases["CnnPolicy" if images else "MlpPolicy"]
        return found

    def _arguments(self) -> dict[str, Any]:
        """Return what the class was made with; of pickled settings, what stands beside the pickle."""
        settings = self.settings.get("policy_kwargs") or {}
        if not isinstance(settings, dict):
            raise ValueError(f"policy {self.source!r} says nothing of its layers that can be read; save it again")
        unknown = sorted(set(settings) - _SETTINGS - _OF_TRAINING)
        if unknown:
            raise ValueError(
                f"policy {self.source!r} was made with {shown(unknown[0], 100)}, which is not read from a file"
            )
        arguments = {name: value for name, value in settings.items() if name in _SETTINGS}
        if "activation_fn" in arguments:
            described = str(arguments["activation_fn"])
            activation = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w+)'>", described)
            if activation is None or not hasattr(torch.nn, activation[1]):
                raise ValueError(
                    f"policy {self.source!r} was made with activation_fn={shown(described, 100)}, which is not known"
                )
            arguments["activation_fn"] = getattr(torch.nn, activation[1])
        if isinstance(arguments.get("net_arch"), list) and arguments["net_arch"][:1]:
            first = arguments["net_arch"][0]  # versions before 1.8 had the dict in a list
            arguments["net_arch"] = first if isinstance(first, dict) else arguments["net_arch"]
        self._check_layers(arguments)
        if self.module != "dqn" and self.module != "td3":
            arguments.setdefault("use_sde", bool(self.settings.get("use_sde")))
        return arguments

    def _check_layers(self, arguments: Mapping[str, Any]) -> None:
        """Refuse layers that the weights are not of: they are made before weights are compared with them."""
        layers, critics = arguments.get("net_arch") or [], arguments.get("n_critics", 1)
        held = sum(tensor.numel() for tensor in self.weights.values())
        for widths in layers.values() if isinstance(layers, dict) else [layers]:
            numbers = isinstance(widths, list) and all(type(width) is int and width > 0 for width in widths)
            if not numbers or sum(map(math.prod, pairwise(widths))) + sum(widths) > held:
                raise ValueError(
                    f"policy {self.source!r} has layers that its {held:,} weights are not of; save it again"
                )
        if type(critics) is not int or not 1 <= critics <= max(len(self.weights), 1):
            raise ValueError(f"policy {self.source!r} has more critics than weights; save it again")
