"""Collecting a data set: roll a policy out, or train an agent and keep its replay, and write it ready for the Hub.

Every episode is reset with a seed that is stored beside it, so that anybody can play it again from its actions.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from .behaviours import (
    ALGORITHMS,
    PREFIX,
    Behaviour,
    CheckpointBehaviour,
    Exploration,
    StableBaselinesBehaviour,
    require_stable_baselines,
    require_zero_start,
)
from .console import StoppedBySignal, on_interrupt
from .data.facts import describe_actions, is_frame
from .data.inspection import draw_histograms
from .dataset_cards import DATA_FILE, FACTS_FILE, PICTURE, write_dataset_card
from .environments import action_bounds, install_hint, make_environments, score_reference
from .evaluation import package_versions
from .figures import number
from .files import replacing_together
from .policy import Mode
from .recording import Episode, EpisodeBuilder, EpisodeStatistics, EpisodeWriter

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

logger = logging.getLogger(__name__)

RANDOM = "random"
_EPISODES = 100
_TENTHS = 10  # parts of a training in the card's table of how the agent improved
#: stable-baselines3 keeps transitions in memory; more than these are not needed at the size of its networks.
_REPLAY_BUFFER = 1_000_000


@dataclass(frozen=True)
class CollectSettings:
    """What to collect. Everything but `device` changes the data, so the card states it.

    Args:
        env_id: gymnasium id.
        policy: `"random"`; one of our checkpoints, a folder or a Hub repository; or a stable-baselines3 file,
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
    def wanted_episodes(self) -> int | None:
        """How many episodes to collect; None where `steps` says how much."""
        return _EPISODES if self.episodes is None and self.steps is None else self.episodes

    @property
    def policy_name(self) -> str:
        """The policy as others may read it: without the folders of this machine, where its path was absolute."""
        return re.sub(r"(?<![^:])(?:~|/|[A-Za-z]:[\\/]).*[\\/]", "", self.policy)

    def command(self, output: Path) -> str:
        """Return the command that collects this data set again."""
        words = ["hf-decision-mamba", "collect", self.env_id]
        for name, default in _DEFAULTS.items():
            value = self.policy_name if name == "policy" else getattr(self, name)
            if value == default:
                continue
            option = f"--{name.replace('_', '-')}"
            value = json.dumps(value) if isinstance(value, dict) else value
            words += [option] if value is True else [option, f"{value}"]
        return shlex.join([*words, "--output", output.name])


_DEFAULTS: dict[str, Any] = {entry.name: entry.default for entry in fields(CollectSettings) if entry.name != "env_id"}


def collect(settings: CollectSettings, output: str | Path, *, progress: bool = True) -> tuple[Path, bool]:
    """Collect a data set and write it, with its card and a picture of its returns, into a folder.

    The folder is laid out as a data set of the Hub: data/train-00000-of-00001.parquet with one row per episode
    (observations, actions, rewards, terminations, truncations, seed), README.md, collection.json (the facts that the
    card is rendered from) and returns.png. The same settings give the same bytes, with the same versions of packages.

    On SIGINT (Ctrl-C) or SIGTERM the episodes that have ended by then are written, and the card says so.

    Args:
        settings: what to collect.
        output: the folder; it must not hold anything yet.
        progress: whether to show a progress bar.

    Returns:
        The folder, and whether it holds all that was asked for.

    Raises:
        FileExistsError: the folder holds something.
        ImportError: gymnasium, or what the environment or the policy needs, is not installed.
        OSError: there is no such checkpoint, or no room on the disk.
        StoppedBySignal: SIGINT came before the first episode ended, and nothing is written; or SIGTERM came.
        ValueError: the environment or the policy cannot be recorded, or gives numbers that are not finite.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is there already; name another folder, or remove it first.")
    if settings.train is not None:
        require_stable_baselines()
    count = 1 if settings.train is not None else min(settings.num_envs, settings.wanted_episodes or settings.num_envs)
    envs = make_environments(settings.env_id, count, settings.max_episode_steps, env_kwargs=settings.env_kwargs)
    try:
        environment = _described_environment(settings, envs)
        record = _training(settings, envs) if settings.train is not None else _rollout(settings, envs)
        signals: list[int] = []
        with (
            on_interrupt(signals.append),
            EpisodeWriter(output / DATA_FILE) as writer,
            tqdm(desc=settings.env_id, unit="step", disable=not progress) as bar,
        ):
            sink = _Sink(settings, writer, signals, bar)
            record(sink)
    finally:
        envs.close()
    if not sink.statistics.episodes:
        raise StoppedBySignal(signals[0], "no episode had ended yet, so nothing was written.")
    complete = not signals or sink.is_enough
    _describe(settings, output, sink.statistics, environment, complete)
    if signal.SIGTERM in signals:
        raise StoppedBySignal(signal.SIGTERM, f"the episodes that had ended were written to {output}.")
    return output, complete


class _Sink:
    """Where the episodes go: it writes and counts them, shows how far the work is, and says when to stop."""

    def __init__(self, settings: CollectSettings, writer: EpisodeWriter, signals: list[int], bar: tqdm):
        self.statistics = EpisodeStatistics()
        self._settings, self._writer, self._signals, self._bar = settings, writer, signals, bar
        self._shown = 0.0

    def add(self, episode: Episode) -> None:
        """Take an episode, unless there are enough."""
        if not self.is_enough:
            self._writer.add(episode)
            self.statistics.add(episode)

    @property
    def is_enough(self) -> bool:
        """Whether there are as many episodes, or steps, as were asked for."""
        if self._settings.steps is not None:
            return self.statistics.transitions >= self._settings.steps
        return self.statistics.episodes == self._settings.wanted_episodes

    def count(self, steps: int) -> bool:
        """Count steps of the environment; return whether to go on."""
        self._bar.update(steps)
        going_on = not self._signals and not self.is_enough
        if self.statistics.episodes and (time.monotonic() - self._shown > 0.5 or not going_on):
            self._shown = time.monotonic()
            wanted = self._settings.wanted_episodes
            shown = {
                "episodes": f"{self.statistics.episodes:,}" + ("" if wanted is None else f"/{wanted:,}"),
                "last returns": number(float(np.mean(self.statistics.returns[-20:])), 1),
            }
            self._bar.set_postfix(shown)
        return going_on


_Record = Callable[[_Sink], None]


# Rolling a policy out


def _rollout(settings: CollectSettings, envs: VectorEnv) -> _Record:
    """Make what is needed to roll a policy out, and return what does it."""
    if settings.noise and envs.single_action_space.shape == ():
        raise ValueError(
            f"noise={settings.noise} is for continuous actions, and those of {settings.env_id} are discrete; take "
            "epsilon instead."
        )
    behaviour = _behaviour(settings, envs)
    exploration = Exploration(envs.single_action_space, envs.num_envs, settings.seed, settings.noise, settings.epsilon)

    return lambda sink: _roll_out(settings, envs, behaviour, exploration, sink)


def _behaviour(settings: CollectSettings, envs: VectorEnv) -> Behaviour | None:
    if settings.policy == RANDOM:
        return None
    if settings.policy.startswith(PREFIX):
        return StableBaselinesBehaviour(
            settings.policy, envs, settings.env_id, sample=settings.sample, seed=settings.seed
        )
    return CheckpointBehaviour(
        settings.policy,
        envs,
        settings.env_id,
        target_return=settings.target_return,
        mode=settings.mode,
        sample=settings.sample,
        seed=settings.seed,
        device=settings.device,
    )


def _roll_out(
    settings: CollectSettings,
    envs: Any,  # gymnasium's VectorEnv, whose type hides that a reset takes one seed per row
    behaviour: Behaviour | None,
    exploration: Exploration,
    sink: _Sink,
) -> None:
    """Give the sink episode 0, 1, 2, ... in this order, however long each takes, so that short ones are not favoured.

    A row whose episode ends takes the next one. Rows for which none is left play on, and nobody records them.
    """
    count, wanted = envs.num_envs, settings.wanted_episodes
    numbers, waiting = np.arange(count), count
    builders = [EpisodeBuilder(settings.seed + row) for row in range(count)]
    finished: dict[int, Episode] = {}
    following = 0
    for first in range(count):
        exploration.begin(first, first)
    observations, _ = envs.reset(seed=(settings.seed + numbers).tolist())
    if behaviour is not None:
        behaviour.reset(count)
    rewards: NDArray[np.float64] | None = None
    while True:
        proposed = None if behaviour is None else behaviour.act(observations, rewards)
        actions = exploration.explore(proposed)
        if behaviour is not None and proposed is not None and not np.array_equal(actions, proposed):
            behaviour.took(actions)
        before = observations
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        active = [row for row in range(count) if wanted is None or numbers[row] < wanted]
        for row in active:
            builders[row].add(before[row], actions[row], float(rewards[row]))
        over = terminated | truncated
        for row in active:
            if over[row]:
                finished[int(numbers[row])] = builders[row].finish(bool(terminated[row]))
        while following in finished:
            sink.add(finished.pop(following))
            following += 1
        if not sink.count(len(active)):
            for number in sorted(finished):  # after an interruption: those that ended before an earlier one has
                sink.add(finished[number])
            return
        if over.any():
            for row in np.flatnonzero(over).tolist():
                numbers[row], waiting = waiting, waiting + 1
                builders[row] = EpisodeBuilder(settings.seed + int(numbers[row]))
                exploration.begin(row, int(numbers[row]))
            observations, _ = envs.reset(seed=(settings.seed + numbers).tolist(), options={"reset_mask": over})
            if behaviour is not None:
                behaviour.reset_rows(over)


# Recording a training


def _training(settings: CollectSettings, envs: Any) -> _Record:
    """Make what is needed to train an agent, and return what does it."""
    kind = "discrete" if envs.single_action_space.shape == () else "continuous"
    algorithm = str(settings.train)
    require_zero_start(f"train={algorithm!r}", settings.env_id, envs.single_action_space)
    if kind not in ALGORITHMS[algorithm]:
        fitting = ", ".join(name for name, kinds in ALGORITHMS.items() if kind in kinds)
        raise ValueError(f"train={algorithm!r} is not for the {kind} actions of {settings.env_id}; take {fitting}.")
    if len(envs.single_observation_space.shape) != 1:
        raise ValueError(
            f"train={algorithm!r} learns from vectors, and {settings.env_id} shows frames; give a trained policy with "
            f"policy='{PREFIX}dqn:FILE.zip' instead."
        )

    return lambda sink: _train(settings, envs.envs[0], sink)


def _train(settings: CollectSettings, env: Any, sink: _Sink) -> None:
    """Train an agent with stable-baselines3's defaults, and give the sink its episodes; the last one may be cut off."""
    import gymnasium
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback

    class Recorder(gymnasium.Wrapper):
        """Resets every episode with a seed of its own, and records it."""

        builder = EpisodeBuilder(settings.seed)
        episodes = 0
        seen: Any = None

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            self.keep(terminated=False)
            self.builder = EpisodeBuilder(settings.seed + self.episodes)
            self.seen, info = self.env.reset(seed=self.builder.seed, options=options)
            return self.seen, info

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            following, reward, terminated, truncated, info = self.env.step(action)
            self.builder.add(self.seen, action, float(reward))
            self.seen = following
            if terminated or truncated:
                self.keep(terminated=bool(terminated))
            return following, reward, bool(terminated), bool(truncated), info

        def keep(self, terminated: bool) -> None:
            if len(self.builder):
                sink.add(self.builder.finish(terminated))
                self.builder = EpisodeBuilder(settings.seed)
                self.episodes += 1

    class Watch(BaseCallback):
        """Stops the training after exactly the steps that were asked for."""

        def _on_step(self) -> bool:
            return sink.count(1) and self.num_timesteps < steps

    steps = int(settings.steps or 0)
    recorder = Recorder(env)
    options = {} if settings.train in ("ppo", "a2c") else {"buffer_size": min(steps, _REPLAY_BUFFER)}
    algorithm = getattr(stable_baselines3, str(settings.train).upper())
    agent = algorithm("MlpPolicy", recorder, seed=settings.seed, device="cpu", **options)
    agent.learn(total_timesteps=steps, callback=Watch())
    recorder.keep(terminated=False)


# What the card says


def _described_environment(settings: CollectSettings, envs: VectorEnv) -> dict[str, Any]:
    """Facts that stand in the front matter of the card, where `load_trajectories` finds them."""
    shown, taken = envs.single_observation_space, envs.single_action_space
    facts: dict[str, Any] = {
        "id": settings.env_id,
        "env_kwargs": settings.env_kwargs or None,
        "obs_shape": [int(size) for size in shown.shape or ()] if is_frame(shown) else None,
        "observation_parts": getattr(envs, "observation_parts", None),
        **describe_actions(settings.env_id, taken),
    }
    facts["action_start"] = facts.get("action_start") or None
    bounds = action_bounds(taken)
    if bounds is not None:
        facts["action_low"], facts["action_high"] = bounds
    facts = {name: value for name, value in facts.items() if value is not None}
    limit = settings.max_episode_steps or (envs.spec.max_episode_steps if envs.spec is not None else None)
    if limit is not None:
        facts["max_episode_steps"] = int(limit)
    versions = package_versions()
    played: Any = envs
    modules = {base.__module__.split(".")[0] for base in type(played.envs[0].unwrapped).__mro__}
    modules |= {"mujoco"} if hasattr(played.envs[0].unwrapped, "mujoco_renderer") else set()
    simulators = {"mujoco": "mujoco", "ale_py": "ale-py"}
    return {
        **facts,
        "gymnasium": versions["gymnasium"],
        **{package: versions[package] for module, package in simulators.items() if module in modules},
    }


def _describe(
    settings: CollectSettings,
    output: Path,
    statistics: EpisodeStatistics,
    environment: dict[str, Any],
    complete: bool,
) -> None:
    """Write the facts, the picture and the card."""
    used = ["stable-baselines3"] if settings.train or settings.policy.startswith(PREFIX) else []
    reference = score_reference(settings.env_id)
    facts = {
        "command": settings.command(output),
        "complete": complete,
        "settings": {
            **{entry.name: getattr(settings, entry.name) for entry in fields(settings)},
            "policy": settings.policy_name,
        },
        "environment": environment,
        "score_reference": reference and reference._asdict(),
        **statistics.to_dict(),
        "parts": _parts(statistics.returns) if settings.train is not None else None,
        "versions": package_versions(*used),
    }
    with replacing_together(output, FACTS_FILE) as draft:
        (draft / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        returns, lengths = np.array(statistics.returns), np.array(statistics.lengths)
        try:
            draw_histograms(draft / PICTURE, settings.env_id, returns, lengths)
        except ImportError:
            hint = install_hint(settings.env_id)
            logger.warning("%s was not drawn: matplotlib is not installed (%s).", PICTURE, hint)
    write_dataset_card(output)


def _parts(returns: list[float]) -> list[dict[str, float]]:
    """How the returns developed: mean and best of ten equal parts of the episodes, or of each if there are fewer."""
    parts = np.array_split(np.array(returns), min(_TENTHS, len(returns)))
    ends = np.cumsum([len(part) for part in parts])
    return [
        {"first": int(end - len(part)), "last": int(end - 1), "mean": float(part.mean()), "max": float(part.max())}
        for part, end in zip(parts, ends, strict=True)
    ]
