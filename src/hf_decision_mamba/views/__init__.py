"""Views: what of an environment is shown, to data and to policies alike, such as positions without velocities.

A view stands among the keyword arguments of an environment, `{"positions_only": true}`, and so goes wherever they go:
from a data set's card to trajectories, run record, checkpoint, evaluation and its card. A further one is an entry of
`VIEWS`. Needs gymnasium only where an environment is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gymnasium import Env


@dataclass(frozen=True)
class View:
    """One view.

    Args:
        meaning: what is shown, for cards.
        wrap: puts it around an environment.
        columns: returns which numbers (K,) of an environment's observations are shown; None where all are.
        rewards: returns what is shown of the rewards (T,) of a whole episode; None where all are.
    """

    meaning: str
    wrap: Callable[[Env[Any, Any]], Env[Any, Any]]
    columns: Callable[[Env[Any, Any]], NDArray[np.int64]] | None = None
    rewards: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None


def position_columns(env: Env[Any, Any]) -> NDArray[np.int64]:
    """Return which numbers (K,) of a MuJoCo environment's observations are positions; all others must be velocities.

    Environments of gymnasium's version 5 say it (`observation_structure`). Of older ones the sizes of the MuJoCo model
    do, and the state that a reset led to proves it.

    Raises:
        ValueError: it is no such environment.
    """
    base: Any = env.unwrapped
    structure, shape = getattr(base, "observation_structure", None), env.observation_space.shape or ()
    name, size = env.spec.id if env.spec is not None else type(base).__name__, shape[0] if len(shape) == 1 else 0
    if structure is not None:
        sizes = {part: count for part, count in structure.items() if part != "skipped_qpos" and count}
        if {*sizes} == {"qpos", "qvel"} and sum(sizes.values()) == size:
            return np.arange(sizes["qpos"])
        parts = ", ".join(sizes)
        raise ValueError(f"positions_only: {name} observes {parts}, and not positions and velocities alone.")
    if hasattr(base, "model") and hasattr(base, "data") and size > base.model.nv:
        seen, _ = env.reset(seed=0)
        positions = size - int(base.model.nv)
        if positions <= base.model.nq and np.array_equal(seen[:positions], base.data.qpos[-positions:]):
            return np.arange(positions)
    raise ValueError(f"positions_only: {name} does not observe positions and velocities of a MuJoCo model.")


def reward_at_the_end(rewards: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rewards (T,) that are 0 but for the last one, which is the sum of those given, added up in float64."""
    shown = np.zeros_like(rewards)
    shown[-1] = rewards.sum(dtype=np.float64)
    return shown


def _positions_only(env: Env[Any, Any]) -> Env[Any, Any]:
    from .wrappers import PositionsOnly

    return PositionsOnly(env)


def _delayed_reward(env: Env[Any, Any]) -> Env[Any, Any]:
    from .wrappers import DelayedReward

    return DelayedReward(env)


#: All views by their names, in the order in which they are put around an environment.
VIEWS = {
    # Ni et al. 2022 (arXiv 2110.05038, section 5.1), as far as MuJoCo goes.
    "positions_only": View("positions without velocities", _positions_only, columns=position_columns),
    # Chen et al. 2021 (Decision Transformer, section 5.7), which DeMa (arXiv 2405.12094) repeats.
    "delayed_reward": View("all reward at the end of an episode", _delayed_reward, rewards=reward_at_the_end),
}


def split_views(env_kwargs: Mapping[str, Any] | None) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the views among keyword arguments of an environment, and the others, which are for `gymnasium.make`.

    Raises:
        ValueError: a view is neither true nor false.
    """
    given = dict(env_kwargs or {})
    shown = {name: given.pop(name, False) for name in VIEWS}
    for name, value in shown.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be true or false.")
    return tuple(name for name, value in shown.items() if value), given


def with_agreed_views(
    who_was: str, learned: Mapping[str, Any] | None, env_kwargs: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return keyword arguments of an environment with the views that data or a policy are of.

    Args:
        who_was: the beginning of a sentence that ends with what they show.
        learned: the keyword arguments of the environment that they are of.
        env_kwargs: those wanted; what they do not say of views follows.

    Raises:
        ValueError: they say something else.
    """
    views, wanted = split_views(learned)[0], dict(env_kwargs or {})
    split_views(wanted)
    for name in VIEWS:
        if wanted.pop(name, name in views) != (name in views):
            raise ValueError(
                f"{name}={str(name not in views).lower()} for the environment, but {who_was} {described_views(views)}; "
                "leave it out: the environment shows the same by itself."
            )
    return {**wanted, **dict.fromkeys(views, True)} or None


def with_views(env: Env[Any, Any], names: Sequence[str]) -> Env[Any, Any]:
    """Put views around an environment, but for those that are around it already.

    Raises:
        ValueError: there is no such view, or none of this environment.
    """
    for name in names:
        if name not in VIEWS:
            raise ValueError(f"{name!r} is no view of an environment; there are {', '.join(VIEWS)}.")
    for name, view in VIEWS.items():
        if name in names and name not in views_around(env):
            env = view.wrap(env)
    return env


def views_around(env: Any) -> tuple[str, ...]:
    """Return the names of the views that are around an environment, in the order of `VIEWS`."""
    found: list[str] = []
    while hasattr(env, "env"):
        found += [env.view] if isinstance(getattr(type(env), "view", None), str) else []
        env = env.env
    return tuple(name for name in VIEWS if name in found)


def described_views(views: Sequence[str]) -> str:
    """Say in words what views show."""
    return " and ".join(f"{name} ({VIEWS[name].meaning})" for name in views) or "all that there is"
