"""Rollouts in gymnasium's vector environments: how all episodes of the package are played, and how policies are scored.

The protocol is the caller's: every result states its target returns, episodes and seeds, and no episode is left out.
Source of the normalised score: D4RL (Fu et al. 2020, arXiv 2004.07219, section 6); of Atari's, see environments.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..acting.checks import check_policy
from ..acting.policy import DecisionMambaPolicy
from ..data.recording import Episode, EpisodeBuilder
from ..model.observations_decision_mamba import DESIRED
from ..reporting.figures import number
from ..reporting.versions import package_versions
from .environments import (
    check_spaces,
    env_kwargs_for,
    environment_kwargs,
    environment_name,
    goal_places,
    make_environments,
    observation_order,
)
from .result import EvaluationResult
from .scores import normalized_score

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from .environments import Environment

_ROWS = 20  # environments at once: enough to make a batch worth its while, few enough to waste little at the end
_IDLE = -1  # in the place of a job's number
_SUCCESS = ("success", "is_success")  # what environments call it


# How episodes are played


class Job(NamedTuple):
    """An episode to play: the seed of its reset, and the return to ask for; None asks for the actor's own."""

    seed: int
    target_return: float | None = None


class PlayedEpisode(NamedTuple):
    """What became of a job.

    Attributes:
        number: of the job, counted from 0.
        seed: that the environment was reset with; the job's, where rows can be reset one by one.
        total: the return.
        length: steps.
        terminated: by the task, as opposed to truncated by a time limit.
        success: what the environment's `info` said at the end, under `success` or `is_success`; None for nothing.
    """

    number: int
    seed: int
    total: float
    length: int
    terminated: bool
    success: bool | None


class Step(NamedTuple):
    """One step of all n rows, for an observer, who copies what it keeps.

    Attributes:
        numbers: (n,) of the rows' jobs; -1 for an idle row, which nobody counts.
        seeds: (n,) that the rows were reset with.
        observations: (n, ...) that the actions were chosen from.
        actions: (n, ...)
        rewards: (n,) that the actions earned.
        ended: the episodes that end with this step.
    """

    numbers: NDArray[np.int64]
    seeds: NDArray[np.int64]
    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.float64]
    ended: list[PlayedEpisode]

    def running(self) -> Iterator[tuple[int, int]]:
        """Yield row and job's number of the rows that are not idle."""
        return ((row, job) for row, job in enumerate(self.numbers.tolist()) if job != _IDLE)


class Actor(Protocol):
    """What acts in all rows of a vector environment, each an episode of its own."""

    def reset(self, jobs: Sequence[Job]) -> None:
        """Start new episodes in all rows, one job each; the environment has been reset."""

    def reset_rows(self, rows: NDArray[np.bool_], jobs: Sequence[Job]) -> None:
        """Start new episodes in the rows of a mask (n,), one job for each of them."""

    def act(self, observations: NDArray[Any], rewards: NDArray[np.float64] | None) -> NDArray[Any]:
        """Return the next actions (n, ...); the rewards (n,) are those of the previous ones, None at the first step."""


#: Sees every step, and returns whether to stop after it.
Observer: TypeAlias = Callable[[Step], object]


def play(
    envs: VectorEnv, actor: Actor, jobs: Iterable[Job], observe: Observer = lambda step: False
) -> Iterator[PlayedEpisode]:
    """Play jobs in the rows of a vector environment, and yield what became of them, in their order.

    A row whose episode ends takes the next job, however long the others last, so that short episodes are not favoured;
    when none is left it repeats the last one, which nobody counts, until all have ended. Rows that cannot be reset one
    by one begin together, with the seed of the first, and each waits for the last one.

    Args:
        envs: made by `make_environments`; its rows do not reset themselves.
        actor: what acts; its n-th episode is the n-th job.
        jobs: as many as are wanted, or without an end.
        observe: is given every step. Where it returns what is true, nothing is played after that step; the episodes
            that have ended by then are yielded, also those behind one that has not.
    """
    together, waiting = not getattr(envs, "resets_rows", True), enumerate(jobs)
    last: tuple[int, Job] = (_IDLE, Job(0))
    numbers, playing = np.full(envs.num_envs, _IDLE), [last[1]] * envs.num_envs
    returns, lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, dtype=np.int64)
    ended: dict[int, PlayedEpisode] = {}
    following = 0

    def take_jobs(rows: NDArray[np.bool_]) -> None:
        nonlocal last
        for row in np.flatnonzero(rows):
            last = next(waiting, (_IDLE, last[1]))
            numbers[row], playing[row] = last

    take_jobs(numbers == _IDLE)
    if (numbers == _IDLE).all():
        return
    observations, seeds = _reset(envs, playing)
    actor.reset(playing)
    rewards: NDArray[np.float64] | None = None
    while True:
        actions, seen = actor.act(observations, rewards), observations
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        returns += rewards
        lengths += 1
        over = terminated | truncated
        now = [
            PlayedEpisode(
                int(numbers[row]),
                int(seeds[row]),
                float(returns[row]),
                int(lengths[row]),
                bool(terminated[row]),
                success_of(infos, row),
            )
            for row in np.flatnonzero(over & (numbers != _IDLE)).tolist()
        ]
        ended |= {episode.number: episode for episode in now}
        stops = observe(Step(numbers, seeds, seen, actions, rewards, now))
        while following in ended:
            yield ended.pop(following)
            following += 1
        if stops:
            yield from (ended[job] for job in sorted(ended))
            return
        if not over.any():
            continue
        numbers[over] = _IDLE
        begins = not together
        if together and (numbers == _IDLE).all():
            begins, over = True, np.ones_like(over)
        if begins:
            take_jobs(over)
        if (numbers == _IDLE).all():
            return
        if begins:
            observations, seeds = _reset(envs, playing, over)
        returns[over], lengths[over] = 0.0, 0
        actor.reset_rows(over, [playing[row] for row in np.flatnonzero(over)])


def _reset(
    envs: Any,  # gymnasium's VectorEnv, whose type hides that a reset takes one seed per row
    jobs: Sequence[Job],
    rows: NDArray[np.bool_] | None = None,
) -> tuple[Any, NDArray[np.int64]]:
    """Reset rows (all when not given) with a seed each, or all with the first; return observations and seeds (n,)."""
    seeds = np.array([job.seed for job in jobs])
    if getattr(envs, "resets_rows", True):
        return envs.reset(seed=seeds.tolist(), options=None if rows is None else {"reset_mask": rows})[0], seeds
    return envs.reset(seed=int(seeds[0]))[0], np.full_like(seeds, seeds[0])


def success_of(infos: Mapping[str, Any], row: int) -> bool | None:
    """Return whether the `info` of a row's last step calls it a success; None where it says nothing.

    Args:
        infos: by name, n values, as gymnasium's vector environments give them.
        row: one of n.
    """
    for info in (infos.get("final_info", {}), infos):  # rows that reset themselves at once keep the last step's apart
        for name in _SUCCESS:
            said = name in info and (f"_{name}" not in info or info[f"_{name}"][row])
            value = np.asarray(info[name][row] if said else None)
            if value.size == 1 and value.dtype.kind in "biuf" and np.isfinite(value).all():
                return bool(value.item())
    return None


class PolicyActor:
    """A policy as an actor: it reads and acts in the order and within the bounds of its environments.

    Args:
        policy: is reset, and asked for the target returns of the jobs.
        envs: made by `make_environments`.
        name: what errors call them.
        seed: of the policy's draws, from its first episode on.

    Raises:
        ValueError: they observe something else than the policy reads, or take other actions than the policy gives.
    """

    def __init__(self, policy: DecisionMambaPolicy, envs: VectorEnv, name: str, seed: int):
        check_spaces(name, envs, policy)
        self.policy, self._seed = policy, seed
        self._space: Any = envs.single_action_space
        self._order = observation_order(envs, policy)
        self._goal_places = goal_places(envs) if policy.condition_input == "goals" else None

    def reset(self, jobs: Sequence[Job]) -> None:
        """Start new episodes in all rows."""
        self.policy.reset(_target_returns(jobs), num_envs=len(jobs), seed=self._seed)

    def reset_rows(self, rows: NDArray[np.bool_], jobs: Sequence[Job]) -> None:
        """Start new episodes in some rows."""
        self.policy.reset_rows(rows, _target_returns(jobs))

    def act(self, observations: NDArray[Any], rewards: NDArray[np.float64] | None) -> NDArray[Any]:
        """Return the next actions (n, ...) of the environments' type and within their bounds; the policy sees these."""
        seen: Any = observations[:, self._order]
        if self._goal_places is not None:
            seen = {"observation": seen, DESIRED: observations[:, self._goal_places]}
        chosen = np.reshape(self.policy.act(seen, rewards), (len(observations), *self._space.shape))
        actions: NDArray[Any] = chosen.astype(self._space.dtype)
        if self.policy.action_type == "continuous":
            actions = np.clip(actions, self._space.low, self._space.high)
            if not np.array_equal(actions, chosen):
                self.policy.override_actions(actions)
        return actions

    def override_actions(self, actions: NDArray[Any]) -> None:
        """Tell the policy which actions (n, ...) were taken instead."""
        self.policy.override_actions(actions)


def _target_returns(jobs: Sequence[Job]) -> list[Any] | None:
    targets = [job.target_return for job in jobs]
    return None if None in targets else targets


class Recorder:
    """An observer that keeps every step, and gives the episodes that have ended as a data set has them.

    Args:
        order: of the observations' dimensions.
    """

    def __init__(self, order: NDArray[np.int64] | slice | None = slice(None)):
        self._order, self._builders = order, dict[int, EpisodeBuilder]()

    def __call__(self, step: Step) -> None:
        """Keep a step."""
        for row, job in step.running():
            if job not in self._builders:
                self._builders[job] = EpisodeBuilder(int(step.seeds[row]))
            seen = step.observations[row][self._order]
            self._builders[job].add(seen, step.actions[row], float(step.rewards[row]))

    def take(self, episode: PlayedEpisode) -> Episode:
        """Return an episode that has ended, and keep it no longer.

        Raises:
            ValueError: an observation, action or reward is not finite in float32.
        """
        return self._builders.pop(episode.number).finish(episode.terminated, episode.success)


# How policies are scored


def evaluate_policy(
    policy: DecisionMambaPolicy,
    env_id: Environment | None = None,
    *,
    episodes: int = 20,
    target_returns: float | Sequence[float] | None = None,
    seed: int = 0,
    num_envs: int | None = None,
    max_episode_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Roll a policy out in a gymnasium environment and measure the returns.

    Exactly the episodes asked for are run and counted, however long they last, so that short ones are not favoured.
    Episode i starts from seed `seed + i` for every target return. A row whose episode ends takes the next one; when
    none is left it repeats episodes that nobody counts, until the last row is done. Results do not depend on
    `num_envs`, but for the rounding of larger matrix products. The policy is reset. Atari games are made as
    `make_environments` says; returns are their points, and so is what comes off the return-to-go.

    Args:
        policy: what acts.
        env_id: a gymnasium id; an environment or a vector environment, which stays open; or a function that makes one.
            `policy.processor.env_id` when not given. A single environment plays one episode at a time. A vector
            environment has rows of its own; where they cannot be reset one by one with seeds of their own (gymnasium's
            SyncVectorEnv and AsyncVectorEnv can), they begin together, and each waits for the last one.
        episodes: per target return.
        target_returns: returns to ask for, in the environment's units; `policy.processor.target_return` when not given,
            none of a model without a condition, nor of one of goals, which the environment says.
        seed: of the first episode, and of the draws of a policy that samples; 0 or greater.
        num_envs: environments that run at once; 20 when not given, never more than there are episodes.
        max_episode_steps: ends episodes earlier than the environment does; such a row has `terminated` False.
        env_kwargs: keyword arguments for `gymnasium.make`, with an id; `policy.processor.env_kwargs` when not given and
            the environment is the checkpoint's. The views that the policy was trained on (positions alone, ...) are put
            around every environment.
        progress: whether to show a progress bar.

    Raises:
        ImportError: gymnasium, or what the environment needs, is not installed.
        TypeError: `policy` is no policy.
        ValueError: no or an unknown environment, one whose observations or actions are not what the policy was trained
            on, that raises an error or gives what is not finite, no target return, or a number that makes no sense.
    """
    check_policy(policy)
    env_kwargs = env_kwargs_for(policy, env_id, env_kwargs)
    env = policy.processor.env_id if env_id is None else env_id
    if env is None:
        raise ValueError("No environment: this checkpoint stores none. Say which one with env_id='Hopper-v5' or so.")
    targets = _checked_targets(policy, target_returns)
    for name, value, least in (
        ("episodes", episodes, 1),
        ("num_envs", num_envs, 1),
        ("max_episode_steps", max_episode_steps, 1),
        ("seed", seed, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name}={value} must be at least {least}.")
    jobs = [Job(seed + episode, target) for target in targets for episode in range(episodes)]
    envs = make_environments(env, min(num_envs or _ROWS, len(jobs)), max_episode_steps, env_kwargs=env_kwargs)
    try:
        name = env if isinstance(env, str) else environment_name(envs)
        if not isinstance(env, str):
            env_kwargs = environment_kwargs(envs)
        if num_envs not in (None, envs.num_envs) and not (isinstance(env, str) or callable(env)):
            raise ValueError(f"num_envs={num_envs}, but {name} is given with {envs.num_envs}; leave it out.")
        actor = PolicyActor(policy, envs, name, seed)
        with tqdm(total=len(jobs), desc=name, unit="episode", disable=not progress) as bar:
            watch = _Watch(bar, dict.fromkeys(range(0, len(jobs), episodes)))
            played = list(play(envs, actor, jobs, watch))
    finally:
        envs.close()
    return EvaluationResult(
        env_id=name,
        mode=policy.mode,
        context_length=policy.context_length if policy.mode == "window" else None,
        seed=seed,
        episodes=_rows(name, jobs, played, episodes),
        versions=package_versions(),
        max_episode_steps=max_episode_steps,
        temperature=policy.temperature if policy.sample else None,
        env_kwargs=env_kwargs,
        actions={targets[job // episodes]: np.stack(actions) for job, actions in watch.actions.items()},
    )


class _Watch:
    """Shows how far an evaluation is, and keeps the actions of some episodes.

    Args:
        bar: of the episodes.
        kept: numbers of the jobs whose actions are kept.
    """

    def __init__(self, bar: tqdm, kept: Iterable[int]):
        self.actions: dict[int, list[NDArray[Any]]] = {job: [] for job in kept}
        self._bar, self._steps, self._started, self._shown = bar, 0, time.monotonic(), 0.0
        self._returns: list[float] = []

    def __call__(self, step: Step) -> None:
        """See a step."""
        for row, job in step.running():
            self._steps += 1
            if job in self.actions:
                self.actions[job].append(step.actions[row].copy())
        self._returns += [episode.total for episode in step.ended]
        self._bar.update(len(step.ended))
        if time.monotonic() - self._shown > 0.5 or len(self._returns) == self._bar.total:
            self._shown = time.monotonic()
            mean = number(float(np.mean(self._returns)), 1, "") if self._returns else "-"
            rate = self._steps / max(self._shown - self._started, 1e-9)
            self._bar.set_postfix({"mean return": mean, "steps/s": f"{rate:,.0f}"})


def _rows(env_id: str, jobs: Sequence[Job], played: Sequence[PlayedEpisode], episodes: int) -> list[dict[str, Any]]:
    """Return what `EvaluationResult` keeps of each episode; `success` only where the environment speaks of it."""
    for episode in played:
        if not math.isfinite(episode.total):
            raise ValueError(
                f"{env_id} gave rewards that add up to {episode.total} in the episode with seed {episode.seed}; "
                "returns need finite rewards."
            )
    told = any(episode.success is not None for episode in played)
    return [
        {
            "target_return": jobs[episode.number].target_return,
            "episode": episode.number % episodes,
            "seed": episode.seed,
            "return": episode.total,
            "length": episode.length,
            "terminated": episode.terminated,
            "normalized_score": normalized_score(env_id, episode.total),
            **({"success": episode.success} if told else {}),
        }
        for episode in played
    ]


def _checked_targets(policy: DecisionMambaPolicy, target_returns: float | Sequence[float] | None) -> list[Any]:
    targets = policy.processor.target_return if target_returns is None else target_returns
    if policy.condition_input == "goals" and target_returns is not None:
        raise ValueError(
            f"target_returns={target_returns} cannot be asked for: this policy is asked for goals, which the "
            "environment says; leave it out."
        )
    if policy.condition_input == "goals" or (targets is None and policy.condition_input is None):
        return [None]  # it is asked for no return
    if targets is None:
        raise ValueError("No target return: this checkpoint stores none. Say which with target_returns=[...].")
    values = [float(target) for target in np.atleast_1d(np.asarray(targets, dtype=np.float64))]
    if not values or not np.isfinite(values).all():
        raise ValueError(f"target_returns={target_returns} must be one finite number or more.")
    return list(dict.fromkeys(values))
