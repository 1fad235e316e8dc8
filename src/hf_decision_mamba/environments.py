"""Environments: made for rollouts, compared with what a policy reads and gives, and the returns that scores refer to.

Sources: D4RL (Fu et al. 2020, arXiv 2004.07219); for Atari the references of Wang et al. 2016 (arXiv 1511.06581), and
the preprocessing of Mnih et al. 2015 (Nature 518) as gymnasium's AtariPreprocessing does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from .policy import DecisionMambaPolicy

if TYPE_CHECKING:
    from gymnasium import Space
    from gymnasium.vector import VectorEnv


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
#: gymnasium's grammar of ids: [module:][namespace/]name[-vN].
_ENV_ID = re.compile(r"([^\W\d][\w.]*:)?([\w:-]+/)?[\w:.-]+")
_LONGEST_ENV_ID = 200

#: gymnasium's names where they are not the family's.
_FAMILIES = {"adroithandpen": "pen", "adroithanddoor": "door", "frankakitchen": "kitchen"}

#: Half an hour of play, no-ops included: 27,000 decisions (Hessel et al. 2018, arXiv 1710.02298).
ATARI_MAX_FRAMES = 108_000


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


def is_env_id(name: object) -> bool:
    """Whether something has the form of a gymnasium id, known or not: it may stand in code that others copy."""
    return isinstance(name, str) and len(name) <= _LONGEST_ENV_ID and _ENV_ID.fullmatch(name) is not None


def install_hint(env_id: str) -> str:
    """Return the command that installs what rollouts in an environment need."""
    extra = "atari" if _is_atari(env_id) else "mujoco"
    return f'pip install "hf_decision_mamba[{extra}]"'


def make_environments(
    env_id: str, count: int, max_episode_steps: int | None = None, *, render_mode: str | None = None
) -> VectorEnv:
    """Make a vector environment whose rows are reset by hand, or say what is missing.

    Atari games (`"ALE/Breakout-v5"`, `"BreakoutNoFrameskip-v4"`) are played the one standard way, whatever their id's
    defaults: 1 to 30 no-ops at the start, each action for 4 frames, grey frames of 84 x 84 pixels (not stacked: the
    policy does), no sticky actions, the game's minimal action set, whole episodes over all lives, at most
    108,000 frames, which are 27,000 decisions. Rewards are the game's points, not clipped. Nothing presses FIRE for the
    policy: where a game waits for it (Breakout), one that never does plays until the limit, and scores what it did.

    Dictionaries and tuples of observations (goals, sensors) are one vector, flattened as the data of Minari are.

    Args:
        env_id: gymnasium id.
        count: rows.
        max_episode_steps: truncates episodes that the environment itself would let go on; never lengthens them.
        render_mode: what `render()` of the vector environment gives, `"rgb_array"` for pictures; nothing without it.

    Raises:
        ImportError: gymnasium, or what the environment needs, is not installed.
        ValueError: no such environment.
    """
    hint = install_hint(env_id)
    try:
        import gymnasium
        from gymnasium.vector import AutoresetMode
        from gymnasium.wrappers import AtariPreprocessing, TimeLimit
    except ImportError as error:
        raise ImportError(f"Rollouts need gymnasium ({error}); install it with: {hint}") from error
    wrappers: list[Callable[..., Any]] = [_flattened]
    options: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    if _is_atari(env_id):
        _register_atari(env_id)
        options |= {
            "frameskip": 1,  # AtariPreprocessing skips
            "repeat_action_probability": 0.0,
            "full_action_space": False,
            "max_num_frames_per_episode": ATARI_MAX_FRAMES,
        }
        wrappers.append(partial(AtariPreprocessing, noop_max=30, frame_skip=4, screen_size=84))
    if max_episode_steps is not None:
        wrappers.append(partial(TimeLimit, max_episode_steps=max_episode_steps))
    try:
        return gymnasium.make_vec(
            env_id,
            num_envs=count,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
            wrappers=wrappers,
            **options,
        )
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"{env_id} needs a package that is missing ({error}); try: {hint}") from error
    except (gymnasium.error.Error, ImportError) as error:
        name = re.sub(r"-v\d+$", "", env_id)
        versions = [spec.version or 0 for spec in gymnasium.registry.values() if spec.name == name]
        if versions and env_id != f"{name}-v{max(versions)}":
            advice = f"use '{name}-v{max(versions)}'"
        else:
            advice = "check the spelling, or import the package that registers it first"
        raise ValueError(f"No environment {env_id!r}: {advice}. ({str(error).strip()})") from error


def check_spaces(env_id: str, envs: VectorEnv, policy: DecisionMambaPolicy) -> None:
    """Refuse an environment that is not the kind the policy was trained on.

    Raises:
        ValueError: it observes something else than the policy reads, or takes other actions than the policy gives.
    """
    shape, act_dim = policy.observation_shape, policy.act_dim
    reads = _frames(shape) if policy.state_type == "image" else f"{shape[0]} dimensions"
    gives = f"{act_dim} discrete actions" if policy.action_type == "discrete" else f"actions of shape ({act_dim},)"
    checkpoint = f"its checkpoint names the environment {policy.processor.env_id!r}."
    observes = _described_observations(envs.single_observation_space)
    if observes != reads:
        raise ValueError(f"{env_id} observes {observes}, but the policy was trained on {reads}; {checkpoint}")
    takes = _described_actions(envs.single_action_space)
    if takes != gives:
        raise ValueError(f"{env_id} takes {takes}, but the policy gives {gives}; {checkpoint}")


def _flattened(env: Any) -> Any:
    """An environment whose observations are vectors, where they were dictionaries or tuples."""
    from gymnasium import spaces
    from gymnasium.wrappers import FlattenObservation

    return FlattenObservation(env) if isinstance(env.observation_space, (spaces.Dict, spaces.Tuple)) else env


def _is_atari(env_id: str) -> bool:
    return re.search(r"(^|:)ALE/|NoFrameskip-v\d+$", env_id) is not None


def _register_atari(env_id: str) -> None:
    """Make the games known to gymnasium."""
    import gymnasium

    try:
        import ale_py
    except ImportError as error:
        raise ImportError(f"{env_id} needs ale-py ({error}); install it with: {install_hint(env_id)}") from error
    gymnasium.register_envs(ale_py)


def _frames(shape: tuple[int, ...]) -> str:
    return f"grey frames of {shape[0]} x {shape[1]} pixels"


def _described_observations(space: Space) -> str:
    """What an environment observes, in words that are equal exactly where a policy could read the one for the other."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return f"{space.shape[0]} dimensions"
    if isinstance(space, spaces.Box) and len(space.shape) == 2 and space.dtype == np.uint8:
        return _frames(space.shape)
    return str(space)


def _described_actions(space: Space) -> str:
    """What actions an environment takes, likewise."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return f"actions of shape {space.shape}"
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return f"{space.n} discrete actions"
    return f"actions from {space}"
