"""The returns that normalised scores refer to.

Sources: D4RL (Fu et al. 2020, arXiv 2004.07219); for Atari Wang et al. 2016 (arXiv 1511.06581)."""

from __future__ import annotations

import re
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray


class ScoreReference(NamedTuple):
    """The returns that score 0 and 100, and what they are: `"D4RL"` or `"random/human"`."""

    minimum: float
    maximum: float
    source: str


#: Returns of a random and of an expert policy, by environment family: D4RL's released `REF_MIN_SCORE`, `REF_MAX_SCORE`.
_D4RL: dict[str, tuple[float, float]] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "maze2d-umaze": (23.85, 161.86),
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
    "pen": (96.262799, 3076.8331),
    "door": (-56.512833, 2880.5693),
}
#: Returns of a random policy and of a human, by game: the gamer-normalised scores of Atari (Wang et al. 2016).
_ATARI: dict[str, tuple[float, float]] = {
    "breakout": (1.7, 30.5),
    "pong": (-20.7, 14.6),
    "qbert": (163.9, 13455.0),
    "seaquest": (68.4, 42054.7),
    "spaceinvaders": (148.0, 1668.7),
}
SCORE_REFERENCES: dict[str, ScoreReference] = {
    **{family: ScoreReference(*returns, "D4RL") for family, returns in _D4RL.items()},
    **{game: ScoreReference(*returns, "random/human") for game, returns in _ATARI.items()},
}

#: gymnasium's names where they are not the family's.
_FAMILIES = {"adroithandpen": "pen", "adroithanddoor": "door", "frankakitchen": "kitchen"}


def score_reference(env_id: str | None) -> ScoreReference | None:
    """Return the reference returns of an environment's family, None where there are none.

    Versions and namespaces do not matter: `"Hopper-v5"`, `"Hopper-v4"` and `"hopper"` are one family, and so are
    `"ALE/Pong-v5"` and `"PongNoFrameskip-v4"`.
    """
    name = re.sub(r"(NoFrameskip)?-v\d+$", "", (env_id or "").rsplit("/")[-1].rsplit(":")[-1]).lower()
    return SCORE_REFERENCES.get(_FAMILIES.get(name, name))


@overload
def normalized_score(env_id: str | None, returns: float) -> float | None: ...


@overload
def normalized_score(env_id: str | None, returns: NDArray[np.float64]) -> NDArray[np.float64] | None: ...


def normalized_score(env_id: str | None, returns: float | NDArray[np.float64]) -> float | NDArray[np.float64] | None:
    """Return 100 · (return - minimum) / (maximum - minimum) of `score_reference`, None where there is none."""
    reference = score_reference(env_id)
    if reference is None:
        return None
    return 100.0 * (returns - reference.minimum) / (reference.maximum - reference.minimum)
