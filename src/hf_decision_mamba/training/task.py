"""What a run learns from and is scored in: its data set, its environment and the returns that it asks for."""

import reprlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, TrainingArguments

from ..acting.policy import DecisionMambaPolicy
from ..baselines.architectures import embeds_time
from ..data import EpisodeStream, Trajectories, TrajectoryStatistics, load_trajectories, open_stream
from ..data.goals import Goals, GoalsFrom, checked_goals
from ..data.request import PARQUET_REVISION, is_repository_id, resolved_commit
from ..data.statistics import QUANTILES, spread
from ..data.views import DataViews, views_to_add
from ..evaluation.environments import action_bounds, check_spaces, make_environments, state_parts_for
from ..model import DecisionMambaProcessor
from ..reporting.console import say
from ..reporting.env_ids import is_env_id
from ..views import with_agreed_views
from .arguments import DataArguments, EvaluationArguments


@dataclass
class RunData:
    """The data set of a run: whole, and split into what is learned from and what is held out.

    Of a stream, `statistics` and `train` are those of the sample that it is known from.
    """

    statistics: TrajectoryStatistics
    train: Trajectories
    held_out: Trajectories | None
    env_id: str | None
    env_kwargs: dict[str, Any] | None = None
    stream: EpisodeStream | None = None
    buffer_steps: int = 0
    revision: str | None = None
    in_memory: bool = False
    best_of: int | None = None  # episodes that were there, where the best of them were chosen
    goals: Goals | None = None  # towards which the model is trained, where it is asked for goals

    @property
    def name(self) -> str:
        return self.train.name

    def sizes(self) -> dict[str, int]:
        """Say in short what tells it from others."""
        return {"episodes": self.statistics.episodes, "transitions": self.statistics.transitions}

    def summary(self) -> dict[str, Any]:
        """Return what training.json and the card say about it."""
        kept = ("episodes", "transitions", "return_mean", "return_std", "return_min", "return_max")
        known = self.statistics.to_dict()
        statistics = {name: known[name] for name in kept if known[name] is not None}
        if self.train.has_rewards:
            parts = [self.train] if self.held_out is None else [self.train, self.held_out]
            returns = spread(np.concatenate([part.returns() for part in parts]))
            statistics["return_quantiles"] = {name: returns[name] for name in QUANTILES}
        return {
            "name": self.name,
            **({"in_memory": True} if self.in_memory else {}),
            "revision": self.revision,
            "env_id": self.env_id,
            **({"env_kwargs": self.env_kwargs} if self.env_kwargs else {}),
            **({} if self.train.fps is None else {"fps": self.train.fps}),
            **(statistics if self.stream is None else {"streaming_sample": statistics}),
            **({} if self.best_of is None else {"best_of_episodes": self.best_of}),
            "held_out_episodes": self.held_out.num_episodes if self.held_out is not None else 0,
        }


def load_data(
    data_args: DataArguments,
    eval_args: EvaluationArguments,
    args: TrainingArguments,
    in_memory: Any = None,
    with_goals: bool = False,
) -> RunData:
    """Read the data set that the settings name, or the data `in_memory` that they only give a name.

    Args:
        with_goals: whether the model is asked for goals, so that those in observations become columns.
    """
    goals_from: GoalsFrom | None = data_args.goal_numbers()
    if not with_goals and data_args.goals is not None:
        raise ValueError(f"goals={data_args.goals} is for models that are asked for goals: --conditioning goal.")
    if not with_goals and goals_from == GoalsFrom():
        goals_from = None
    source: dict[str, Any] = {
        "config": data_args.dataset_config,
        "revision": data_args.dataset_revision,
        "split": data_args.dataset_split,
        "columns": data_args.columns(),
        "action_type": data_args.action_type,
        "rewards_from": data_args.rewards_from,
        "observation_parts": data_args.parts(),
    }
    if in_memory is not None:
        trajectories, revision = _load_from_memory(in_memory, data_args, source), None
    else:
        revision = _revision(data_args)
        if data_args.streaming:
            steps, stream = data_args.streaming_buffer, open_stream(data_args.dataset_name or [], **source)
            said = stream.metadata
            views = _views(data_args, eval_args, stream.name, said.env_id, said.environment_kwargs())
            stream = replace(stream, views=views, goals=goals_from)
            stream, train, held_out = stream.sample(steps, data_args.held_out_fraction)
            _check_returns(data_args, eval_args, train)
            goals = checked_goals(train, data_args.goals) if with_goals else None
            environment = _environment(eval_args, train)
            return RunData(train.statistics(), train, held_out, *environment, stream, steps, revision, goals=goals)
        trajectories = load_trajectories(data_args.dataset_name or [], **source)
    _check_returns(data_args, eval_args, trajectories)
    known = trajectories.env_id, trajectories.env_kwargs
    trajectories = _views(data_args, eval_args, trajectories.name, *known).of(trajectories)
    trajectories = trajectories if goals_from is None else goals_from.of(trajectories)
    best_of = trajectories.num_episodes if data_args.top_fraction < 1 else None
    if best_of is not None:
        trajectories = trajectories.best(data_args.top_fraction)
        if trajectories.num_episodes < 2 and data_args.held_out_fraction > 0:
            raise ValueError(
                f"top_fraction={data_args.top_fraction} leaves one of the {best_of} episodes of data set "
                f"{trajectories.name!r}, of which none can be held out: raise it, or say --held_out_fraction 0."
            )
    train, held_out = trajectories, None
    if data_args.held_out_fraction > 0:
        train, held_out = trajectories.split(data_args.held_out_fraction, data_seed_of(args))
    environment = _environment(eval_args, trajectories)
    return RunData(
        trajectories.statistics(),
        train,
        held_out,
        *environment,
        revision=revision,
        in_memory=in_memory is not None,
        best_of=best_of,
        goals=checked_goals(trajectories, data_args.goals) if with_goals else None,
    )


def _check_returns(data_args: DataArguments, eval_args: EvaluationArguments, trajectories: Trajectories) -> None:
    """Refuse settings of returns for data without rewards, which have none."""
    if trajectories.has_rewards:
        return
    given = {
        "return_scale": data_args.return_scale,
        "target_return": eval_args.target_return,
        "top_fraction": None if data_args.top_fraction == 1 else data_args.top_fraction,
        "return_temperature": data_args.return_temperature,
        "delayed_reward": data_args.delayed_reward or None,
    }
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name}={value} is about returns, and data set {trajectories.name!r} has no rewards: leave it out, or "
                "give --rewards_from COLUMN."
            )


def _views(
    data_args: DataArguments, eval_args: EvaluationArguments, name: str, env_id: str | None, have: dict[str, Any] | None
) -> DataViews:
    """Return what is to be left out of data of an environment; the one that was asked for says what it shows."""
    given = eval_args.environment_kwargs()
    env_kwargs = have if given is None and eval_args.env_id in (None, env_id) else given
    return views_to_add(
        f"data set {name!r}",
        data_args.views(),
        have,
        eval_args.env_id or env_id,
        env_kwargs,
        advice="name one with --env_id",
    )


def _load_from_memory(data: Any, data_args: DataArguments, source: dict[str, Any]) -> Trajectories:
    """Make trajectories of what is no name, and call them what the settings call them."""
    if data_args.streaming:
        raise ValueError("streaming reads files as training goes, and these data are in memory; leave it out.")
    if isinstance(data, Trajectories):
        for name in (
            "dataset_config",
            "dataset_revision",
            "dataset_split",
            "dataset_columns",
            "action_type",
            "rewards_from",
            "observation_parts",
        ):
            if getattr(data_args, name) != getattr(DataArguments, name):
                raise ValueError(
                    f"{name}={getattr(data_args, name)} says how data are read, and Trajectories have been; give it to "
                    "load_trajectories."
                )
        data.check_finite()
    else:
        data = load_trajectories(data, **source)
    return replace(data, name=(data_args.dataset_name or [data.name])[0])


def name_in_memory(data: Any, given: Any) -> str:
    """Return what data in memory are called: as it is `given`, else as they call themselves.

    Raises:
        TypeError: what is given is no text.
        ValueError: it is a file or folder, which would be taken for the data.
    """
    if given is None:
        own = data.name if isinstance(data, Trajectories) else getattr(getattr(data, "info", None), "dataset_name", "")
        return own or "in-memory"
    if not isinstance(given, str):
        raise TypeError(f"dataset_name={given!r} must be a text: what card and messages call the data in memory.")
    if Path(given).exists():
        raise ValueError(
            f"dataset_name={given!r} would only be a name for the data in memory, but is a file or folder here; leave "
            "one of them out."
        )
    return given


def _environment(eval_args: EvaluationArguments, data: Trajectories) -> tuple[str | None, dict[str, Any] | None]:
    """Return the environment's id and keyword arguments: those given, else the data set's; it shows what they show."""
    given, env_id = eval_args.environment_kwargs(), _env_id(eval_args, data)
    if given and env_id is None:
        raise ValueError(f"env_kwargs={eval_args.env_kwargs} needs an environment: --env_id")
    env_kwargs = data.env_kwargs if given is None and env_id == data.env_id else given
    return env_id, with_agreed_views(f"data set {data.name!r} shows", data.env_kwargs, env_kwargs)


def _env_id(eval_args: EvaluationArguments, data: Trajectories) -> str | None:
    """Return the environment that was asked for, else the data set's; leave out a text there that cannot be one."""
    if eval_args.env_id is not None and not is_env_id(eval_args.env_id):
        raise ValueError(f"env_id={eval_args.env_id!r} is no gymnasium id, [module:][namespace/]name[-vN].")
    if eval_args.env_id is None and data.env_id is not None and not is_env_id(data.env_id):
        named = reprlib.repr(data.env_id)
        say(f"{data.name} names the environment {named}, which is no gymnasium id: left out; --env_id names one.")
        return None
    return eval_args.env_id or data.env_id


def _revision(data_args: DataArguments) -> str | None:
    """Find the commit that a Hub repository is read at; as given where that is a copy or cannot be found out."""
    names, revision = data_args.dataset_name or [], data_args.dataset_revision
    if len(names) != 1:
        return revision  # each has commits of its own
    name = names[0]
    if Path(name).expanduser().exists() or not is_repository_id(name) or revision == PARQUET_REVISION:
        return revision
    return resolved_commit(name, revision) or revision


def data_seed_of(args: TrainingArguments) -> int:
    return args.seed if args.data_seed is None else args.data_seed


def prepare_environment(
    eval_args: EvaluationArguments,
    model: PreTrainedModel,
    processor: DecisionMambaProcessor,
    data: RunData,
    plays_later: bool = False,
) -> bool:
    """Make the environment once, if there are episodes to play, and see that it fits; note its action bounds.

    Args:
        plays_later: whether there will be, though the settings ask for none.

    Returns:
        Whether there are episodes to play now.

    Raises:
        ValueError: the environment is unknown, or not the one that the data set is of; or the model cannot act in it.
    """
    wanted = eval_args.eval_episodes > 0 or eval_args.rollout_episodes > 0
    if data.env_id is None:
        if wanted:
            say("No evaluation in an environment: the data set's card names none, and --env_id is not given.")
        return False
    policy = DecisionMambaPolicy(model, processor, mode=eval_args.eval_mode)
    if not wanted and not plays_later:
        return False
    try:
        limit = eval_args.eval_max_episode_steps
        envs = make_environments(data.env_id, 1, max_episode_steps=limit, env_kwargs=data.env_kwargs)
        try:
            check_spaces(data.env_id, envs, policy)
            limit = limit or getattr(envs.spec, "max_episode_steps", None)
            if wanted and limit is not None and embeds_time(model.config) and limit > model.config.max_ep_len:
                raise ValueError(
                    f"Episodes of {data.env_id} last up to {limit} steps, but the model knows only max_ep_len="
                    f"{model.config.max_ep_len}; raise --max_ep_len or cut them with --eval_max_episode_steps."
                )
            bounds = action_bounds(envs.single_action_space)
            if bounds is not None and np.abs(bounds).min() < np.finfo(np.float32).max:
                processor.action_low, processor.action_high = bounds
            if processor.observation_parts is None:  # the data say nothing, and evaluation flattens like this
                processor.observation_parts = state_parts_for(envs, policy)
        finally:
            envs.close()
    except ImportError as error:
        say(f"No evaluation in an environment: {error}")
        return False
    except ValueError as error:
        without = "" if plays_later else ", --eval_episodes 0 trains without"
        raise ValueError(f"{error} (--env_id names another one{without}.)") from error
    return wanted


def target_returns_of(eval_args: EvaluationArguments, data: RunData, conditioning: str) -> list[float] | None:
    """Return what to ask for: the returns that were given, else the best of the data set; None where it has none.

    A model of goals is asked for none, and neither is one that imitates.
    """
    if conditioning != "return":
        if eval_args.target_return:
            why = "is asked for goals" if conditioning == "goal" else "imitates, and is asked for no return"
            say(f"target_return={eval_args.target_return} is not used: the policy {why}.")
        return None
    best = data.statistics.return_max
    return eval_args.target_return or (None if best is None else [best])
