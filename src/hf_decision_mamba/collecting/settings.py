"""What to collect: the settings of `hf-decision-mamba collect`, and the command that repeats them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..acting.policy import Mode
from ..reporting.files import command_line, portable
from ..tasks.oracles import collecting_kwargs
from .stable_baselines import ALGORITHMS, PREFIX

RANDOM, EXPERT = "random", "expert"
_EPISODES = 100

TENTHS = 10  # parts of a training in the card's table of how the agent improved


@dataclass(frozen=True)
class CollectSettings:
    """What to collect. Everything but `device` changes the data, so the card states it.

    Args:
        env_id: gymnasium id.
        policy: `"random"`; `"expert"`, what is right (an environment's own `expert_action()`, for popgym's
            RepeatPrevious, RepeatFirst, Autoencode and CountRecall one that remembers, for PointMaze the shortest way
            to the goal, for OGBench what made its data), with `"expert:noisy"` that of several which is called so; one
            of our checkpoints, a folder or a Hub repository; or a stable-baselines3 file,
            `"sb3:sac:file.zip"` or `"sb3:sac:owner/name"`.
        episodes: how many whole episodes; 100 when neither this nor `steps` is given.
        steps: whole episodes, in the order of their seeds, until there are at least so many steps; with `train`,
            exactly so many.
        seed: episode i is reset with `seed + i`; the draws of policy, noise and training follow from it too.
        target_return, mode: what to ask a checkpoint of ours for, and how it acts.
        sample: draw actions from the policy's distribution instead of taking its best one.
        noise: standard deviation of Gaussian noise on continuous actions, as a share of half their range.
        epsilon: probability of a random action.
        max_episode_steps: truncates episodes earlier than the environment does.
        train: a stable-baselines3 algorithm, whose training is recorded; instead of `policy`.
        num_envs: environments that run at once. It bounds the memory; the data do not depend on it, but for the
            rounding of larger matrix products and the draws of stable-baselines3 policies.
        device: where a checkpoint of ours computes.
        license: of the data, as the Hub names licences.
        env_kwargs: keyword arguments for `gymnasium.make`; None for none.

    Raises:
        ValueError: settings that make no sense, alone or together.
    """

    env_id: str
    policy: str = RANDOM
    episodes: int | None = None
    steps: int | None = None
    seed: int = 0
    target_return: float | None = None
    mode: Mode = "window"
    sample: bool = False
    noise: float = 0.0
    epsilon: float = 0.0
    max_episode_steps: int | None = None
    train: str | None = None
    num_envs: int = 8
    device: str | None = None
    license: str = "apache-2.0"
    env_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("steps", 1), ("seed", 0), ("max_episode_steps", 1), ("num_envs", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        if not (np.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"noise={self.noise} must be 0 or a positive number.")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon={self.epsilon} is a probability, from 0 to 1.")
        if self.target_return is not None and not np.isfinite(self.target_return):
            raise ValueError(f"target_return={self.target_return} must be finite.")
        if self.episodes is not None and self.steps is not None:
            raise ValueError("episodes and steps both say how much to collect; give one of them.")
        if self.train is not None:
            if self.train not in ALGORITHMS:
                raise ValueError(f"train={self.train!r} is unknown; choose one of {', '.join(ALGORITHMS)}.")
            if self.steps is None:
                raise ValueError("train needs steps: how long to train, in steps of the environment.")
            self._refuse(
                "train, whose agent acts",
                "policy",
                "target_return",
                "mode",
                "sample",
                "noise",
                "epsilon",
                "num_envs",
                "device",
            )
        elif self.expert_kind is not None:
            self._refuse("the environment's expert", "target_return", "mode", "sample", "device")
        elif self.policy == RANDOM:
            self._refuse("the random policy", "target_return", "mode", "sample", "noise", "epsilon", "device")
        elif self.policy.startswith(PREFIX):
            self._refuse("a stable-baselines3 policy", "target_return", "mode", "device")

    def _refuse(self, what: str, *names: str) -> None:
        """Refuse settings that would silently do nothing."""
        for name in names:
            if getattr(self, name) != _DEFAULTS[name]:
                raise ValueError(f"{name}={getattr(self, name)!r} has no meaning for {what}; leave it out.")

    @property
    def expert_kind(self) -> str | None:
        """The kind of the expert that acts, empty for the first; None where none does."""
        name, _, kind = self.policy.partition(":")
        return kind if name == EXPERT else None

    def kwargs_of_expert(self) -> dict[str, Any]:
        """Return what the environment is made with for its expert; it is no part of what policies learn for."""
        kind = self.expert_kind
        return {} if self.train is not None or kind is None else collecting_kwargs(self.env_id, kind)

    @property
    def wanted_episodes(self) -> int | None:
        """How many episodes to collect; None where `steps` says how much."""
        return _EPISODES if self.episodes is None and self.steps is None else self.episodes

    @property
    def policy_name(self) -> str:
        """The policy as others may read it: without the folders of this machine."""
        return portable(self.policy)

    def command(self, output: Path) -> str:
        """Return the command that collects this data set again."""
        given = {name: value for name, value in vars(self).items() if name in _DEFAULTS and value != _DEFAULTS[name]}
        if "policy" in given:
            given["policy"] = self.policy_name
        return command_line("collect", self.env_id, **given, output=output.name)


_DEFAULTS: dict[str, Any] = {entry.name: entry.default for entry in fields(CollectSettings) if entry.name != "env_id"}
