"""How good a policy is: rollouts in gymnasium's vector environments, normalised scores and their uncertainty.

The protocol is the caller's: every result states its target returns, episodes and seeds, and no episode is left out.
Source of the normalised score: D4RL (Fu et al. 2020, arXiv 2004.07219, section 6); of Atari's, see environments.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..acting.policy import DecisionMambaPolicy
from ..reporting.figures import number
from ..reporting.versions import package_versions
from .environments import check_spaces, decide, env_kwargs_for, environment_kwargs, environment_name, make_environments
from .result import EvaluationResult
from .scores import normalized_score

if TYPE_CHECKING:
    from .environments import Environment

logger = logging.getLogger(__name__)

_ROWS = 20  # environments at once: enough to make a batch worth its while, few enough to waste little at the end


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
        target_returns: returns to ask for, in the environment's units; `policy.processor.target_return` when not given.
        seed: of the first episode, and of the draws of a policy that samples; 0 or greater.
        num_envs: environments that run at once; 20 when not given, never more than there are episodes.
        max_episode_steps: ends episodes earlier than the environment does; such a row has `terminated` False.
        env_kwargs: keyword arguments for `gymnasium.make`, with an id; `policy.processor.env_kwargs` when not given and
            the environment is the checkpoint's.
        progress: whether to show a progress bar.

    Raises:
        ImportError: gymnasium, or what the environment needs, is not installed.
        ValueError: no or an unknown environment, one whose observations or actions are not what the policy was trained
            on, that raises an error or gives what is not finite, no target return, or a number that makes no sense.
    """
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
    jobs = [(target, episode) for target in targets for episode in range(episodes)]
    envs = make_environments(env, min(num_envs or _ROWS, len(jobs)), max_episode_steps, env_kwargs=env_kwargs)
    try:
        name = env if isinstance(env, str) else environment_name(envs)
        if not isinstance(env, str):
            env_kwargs = environment_kwargs(envs)
        if num_envs not in (None, envs.num_envs) and not (isinstance(env, str) or callable(env)):
            raise ValueError(f"num_envs={num_envs}, but {name} is given with {envs.num_envs}; leave it out.")
        check_spaces(name, envs, policy)
        with tqdm(total=len(jobs), desc=name, unit="episode", disable=not progress) as bar:
            rows, actions = _run(policy, name, envs, jobs, seed, bar)
    finally:
        envs.close()
    return EvaluationResult(
        env_id=name,
        mode=policy.mode,
        context_length=policy.context_length if policy.mode == "window" else None,
        seed=seed,
        episodes=rows,
        versions=package_versions(),
        max_episode_steps=max_episode_steps,
        temperature=policy.temperature if policy.sample else None,
        env_kwargs=env_kwargs,
        actions=actions,
    )


def _run(
    policy: DecisionMambaPolicy,
    env_id: str,
    envs: Any,  # gymnasium's VectorEnv, whose type hides that a reset takes one seed per row
    jobs: list[tuple[float, int]],
    seed: int,
    bar: tqdm,
) -> tuple[list[dict[str, Any]], dict[float, NDArray[Any]]]:
    """Run every job (target return, episode) once; return rows in the order of jobs, and actions of first episodes."""
    count, last = envs.num_envs, len(jobs) - 1
    targets, seeds = np.array([target for target, _ in jobs]), np.array([seed + episode for _, episode in jobs])
    current, waiting = np.arange(count), count  # each row's job; beyond the last one the row is idle
    together = not getattr(envs, "resets_rows", True)  # all rows begin at once, each waits for the last one
    returns, lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
    finished: dict[int, dict[str, Any]] = {}
    first: dict[int, list[Any]] = {job: [] for job, (_, episode) in enumerate(jobs) if episode == 0}
    started, shown, steps = time.monotonic(), 0.0, 0

    jobs_now = np.minimum(current, last)
    observations, given = _reset(envs, seeds[jobs_now])
    policy.reset(target_return=targets[jobs_now], seed=seed)  # the policy's n-th episode is the n-th job
    rewards: NDArray[np.float64] | None = None
    while True:
        actions = decide(policy, envs, observations, rewards)
        for place, job in enumerate(current.tolist()):
            if job in first:
                first[job].append(actions[place].copy())
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        returns += rewards
        lengths += 1
        steps += int(np.count_nonzero(current <= last))
        if not np.isfinite(returns).all():
            bad = int(np.flatnonzero(~np.isfinite(returns))[0])
            raise ValueError(
                f"{env_id} gave the reward {rewards[bad]} at step {lengths[bad] - 1} of the episode with seed "
                f"{given[bad]}; returns need finite rewards."
            )
        over = terminated | truncated
        for row in np.flatnonzero(over):
            if current[row] <= last:
                target, episode = jobs[current[row]]
                finished[int(current[row])] = {
                    "target_return": target,
                    "episode": episode,
                    "seed": int(given[row]),
                    "return": float(returns[row]),
                    "length": int(lengths[row]),
                    "terminated": bool(terminated[row]),
                    "normalized_score": normalized_score(env_id, float(returns[row])),
                }
                bar.update()
            current[row], waiting = (last + 1, waiting) if together else (waiting, waiting + 1)
        if time.monotonic() - shown > 0.5 or len(finished) == len(jobs):
            shown = time.monotonic()
            mean = number(float(np.mean([row["return"] for row in finished.values()])), 1, "") if finished else "-"
            bar.set_postfix({"mean return": mean, "steps/s": f"{steps / max(shown - started, 1e-9):,.0f}"})
        if len(finished) == len(jobs):
            taken = {jobs[job][0]: np.stack(series) for job, series in first.items()}
            return [finished[job] for job in range(len(jobs))], taken
        resets = over.any() and not together
        if together and (current > last).all():
            current, waiting, over, resets = waiting + np.arange(count), waiting + count, np.ones_like(over), True
        jobs_now = np.minimum(current, last)
        if resets:
            observations, given = _reset(envs, seeds[jobs_now], over)
        if over.any():
            returns[over], lengths[over] = 0.0, 0
            policy.reset_rows(over, target_return=targets[jobs_now[over]])


def _reset(envs: Any, seeds: NDArray[np.int64], rows: NDArray[np.bool_] | None = None) -> tuple[Any, NDArray[np.int64]]:
    """Reset rows (all when not given) with a seed each, or all with the first; return observations and seeds (n,)."""
    if getattr(envs, "resets_rows", True):
        return envs.reset(seed=seeds.tolist(), options=None if rows is None else {"reset_mask": rows})[0], seeds
    return envs.reset(seed=int(seeds[0]))[0], np.full_like(seeds, seeds[0])


def _checked_targets(policy: DecisionMambaPolicy, target_returns: float | Sequence[float] | None) -> list[float]:
    targets = policy.processor.target_return if target_returns is None else target_returns
    if targets is None:
        raise ValueError("No target return: this checkpoint stores none. Say which with target_returns=[...].")
    values = [float(target) for target in np.atleast_1d(np.asarray(targets, dtype=np.float64))]
    if not values or not np.isfinite(values).all():
        raise ValueError(f"target_returns={target_returns} must be one finite number or more.")
    return list(dict.fromkeys(values))
