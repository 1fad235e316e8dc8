"""Trajectories as a view of their environment shows them: without velocities, with the reward at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..views import VIEWS, split_views
from .trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class DataViews:
    """Views to put on the data of one environment; made by `views_to_add`.

    Args:
        names: of the views.
        columns: which numbers (K,) of the environment's observations are shown; None for all.
        size: how many numbers there are to choose from.
    """

    names: tuple[str, ...] = ()
    columns: NDArray[np.int64] | None = None
    size: int = 0

    def of(self, trajectories: Trajectories) -> Trajectories:
        """Return trajectories as the views show them; their `env_kwargs` say so, and columns that change are copies.

        Raises:
            ValueError: the observations are not the environment's, or there are no rewards that a view could change.
        """
        if not self.names:
            return trajectories
        changed: dict[str, Any] = {"env_kwargs": {**(trajectories.env_kwargs or {}), **dict.fromkeys(self.names, True)}}
        if self.columns is not None:
            self._check_observations(trajectories)
            changed["observations"] = np.ascontiguousarray(trajectories.observations[:, self.columns])
            changed["observation_parts"] = None  # which describe more
        for name in self.names:
            shown = VIEWS[name].rewards
            if shown is not None:
                if trajectories.rewards is None:
                    raise ValueError(
                        f"data set {trajectories.name!r}: {name} changes rewards, and it has none; leave it out, or "
                        "give rewards_from='COLUMN' (--rewards_from)"
                    )
                rewards = changed["rewards"] = np.array(changed.get("rewards", trajectories.rewards))
                for start, end in zip(trajectories.starts, trajectories.starts + trajectories.lengths, strict=True):
                    rewards[start:end] = shown(rewards[start:end])
        return replace(trajectories, **changed)

    def _check_observations(self, trajectories: Trajectories) -> None:
        found, name = trajectories.observations.shape[1:], trajectories.name
        if found != (self.size,) or trajectories.state_type == "image":
            views = " and ".join(self.names)
            raise ValueError(
                f"data set {name!r}: {views} would leave out some of the {self.size} numbers that its environment "
                f"shows, but its observations have the shape {found}. It is of another environment, or they are left "
                f"out already: then say it in its card, `environment: {{env_kwargs: {{{self.names[0]}: true}}}}`"
            )


def views_to_add(
    what: str,
    names: Sequence[str],
    have: Mapping[str, Any] | None,
    env_id: str | None,
    env_kwargs: Mapping[str, Any] | None = None,
    advice: str = "correct `environment: {id: ...}` in its card, or the JSON file beside it",
) -> DataViews:
    """Find out what views show of data that have none of them yet.

    Args:
        what: whose data they are, for errors.
        names: of the views; those that the data have already are not added.
        have: the `env_kwargs` of the data.
        env_id: gymnasium id of their environment, which is made where it has to say what there is to see.
        env_kwargs: keyword arguments to make it with.
        advice: what can be done where it is not known or cannot be made.

    Raises:
        ImportError: gymnasium, or what the environment needs, is not installed.
        ValueError: the environment is not known, or shows nothing of this kind.
    """
    names = tuple(name for name in names if name not in split_views(have)[0])
    asking = [name for name in names if VIEWS[name].columns is not None]
    if not asking:
        return DataViews(names)
    if env_id is None:
        raise ValueError(f"{what}: {asking[0]} asks the environment what it shows, and nothing names it: {advice}")
    env = _made(what, asking[0], env_id, split_views(env_kwargs)[1], advice)
    try:
        size = int(np.prod(env.observation_space.shape or ()))
        columns = np.arange(size)
        for name in asking:
            shown = VIEWS[name].columns
            assert shown is not None
            columns, env = columns[shown(env)], VIEWS[name].wrap(env)
        return DataViews(names, columns, size)
    finally:
        env.close()


def _made(what: str, view: str, env_id: str, env_kwargs: Mapping[str, Any], advice: str) -> Any:
    try:
        import gymnasium
        from gymnasium.error import DependencyNotInstalled, Error
    except ImportError as error:
        raise _missing(view, env_id, error) from error
    try:
        return gymnasium.make(env_id, **env_kwargs)
    except (DependencyNotInstalled, ImportError) as error:
        raise _missing(view, env_id, error) from error
    except (Error, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{what}: {view} asks {env_id} what it shows, which cannot be made ({reason}): {advice}"
        ) from error


def _missing(view: str, env_id: str, error: Exception) -> ImportError:
    return ImportError(
        f"{view} asks {env_id} what it shows, for which a package is missing ({' '.join(str(error).split())}); install "
        'it with: pip install "hf_decision_mamba[mujoco]"'
    )
