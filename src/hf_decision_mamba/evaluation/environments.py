"""Environments: made for rollouts, compared with what a policy reads and gives, and the returns that scores refer to.

Sources: D4RL (Fu et al. 2020, arXiv 2004.07219); for Atari the references of Wang et al. 2016 (arXiv 1511.06581), and
the preprocessing of Mnih et al. 2015 (Nature 518) as gymnasium's AtariPreprocessing does it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..acting.policy import DecisionMambaPolicy
from ..data.metadata import describe_actions, describe_env_kwargs, is_frame
from ..model.observations_decision_mamba import ACHIEVED, DESIRED, describe_parts, leave_achieved_out, part_places
from ..reporting.env_ids import OGBENCH, POPGYM, ROBOTICS, is_atari, registering_module
from ..views import described_views, split_views, views_around, with_agreed_views, with_views

if TYPE_CHECKING:
    from gymnasium import Env, Space
    from gymnasium.envs.registration import EnvSpec
    from gymnasium.vector import VectorEnv

    Environment: TypeAlias = str | Env[Any, Any] | VectorEnv | Callable[[], Env[Any, Any] | VectorEnv]

#: What is installed for gymnasium's environments, by the module that they are in.
_EXTRAS = {
    "gymnasium.envs.box2d": 'pip install "gymnasium[box2d]"',
    "gymnasium.envs.toy_text": 'pip install "gymnasium[toy-text]"',
    "gymnasium.envs.classic_control": 'pip install "gymnasium[classic-control]"',
    "gymnasium_robotics": 'pip install "hf_decision_mamba[robotics]"',
    "popgym": 'pip install "hf_decision_mamba[popgym]"',
    "ogbench": 'pip install "hf_decision_mamba[ogbench]"',
}

#: Warnings of OGBench's robot arm that mean nothing: it makes its action space anew all the time, and says of no
#: render mode that it has it; and what importing its simulator says where there is no display.
_OF_OGBENCH = (".*precision lowered by casting", ".*initialised with render_mode", ".*DISPLAY environment variable")

#: Half an hour of play, no-ops included: 27,000 decisions (Hessel et al. 2018, arXiv 1710.02298).
ATARI_MAX_FRAMES = 108_000


def install_hint(env_id: str) -> str:
    """Return the command that installs what rollouts in an environment need, with pictures and videos of them."""
    extra = "atari" if is_atari(env_id) else "mujoco"
    return f'pip install "hf_decision_mamba[{extra}]"'


def parse_env_kwargs(option: str, text: str | None) -> dict[str, Any] | None:
    """Return the keyword arguments for `gymnasium.make` that an option gives as JSON.

    Raises:
        ValueError: it is no JSON object.
    """
    if text is None:
        return None
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError(f"{option} {text!r} is not of the form '{{\"reset_noise_scale\": 0.1}}'.")
    return arguments


def env_kwargs_for(
    policy: DecisionMambaPolicy, env: Environment | None, env_kwargs: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return the keyword arguments to make an environment with: those given, else its own of the checkpoint's.

    The views in which the policy has learned are always among them.

    Raises:
        ValueError: those given say that it shall see something else.
    """
    learned = policy.processor.env_kwargs
    if env_kwargs is None and env in (None, policy.processor.env_id):
        return learned
    return with_agreed_views("the policy was trained on", learned, env_kwargs)


def make_environments(
    env: Environment,
    count: int,
    max_episode_steps: int | None = None,
    *,
    render_mode: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> VectorEnv:
    """Make a vector environment whose rows are reset by hand, or say what is missing.

    Atari games (`"ALE/Breakout-v5"`, `"BreakoutNoFrameskip-v4"`) are played the one standard way, whatever their id's
    defaults: 1 to 30 no-ops at the start, each action for 4 frames, grey frames of 84 x 84 pixels (not stacked: the
    policy does), no sticky actions, the game's minimal action set, whole episodes over all lives, at most
    108,000 frames, which are 27,000 decisions. Rewards are the game's points, not clipped. Nothing presses FIRE for the
    policy: where a game waits for it (Breakout), one that never does plays until the limit, and scores what it did.

    Observations that are no vectors (dictionaries, tuples, matrices, whole numbers) are flattened as those of data are;
    `observation_parts` of the result says how. Those of OGBench hold the goal (see `OGBenchEnv`). What an environment
    raises or gives that is wrong is a ValueError that names it, with the episode's seed and the step.

    Args:
        env: gymnasium id, where `module:Name-v0` imports a module of the working folder first; an environment, which is
            the only row; a function that makes one; or a vector environment. Those that are given stay open.
        count: rows; a vector environment has its own.
        max_episode_steps: truncates episodes that the environment itself would let go on; never lengthens them.
        render_mode: what `render()` of the vector environment gives, `"rgb_array"` for pictures; nothing without it.
        env_kwargs: keyword arguments for `gymnasium.make`, only with an id; and views (see `views`), which are put
            around any environment.

    Raises:
        ImportError: gymnasium, or what the environment needs, is not installed.
        ValueError: no such environment, one that cannot be made, or one whose observations or actions no model reads or
            gives.
    """
    try:
        import gymnasium
    except ImportError as error:
        hint = install_hint(env if isinstance(env, str) else "")
        raise ImportError(f"Rollouts need gymnasium ({error}); install it with: {hint}") from error
    from .ogbench_env import with_ogbench_goals
    from .playing import PlayedEnv

    wrappers: list[Callable[..., Any]] = [with_ogbench_goals]
    if max_episode_steps is not None:
        wrappers.append(partial(gymnasium.wrappers.TimeLimit, max_episode_steps=max_episode_steps))
    views, env_kwargs = split_views(env_kwargs)
    wrappers += [partial(with_views, names=views)] if views else []
    if not isinstance(env, str):
        if env_kwargs:
            raise ValueError(f"env_kwargs={env_kwargs} are for an environment that is made by its id.")
        return _given(env, count, wrappers, max_episode_steps, views)
    options: dict[str, Any] = {}
    if is_atari(env):
        options |= {
            "frameskip": 1,  # AtariPreprocessing skips
            "repeat_action_probability": 0.0,
            "full_action_space": False,
            "max_num_frames_per_episode": ATARI_MAX_FRAMES,
        }
        preprocessing: Any = gymnasium.wrappers.AtariPreprocessing
        wrappers.insert(0, partial(preprocessing, noop_max=30, frame_skip=4, screen_size=84))
    options |= {**env_kwargs, **({} if render_mode is None else {"render_mode": render_mode})}
    _register(env)
    return _with_parts(_made(env, count, [*wrappers, partial(PlayedEnv, name=env)], options))


def environment_name(env: Env[Any, Any] | VectorEnv) -> str:
    """Return the id that an environment is registered with, or the name of its class."""
    spec = _spec(env)
    return type(_first(env)).__name__ if spec is None else spec.id


def environment_kwargs(env: Env[Any, Any] | VectorEnv) -> dict[str, Any] | None:
    """Return the keyword arguments beside those registered that an environment was made with, if that is known.

    Views that are around it are among them.
    """
    spec, views = _spec(env), dict.fromkeys(_views_around(env), True)
    return {**((spec and describe_env_kwargs(spec)) or {}), **views} or None


def _views_around(env: Any) -> tuple[str, ...]:
    """Return the views that are around an environment, or the first row of a vector environment."""
    rows = getattr(getattr(env, "unwrapped", env), "envs", None)
    return views_around(rows[0] if rows else env)


def _spec(env: Any) -> EnvSpec | None:
    spec: EnvSpec | None = getattr(_first(env), "spec", None)
    return env.get_attr("spec")[0] if spec is None and hasattr(env, "get_attr") else spec


def _first(env: Any) -> Any:
    """Return the environment below all wrappers; that of the first row of a vector environment, where it is at hand."""
    below = getattr(env, "unwrapped", env)
    rows = getattr(below, "envs", None)
    return rows[0].unwrapped if rows else below


def _given(
    env: Any, count: int, wrappers: Sequence[Callable[..., Any]], max_episode_steps: int | None, views: Sequence[str]
) -> VectorEnv:
    """Return rows of an environment that somebody has made, or of those that a function makes."""
    from gymnasium import Env
    from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

    from .playing import PlayedEnv, PlayedVectorEnv

    given = isinstance(env, (Env, VectorEnv)) or not callable(env)
    first = env if given else env()
    name = environment_name(first)
    if isinstance(first, VectorEnv):
        around = _views_around(first)
        missing = [view for view in views if view not in around]
        if missing or (views and max_episode_steps is not None):
            raise ValueError(
                f"{missing[0] if missing else 'max_episode_steps'} cannot be put around the rows of {name}, a vector "
                f"environment, to show {described_views(views)}: put it around each of them before they are one "
                "(hf_decision_mamba.views.with_views, gymnasium.wrappers.TimeLimit), or give a function that makes one "
                "row."
            )
        return PlayedVectorEnv(first, name, max_episode_steps, closes=not given)
    if not isinstance(first, Env):
        raise ValueError(
            f"{name} is no environment: give a gymnasium id, a gymnasium.Env, a VectorEnv or a function that makes one."
        )

    def played(make: Callable[[], Any]) -> Any:
        made = make()
        for wrap in wrappers:
            made = wrap(made)
        return PlayedEnv(made, name, closes=not given)

    makers = [lambda: first, *([] if given else [env] * (count - 1))]
    return _with_parts(SyncVectorEnv([partial(played, make) for make in makers], autoreset_mode=AutoresetMode.DISABLED))


def _with_parts(envs: Any) -> VectorEnv:
    """Return a vector environment that knows what the observations of its rows are made of."""
    envs.observed_space, envs.observation_parts = envs.envs[0].observed_space, envs.envs[0].observation_parts
    made: VectorEnv = envs
    return made


def _made(env_id: str, count: int, wrappers: list[Callable[..., Any]], options: dict[str, Any]) -> VectorEnv:
    """Call gymnasium's `make_vec`, with errors that say what to do."""
    import gymnasium
    from gymnasium.vector import AutoresetMode

    try:
        with warnings.catch_warnings():
            for told in _OF_OGBENCH if registering_module(env_id.rpartition(":")[2]) == "ogbench" else ():
                warnings.filterwarnings("ignore", told)
            return gymnasium.make_vec(
                env_id,
                num_envs=count,
                vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
                wrappers=wrappers,
                **options,
            )
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(
            f"{env_id} needs a package that is missing ({_line(error)}); try: {_packages(env_id)}"
        ) from error
    except (gymnasium.error.Error, ImportError) as error:
        raise _unknown(env_id, error) from error
    except ValueError as error:
        text = _line(error)
        raise ValueError(text if text.startswith(env_id) else f"{env_id} cannot be made: {text}") from error
    except Exception as error:  # of the environment's own code
        raise ValueError(f"{env_id} cannot be made: {type(error).__name__}: {_line(error)}") from error


def check_spaces(env_id: str, envs: VectorEnv, policy: DecisionMambaPolicy) -> None:
    """Refuse an environment that is not the kind the policy was trained on.

    Raises:
        ValueError: it observes something else than the policy reads, or takes other actions than the policy gives.
    """
    shape, processor = policy.observation_shape, policy.processor
    parts, theirs = processor.observation_parts, getattr(envs, "observation_parts", None)
    reads = _frames(shape) if policy.state_type == "image" else f"{shape[0]} dimensions"
    checkpoint = f"its checkpoint names the environment {processor.env_id!r}."
    made: Any = envs
    seen = made.single_observation_space
    size = seen.shape[0]
    if policy.condition_input == "goals":
        goal_dim = len(goal_places(envs))
        if goal_dim != policy.model.config.goal_dim:
            shown = f"a {DESIRED} of {goal_dim} numbers" if goal_dim else f"no {DESIRED}"
            raise ValueError(
                f"{env_id} observes {shown}, but the policy is asked for goals of {policy.model.config.goal_dim} "
                f"numbers; {checkpoint}"
            )
    if theirs:
        theirs = _read_parts(theirs, policy)
        size = sum(part["size"] for part in theirs)
    observes = _frames(seen.shape) if is_frame(seen) else f"{size} dimensions"
    around, learned = _views_around(envs), split_views(processor.env_kwargs)[0]
    if {*around} != {*learned}:
        raise ValueError(
            f"{env_id} shows {described_views(around)}, but the policy was trained on {described_views(learned)}; "
            f"{checkpoint}"
        )
    if observes != reads:
        observes = f"{made.observed_space}, {observes}" if theirs else observes
        advice = " Which of its parts the data have, and in what order, says --observation_parts of train.py."
        advice = advice if theirs and not parts else ""
        raise ValueError(f"{env_id} observes {observes}, but the policy was trained on {reads}; {checkpoint}{advice}")
    if observation_order(envs, policy) is None:
        observes, reads = describe_parts(theirs or []), describe_parts(parts or [])
        raise ValueError(f"{env_id} observes {observes}, but the policy was trained on {reads}; {checkpoint}")
    discrete = {"num_actions": policy.act_dim, "action_start": processor.action_start}
    gives = _described_actions(discrete) if policy.action_type == "discrete" else _dimensions(policy.act_dim)
    takes = _described_actions(describe_actions(env_id, envs.single_action_space))
    if takes != gives:
        raise ValueError(f"{env_id} takes {takes}, but the policy gives {gives}; {checkpoint}")


def observation_order(envs: VectorEnv, policy: DecisionMambaPolicy) -> NDArray[np.int64] | slice | None:
    """Return which columns of an environment's vectors the policy reads as a state, in its order.

    A policy of goals reads no goals there (see `goal_places`), another one no achieved ones that it was not trained on.

    Returns:
        None where parts differ.
    """
    parts, theirs = policy.processor.observation_parts, getattr(envs, "observation_parts", None)
    if not theirs or (policy.condition_input != "goals" and (not parts or parts == theirs)):
        return slice(None)
    ends, read = np.cumsum([part["size"] for part in theirs]).tolist(), _read_parts(theirs, policy)
    states = [(part, end) for part, end in zip(theirs, ends, strict=True) if part in read]
    parts = parts or read
    columns = {json.dumps(part["path"]): (part, end) for part, end in states}
    found = [columns.get(json.dumps(part["path"]), (None, 0)) for part in parts or []]
    if len(found) != len(states) or [part for part, _ in found] != parts:
        return None
    return np.concatenate([np.arange(end - part["size"], end) for part, end in found if part])


def goal_places(envs: VectorEnv) -> list[int]:
    """Return which columns of an environment's vectors are the goal to reach; none where it has no goals."""
    return part_places(getattr(envs, "observation_parts", None) or [], DESIRED)


def _read_parts(theirs: Sequence[Mapping[str, Any]], policy: DecisionMambaPolicy) -> list[Any]:
    """Return the parts of an environment's observation that are a policy's states."""
    if policy.condition_input == "goals":
        return _state_parts(theirs)
    left_out = leave_achieved_out(policy.processor.observation_parts or [])
    return [part for part in theirs if not left_out or part["path"] != [ACHIEVED]]


def _state_parts(parts: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the parts of an observation that are no goals."""
    return [part for part in parts if list(part["path"]) not in ([DESIRED], [ACHIEVED])]


def state_parts_for(envs: VectorEnv, policy: DecisionMambaPolicy) -> list[Any] | None:
    """Return what the states are made of that a policy reads in an environment; None where they are vectors."""
    parts = getattr(envs, "observation_parts", None)
    return _state_parts(parts) if parts and policy.condition_input == "goals" else parts


def action_bounds(space: Space) -> tuple[list[float], list[float]] | None:
    """Return the smallest and the largest action (A each) of a Box as numbers of float32; None for discrete actions.

    They are rounded towards the inside, so that float32 actions lie within a float64 space; infinite ones are the
    largest numbers of float32, which JSON can hold.
    """
    box: Any = space
    if not hasattr(box, "low"):
        return None
    largest = np.finfo(np.float32).max
    low, high = (np.clip(np.asarray(bound, np.float64), -largest, largest) for bound in (box.low, box.high))
    inside_low, inside_high = low.astype(np.float32), high.astype(np.float32)
    inside_low = np.where(inside_low < low, np.nextafter(inside_low, largest), inside_low)
    inside_high = np.where(inside_high > high, np.nextafter(inside_high, -largest), inside_high)
    return inside_low.tolist(), inside_high.tolist()


def _register(env_id: str) -> None:
    """Make an environment known to gymnasium, where that takes an import."""
    import gymnasium

    module, _, name = env_id.rpartition(":")
    if is_atari(env_id):
        try:
            import ale_py
        except ImportError as error:
            raise ImportError(f"{env_id} needs ale-py ({error}); install it with: {install_hint(env_id)}") from error
        gymnasium.register_envs(ale_py)
    if module:
        _import_registration(env_id, module)
    elif name not in gymnasium.registry and (registers := registering_module(name)) is not None:
        with suppress(ImportError):  # of a package that is not installed, which the error of making it names
            gymnasium.register_envs(importlib.import_module(registers))


def _import_registration(env_id: str, module: str) -> None:
    """Import the module that registers an environment: an installed one, or one of the working folder.

    The folder becomes importable as for `python -m`, which programs that lie elsewhere do not do of themselves.
    """
    here = os.getcwd()
    if not {here, ""} & {*sys.path}:
        sys.path.insert(0, here)
        importlib.invalidate_caches()
    try:
        importlib.import_module(module)
    except Exception as error:  # of the module's own code
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        if missing and module in _EXTRAS:
            raise ImportError(f"{env_id} needs {module} ({error}); install it with: {_EXTRAS[module]}") from error
        if missing:
            raise ValueError(f"No environment {env_id!r}: no module {module!r} is installed, or in {here}.") from error
        raise ValueError(
            f"No environment {env_id!r}: importing {module} raised {type(error).__name__}: {_line(error)}"
        ) from error


def _unknown(env_id: str, error: Exception) -> Exception:
    """Return the error of an environment that gymnasium does not know, or not any more."""
    import gymnasium

    module, colon, bare = env_id.rpartition(":")
    name = re.sub(r"-v\d+$", "", bare)
    versions = [spec.version or 0 for spec in gymnasium.registry.values() if spec.name == name]
    close = difflib.get_close_matches(bare, gymnasium.registry, n=3, cutoff=0.75)
    if versions and bare != f"{name}-v{max(versions)}":
        advice = f"use '{module}{colon}{name}-v{max(versions)}'"
    elif bare in gymnasium.registry and isinstance(error, ImportError):
        return ImportError(f"{env_id} needs a package that is missing ({_line(error)}); try: {_packages(env_id)}")
    elif bare in gymnasium.registry:
        return ValueError(f"{env_id} cannot be made: {_line(error)}")
    elif re.fullmatch(POPGYM, bare) and importlib.util.find_spec("popgym") is None:
        return ImportError(f"{env_id} is an environment of popgym, which is missing; try: {_EXTRAS['popgym']}")
    elif re.fullmatch(OGBENCH, bare) and importlib.util.find_spec("ogbench") is None:
        return ImportError(f"{env_id} is an environment of OGBench, which is missing; try: {_EXTRAS['ogbench']}")
    elif re.fullmatch(ROBOTICS, bare):
        robotics = _EXTRAS["gymnasium_robotics"]
        return ImportError(f"{env_id} is an environment of gymnasium-robotics, which is missing; try: {robotics}")
    else:
        meant = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        spelling = f"check the spelling, or import the package that registers it, 'package:{bare}'"
        advice = f"{f'{module} registers none of this name' if module else spelling}{meant}"
    return ValueError(f"No environment {env_id!r}: {advice} ({_line(error)})")


def _packages(env_id: str) -> str:
    """Return the command that installs what a known environment needs."""
    import gymnasium

    spec = gymnasium.registry.get(env_id.rpartition(":")[2])
    entry = "" if spec is None else str(spec.entry_point)
    commands = [command for module, command in _EXTRAS.items() if entry.startswith(module)]
    return commands[0] if commands else install_hint(env_id)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _frames(shape: tuple[int, ...]) -> str:
    return f"grey frames of {shape[0]} x {shape[1]} pixels"


def _dimensions(act_dim: int) -> str:
    return f"actions of shape ({act_dim},)"


def _described_actions(described: Mapping[str, Any]) -> str:
    """Return what actions are, in words that are equal exactly where the one could be taken for the other."""
    if "num_actions" not in described:
        return _dimensions(len(described["action_low"]))
    if described["action_start"]:
        return f"actions from Discrete({described['num_actions']}, start={described['action_start']})"
    return f"{described['num_actions']} discrete actions"
