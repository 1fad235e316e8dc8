"""Episodes to look into: played, or chosen from a data set, and the windows of their decisions."""

from __future__ import annotations

import inspect
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ..acting.policy import DecisionMambaPolicy
from ..baselines.architectures import embeds_time
from ..data import Trajectories, WindowDataset, load_trajectories
from ..data.goals import Goals, GoalsFrom
from ..data.views import views_to_add
from ..data.windows import window_settings
from ..evaluation.environments import goal_places, make_environments, observation_order
from ..evaluation.rollouts import Job, PolicyActor, Recorder, Step, play
from ..model.observations_decision_mamba import describe_parts
from ..views import described_views, split_views
from .windows import INPUTS


@dataclass(frozen=True)
class PlayedEpisodes:
    """Episodes, and the returns-to-go with which the model reads them.

    Args:
        trajectories: what happened; with the goals that a policy of goals was asked for.
        returns_to_go: (N,) a row of each step, in the environment's units: of a rollout what was left of the target
            return, of a data set what was still to come; 0 where a model that is asked for nothing looks at data
            without rewards.
        numbers: the seeds that episodes were reset with; of a data set their places in it.
    """

    trajectories: Trajectories
    returns_to_go: NDArray[np.floating[Any]]
    numbers: list[int]


def play_episodes(
    policy: DecisionMambaPolicy,
    env_id: str,
    target_return: float | None,
    count: int,
    seed: int,
    progress: bool = True,
    env_kwargs: dict[str, Any] | None = None,
) -> PlayedEpisodes:
    """Play whole episodes one after the other; episode i is reset with `seed + i`, and may be asked for nothing.

    Raises:
        ImportError, ValueError: as `evaluate_policy`.
    """
    returns_to_go: list[float] = []
    goals: list[NDArray[Any]] = []
    envs = make_environments(env_id, 1, env_kwargs=env_kwargs)
    try:
        actor, recorder = PolicyActor(policy, envs, env_id, seed), Recorder(observation_order(envs, policy))

        places = goal_places(envs) if policy.condition_input == "goals" else []

        def observe(step: Step) -> None:
            recorder(step)
            goals.append(step.observations[0][places])
            returns_to_go.append(policy.returns_to_go[0])

        played = play(envs, actor, [Job(seed + number, target_return) for number in range(count)], observe)
        bar = tqdm(played, f"{env_id}: episodes to look into", count, disable=not progress)
        episodes = [recorder.take(episode) for episode in bar]
    finally:
        envs.close()
    discrete = policy.action_type == "discrete"
    start = policy.processor.action_start if discrete else 0
    trajectories = Trajectories.from_episodes(
        [{**episode.columns(), "actions": episode.actions - start} for episode in episodes],
        name=f"rollouts in {env_id}",
        env_id=env_id,
        num_actions=policy.act_dim if discrete else None,
    )
    if places:
        trajectories = replace(trajectories, goals=np.array(goals, np.float32))
    return PlayedEpisodes(trajectories, np.array(returns_to_go), [episode.seed for episode in episodes])


def chosen_episodes(policy: DecisionMambaPolicy, source: str, count: int, seed: int) -> PlayedEpisodes:
    """Draw episodes of a data set, all of them where there are no more.

    Raises:
        as `load_trajectories`, and ValueError: the data are of another kind than the model reads.
    """
    trajectories = _shown_alike(policy, load_trajectories(source))
    if policy.condition_input == "goals":
        trajectories = GoalsFrom().of(trajectories)
        wanted, found_dim = policy.model.config.goal_dim, trajectories.goal_dim
        if found_dim != wanted:
            held = f"goals of {found_dim} numbers" if found_dim else "no goals"
            raise ValueError(
                f"Data set {trajectories.name!r} has {held}, but the checkpoint is asked for goals of {wanted}; give "
                "data that have columns or parts of them, or leave --data out."
            )
    reads = (policy.state_type, policy.observation_shape, policy.action_type, policy.act_dim)
    seen = (trajectories.state_type, trajectories.observations.shape[1:])
    if seen == reads[:2] and trajectories.action_type != policy.action_type:  # which may have been said in training
        with suppress(ValueError):
            trajectories = _shown_alike(policy, load_trajectories(source, action_type=policy.action_type))
    actions = trajectories.act_dim
    if trajectories.action_type == "discrete":  # of which a data set may hold some alone
        actions = max(policy.act_dim, actions)
    holds = (trajectories.state_type, trajectories.observations.shape[1:], trajectories.action_type, actions)
    if reads != holds:
        raise ValueError(
            f"Data set {trajectories.name!r} holds {kind_of_policy(*holds)}, but the checkpoint reads "
            f"{kind_of_policy(*reads)}; give data of the environment that it was trained for."
        )
    if not trajectories.has_rewards and policy.condition_input == "returns_to_go":
        raise ValueError(
            f"Data set {trajectories.name!r} has no rewards, but the checkpoint is asked for a return; give data that "
            "have rewards."
        )
    known, found = policy.processor.observation_parts, trajectories.observation_parts
    if known and found and known != found:
        raise ValueError(
            f"Data set {trajectories.name!r} observes {describe_parts(found)}, but the checkpoint was trained on "
            f"{describe_parts(known)}; give data of the environment that it was trained for."
        )
    config, longest = policy.model.config, int(trajectories.lengths.max())
    if embeds_time(config) and longest > config.max_ep_len:
        raise ValueError(
            f"Data set {trajectories.name!r} has an episode of {longest} steps, but the checkpoint embeds time steps "
            f"and knows only those below max_ep_len={config.max_ep_len}; give shorter episodes."
        )
    chosen = np.zeros(trajectories.num_episodes, dtype=np.bool_)
    chosen[np.random.default_rng(seed).permutation(trajectories.num_episodes)[:count]] = True
    numbers = np.flatnonzero(chosen).tolist()
    trajectories = trajectories.select(chosen).compact()
    left = trajectories.returns_to_go if trajectories.has_rewards else np.zeros(trajectories.num_steps, np.float32)
    return PlayedEpisodes(trajectories, left, numbers)


def _shown_alike(policy: DecisionMambaPolicy, trajectories: Trajectories) -> Trajectories:
    """Return trajectories in the views that the policy was trained on."""
    known = trajectories.env_kwargs
    learned, shown = (split_views(env_kwargs)[0] for env_kwargs in (policy.processor.env_kwargs, known))
    if not {*shown} <= {*learned}:
        raise ValueError(
            f"Data set {trajectories.name!r} shows {described_views(shown)}, but the checkpoint was trained on "
            f"{described_views(learned)}; give data that show as much."
        )
    what, env_id = f"data set {trajectories.name!r}", trajectories.env_id or policy.processor.env_id
    return views_to_add(what, learned, known, env_id, known).of(trajectories)


class DecisionWindows:
    """What the policy reads before each decision of episodes, in the model's units.

    Args:
        policy: in window mode.
        played: the episodes.
    """

    def __init__(self, policy: DecisionMambaPolicy, played: PlayedEpisodes):
        processor = policy.processor
        self.lengths = played.trajectories.lengths
        self._firsts = played.trajectories.step_offsets()[:-1]
        self._returns_to_go = torch.from_numpy(processor.scale_returns(played.returns_to_go))
        goals: Goals | None = None
        if policy.condition_input == "goals":
            goals = "last" if played.trajectories.goals is None else "recorded"
        settings = {**window_settings(processor), "goals": goals}
        self._windows = WindowDataset(played.trajectories, policy.context_length, **settings)
        known = inspect.signature(policy.model.forward).parameters
        self._inputs = [name for name in INPUTS if name in known and (name != "goals" or goals is not None)]

    def read(self, episode: int, timesteps: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the windows (b, k) that end with an episode's decisions at time steps (b,); absent steps last."""
        starts = self._firsts[episode] + np.maximum(timesteps - self._windows.context_length + 1, 0)
        batch = self._windows.__getitems__(starts)
        batch["attention_mask"] *= batch["timesteps"] <= torch.from_numpy(timesteps)[:, None]
        rows = torch.from_numpy(starts)[:, None] + torch.arange(self._windows.context_length)
        batch["returns_to_go"] = self._returns_to_go[rows.clamp(max=len(self._returns_to_go) - 1)][..., None]
        return {name: batch[name] for name in self._inputs}

    def spaced(self, most: int) -> dict[str, Tensor]:
        """Return windows that do not overlap, spread over all episodes; about so many where there would be more."""
        context = self._windows.context_length
        spacing = max(context, math.ceil(int(self.lengths.sum()) / most))
        ends = [np.arange(min(context, length) - 1, length, spacing) for length in self.lengths]
        batches = [self.read(episode, timesteps) for episode, timesteps in enumerate(ends)]
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def kind_of_policy(state_type: str, shape: tuple[int, ...], action_type: str, actions: int) -> str:
    taken = f"{actions} discrete actions" if action_type == "discrete" else f"actions of {actions} dimensions"
    return f"{state_type} states of shape {shape} and {taken}"
