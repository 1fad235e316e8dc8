"""Collecting a data set: roll a policy out, or train an agent and keep its replay, and write it ready for the Hub.

Every episode is reset with a seed that is stored beside it, so that anybody can play it again from its actions.
"""

from __future__ import annotations

import itertools
import logging
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ..acting.policy import DecisionMambaPolicy
from ..data.recording import Episode, EpisodeBuilder, EpisodeStatistics, EpisodeWriter
from ..evaluation.environments import env_kwargs_for, make_environments
from ..evaluation.rollouts import Job, PolicyActor, Recorder, Step, play, success_of
from ..reporting.checks import wrong_type
from ..reporting.console import StoppedBySignal, on_interrupt
from ..reporting.figures import number
from ..sharing.dataset_card import DATA_FILE
from .describe import describe_collection, describe_environment
from .policies import ExpertPolicy, Exploration, OverriddenActor, require_zero_start
from .settings import RANDOM, CollectSettings
from .stable_baselines import ALGORITHMS, PREFIX, StableBaselinesPolicy, require_stable_baselines

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

logger = logging.getLogger(__name__)

#: stable-baselines3 keeps transitions in memory; more than these are not needed at the size of its networks.
_REPLAY_BUFFER = 1_000_000


def collect(settings: CollectSettings, output: str | Path, *, progress: bool = True) -> tuple[Path, bool]:
    """Collect a data set and write it, with its card and a picture of its returns, into a folder.

    The folder is laid out as a data set of the Hub: data/train-00000-of-00001.parquet with one row per episode
    (observations, actions, rewards, terminations, truncations, seed), README.md, collection.json (the summary that
    the card is rendered from) and returns.png. The same settings give the same bytes, with the same versions of
    packages.

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
        TypeError: `settings` are something else.
        StoppedBySignal: SIGINT came before the first episode ended, and nothing is written; or SIGTERM came.
        ValueError: the environment or the policy cannot be recorded, or gives numbers that are not finite.
    """
    if not isinstance(settings, CollectSettings):
        raise wrong_type("settings", settings, "CollectSettings(env_id, ...)")
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is there already; name another folder, or remove it first.")
    if settings.train is not None:
        require_stable_baselines()
    envs = _environments(settings)
    try:
        _check_noise(settings, envs)
        checkpoint = _checkpoint(settings)
        shown = checkpoint and env_kwargs_for(checkpoint, settings.env_id, settings.env_kwargs or {})
        if shown and shown != settings.env_kwargs:  # the environment has to show what the checkpoint was trained on
            envs.close()
            settings = replace(settings, env_kwargs=shown)
            envs = _environments(settings)
        environment = describe_environment(settings, envs)
        record = _training(settings, envs) if settings.train is not None else _rollout(settings, envs, checkpoint)
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
    describe_collection(settings, output, sink.statistics, environment, complete)
    if signal.SIGTERM in signals:
        raise StoppedBySignal(signal.SIGTERM, f"the episodes that had ended were written to {output}.")
    return output, complete


def _environments(settings: CollectSettings) -> VectorEnv:
    count = 1 if settings.train is not None else min(settings.num_envs, settings.wanted_episodes or settings.num_envs)
    kwargs = {**settings.kwargs_of_expert(), **(settings.env_kwargs or {})}
    return make_environments(settings.env_id, count, settings.max_episode_steps, env_kwargs=kwargs)


def _check_noise(settings: CollectSettings, envs: VectorEnv) -> None:
    if settings.noise and envs.single_action_space.shape == ():
        raise ValueError(
            f"noise={settings.noise} is for continuous actions, and those of {settings.env_id} are discrete; take "
            "epsilon instead."
        )


class _Sink:
    """Where the episodes go: it writes and counts them, shows how far the work is, and says when to stop."""

    def __init__(self, settings: CollectSettings, writer: EpisodeWriter, signals: list[int], bar: tqdm):
        self.statistics = EpisodeStatistics()
        self._settings, self._writer, self._signals, self._bar = settings, writer, signals, bar
        self._shown = 0.0

    def add(self, episode: Episode) -> None:
        """Take an episode, unless there are enough."""
        if self.is_enough:
            return
        self._writer.add(episode)
        self.statistics.add(episode)
        if time.monotonic() - self._shown > 0.5 or self.is_enough:
            self._shown = time.monotonic()
            wanted = self._settings.wanted_episodes
            shown = {
                "episodes": f"{self.statistics.episodes:,}" + ("" if wanted is None else f"/{wanted:,}"),
                "last returns": number(float(np.mean(self.statistics.returns[-20:])), 1),
            }
            if self.statistics.successes:
                shown["success"] = f"{np.mean(self.statistics.successes):.1%}"
            self._bar.set_postfix(shown)

    @property
    def is_enough(self) -> bool:
        """Whether there are as many episodes, or steps, as were asked for."""
        if self._settings.steps is not None:
            return self.statistics.transitions >= self._settings.steps
        return self.statistics.episodes == self._settings.wanted_episodes

    def count(self, steps: int) -> bool:
        """Count steps of the environment; return whether to go on."""
        self._bar.update(steps)
        return not self._signals and not self.is_enough


_Record = Callable[[_Sink], None]


# Rolling a policy out


def _rollout(settings: CollectSettings, envs: VectorEnv, checkpoint: DecisionMambaPolicy | None) -> _Record:
    """Make what is needed to roll a policy out, and return what does it."""
    space, seeds = envs.single_action_space, itertools.count(settings.seed)
    policy = _policy(settings, envs, checkpoint)
    actor = Exploration(space, envs.num_envs, settings.seed, settings.noise, settings.epsilon, policy)
    jobs = (Job(seed, settings.target_return) for seed in itertools.islice(seeds, settings.wanted_episodes))

    return lambda sink: _roll_out(envs, actor, jobs, sink)


def _checkpoint(settings: CollectSettings) -> DecisionMambaPolicy | None:
    """Load the checkpoint of ours that acts, if one does."""
    others = settings.policy == RANDOM or settings.expert_kind is not None or settings.policy.startswith(PREFIX)
    if settings.train is not None or others:
        return None
    return DecisionMambaPolicy.from_pretrained(settings.policy, settings.mode, settings.device, sample=settings.sample)


def _policy(
    settings: CollectSettings, envs: VectorEnv, checkpoint: DecisionMambaPolicy | None
) -> OverriddenActor | None:
    if checkpoint is not None:
        return PolicyActor(checkpoint, envs, settings.env_id, settings.seed)
    if settings.policy == RANDOM:
        return None
    if settings.expert_kind is not None:
        return ExpertPolicy(envs, settings.env_id, settings.expert_kind)
    return StableBaselinesPolicy(settings.policy, envs, settings.env_id, sample=settings.sample, seed=settings.seed)


def _roll_out(envs: VectorEnv, actor: Exploration, jobs: Iterable[Job], sink: _Sink) -> None:
    """Give the sink the episodes in the order of their jobs, however long each takes."""
    recorder = Recorder()

    def observe(step: Step) -> bool:
        recorder(step)
        return not sink.count(len(list(step.running())))

    for episode in play(envs, actor, jobs, observe):
        sink.add(recorder.take(episode))
        if sink.is_enough:
            return


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
                self.keep(bool(terminated), success_of({name: [value] for name, value in info.items()}, 0))
            return following, reward, bool(terminated), bool(truncated), info

        def keep(self, terminated: bool, success: bool | None = None) -> None:
            if len(self.builder):
                sink.add(self.builder.finish(terminated, success))
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
