"""From a trained model to actions: what is remembered between decisions, and the return-to-go that is left to earn.

Source: evaluation of Decision Transformer (Chen et al. 2021, algorithm 1); the Transformer-like and RNN-like modes of
DeMa (arXiv 2405.12094, section 4).
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from threading import RLock
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedModel

from ..model import DecisionMambaProcessor
from ..model.checkpoint_decision_mamba import in_short
from ..model.observations_decision_mamba import DESIRED
from ..views import described_views, split_views
from .checks import (
    FLOAT32_MAX,
    LARGEST,
    LONGEST_CONTEXT,
    MOST_ROWS,
    check_dimensions,
    check_parts,
    check_sampling,
    check_whole_number,
    checked_numbers,
    checked_rows,
)
from .compiled import FusedModel, fuse
from .history import CompiledHistory, History, RecurrentState, WindowHistory
from .loading import is_missing, load_model
from .shapes import carries_state, condition_of, observation_shape, state_and_action_types

Mode = Literal["window", "recurrent"]
Actions = NDArray[np.float32] | NDArray[np.int64] | np.int64

_PLAIN = 1e6  # up to here no sane weights overflow, so that a decision need not be one that can be undone


class DecisionMambaPolicy:
    """Act in one environment or in many at once: numpy observations in, numpy actions out.

    Every row of a batch is an episode of its own, with its own history and return-to-go. The model sees as previous
    action what `act` returned, so after clipping to the action bounds. Of images a row gives its newest frame, and the
    policy stacks the last ones as `WindowDataset` does: before an episode's first frame, that frame repeats.

    It acts with the weights that the model has at `reset`. An error of `act` leaves the policy as it was. Threads that
    share a policy take turns; copies (`copy`, `pickle`) go on from where it stands, each on its own.

    Args:
        model: a `DecisionMambaModel`, or in window mode any model with `DecisionTransformerModel`'s forward. It is put
            in evaluation mode by every `reset`.
        processor: normalisation, return scale, action bounds and defaults that belong to the model.
        mode: `"window"` re-reads the last `context_length` steps at every decision (Transformer-like); `"recurrent"`
            carries the model's state, at a cost that does not grow with the history (RNN-like).
        context_length: steps of the window; `processor.context_length` when not given.
        sample: draw discrete actions from softmax(logits / temperature), instead of taking the most likely one.
        temperature: of that softmax; below 1 likely actions become more likely.
        seed: of the draws. Every episode has its own stream, which depends on this and on how many episodes began
            before it, not on what other rows do.

    Attributes:
        state_type, action_type: `"vector"` or `"image"`, `"continuous"` or `"discrete"`.
        condition_input: the input that says what the model is asked for, `"returns_to_go"` or `"goals"`; None of
            imitation.
        observation_shape: of one row: (state_dim,), or (height, width) of one frame.
        act_dim: dimensions of a continuous action, or number of discrete actions.

    Raises:
        ValueError: an unknown mode, a model that cannot act in it, a processor of other dimensions than the model, or
            numbers that make no sense.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: DecisionMambaProcessor,
        mode: Mode = "window",
        *,
        context_length: int | None = None,
        sample: bool = False,
        temperature: float = 1.0,
        seed: int = 0,
    ):
        check_parts(model, processor)
        arguments = inspect.signature(model.forward).parameters
        if mode not in ("window", "recurrent"):
            raise ValueError(f"mode={mode!r} is unknown; choose 'window' or 'recurrent'.")
        if mode == "recurrent" and not carries_state(model):
            raise ValueError(f"{type(model).__name__} carries no state between decisions; use mode='window'.")
        if mode == "recurrent" and context_length is not None:
            raise ValueError(f"context_length={context_length} has no meaning in mode='recurrent'; leave it out.")
        if context_length is not None:
            check_whole_number("context_length", context_length, 1, LONGEST_CONTEXT)
        check_dimensions(model, processor)
        self.state_type, self.action_type = state_and_action_types(model.config)
        self.condition_input, self._condition_dim = condition_of(model.config)
        check_sampling(sample, temperature, self.action_type)
        self.model = model
        self.processor = processor
        self.mode: Mode = mode
        self.context_length = processor.context_length if context_length is None else context_length
        self.observation_shape = observation_shape(model.config)
        self.act_dim: int = model.config.act_dim
        self.sample = sample
        self.temperature = temperature
        self._restart_draws(seed)
        # DecisionTransformer has no such argument, and always embeds the time step.
        self._previous_actions = "previous_actions" in arguments
        self._rewarded_at_the_end = "delayed_reward" in split_views(processor.env_kwargs)[0]
        self._needs_timesteps = not self._previous_actions or bool(
            getattr(model.config, "use_timestep_embedding", False)
        )
        self._target_return: NDArray[np.float64] | None = None  # of the last reset, one number or one per row
        self._goal: NDArray[np.float32] | None = None  # of the last reset, one or one per row; None for none
        self._history: History | None = None
        self._fused: FusedModel | None = None  # of the episodes that begin next, where `_prepared`
        self._prepared = False
        self._returns_to_go: NDArray[np.float64]
        self._goals: NDArray[np.float32]  # of every row (n, goal_dim); NaN where its observations say it
        self._steps: NDArray[np.int64]
        self._streams: list[np.random.Generator]
        self._waiting: NDArray[np.bool_] | None = None  # rows whose episode begins after the next decision
        self._acted = False
        self._whole = True  # false during a decision, and after one that was neither finished nor undone
        self._lock = RLock()

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | os.PathLike[str],
        mode: Mode = "window",
        device: torch.device | str | None = None,
        *,
        context_length: int | None = None,
        sample: bool = False,
        temperature: float = 1.0,
        seed: int = 0,
        **hub_kwargs: Any,
    ) -> DecisionMambaPolicy:
        """Load model and processor from a checkpoint folder or a repository of the Hub.

        Args:
            path_or_repo_id: a folder, or `"org/name"`.
            mode: `"window"` or `"recurrent"`.
            device: where the model computes; the CPU when not given.
            context_length: steps of the window; the processor's when not given.
            sample, temperature, seed: whether and how discrete actions are drawn, as for the class.
            hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, ... as `from_pretrained` of transformers.

        Raises:
            FileNotFoundError: the checkpoint has no preprocessor_config.json.
            OSError: no checkpoint is there (transformers says where it looked).
            ValueError: the checkpoint is damaged, or its config, weights and processor do not fit each other.
        """
        model = load_model(path_or_repo_id, **hub_kwargs)
        try:
            processor = DecisionMambaProcessor.from_pretrained(path_or_repo_id, **hub_kwargs)
        except OSError as error:
            if not is_missing(path_or_repo_id, error):  # it is no JSON, or cannot be read now
                raise
            raise FileNotFoundError(
                f"{path_or_repo_id} holds a model but no preprocessor_config.json, without which states "
                "cannot be normalised as in training; write it with DecisionMambaProcessor(...).save_pretrained(...)."
            ) from error
        except ValueError as error:
            raise ValueError(f"The processor of {path_or_repo_id} cannot be loaded: {in_short(error)}") from error
        if device is not None:
            cast(torch.nn.Module, model).to(device)
        policy = cls(
            model, processor, mode, context_length=context_length, sample=sample, temperature=temperature, seed=seed
        )
        if policy._needs_timesteps and processor.context_length > model.config.max_ep_len:
            raise ValueError(
                f"The processor of {path_or_repo_id} has context_length={processor.context_length}, but the model "
                f"knows only max_ep_len={model.config.max_ep_len} time steps; get the processor saved with it."
            )
        return policy

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def returns_to_go(self) -> NDArray[np.float64]:
        """Return that is left to earn of every row (n,), in the environment's units."""
        self._rows("returns_to_go")
        return self._returns_to_go.copy()

    def reset(
        self,
        target_return: float | ArrayLike | None = None,
        num_envs: int | None = None,
        seed: int | None = None,
        goal: ArrayLike | None = None,
    ) -> None:
        """Start new episodes in all rows.

        Args:
            target_return: the return to ask for, in the environment's units: one number or one per row (n,);
                `processor.target_return` when not given. A model without a condition is asked for nothing, one of goals
                for a goal, and neither reads it.
            num_envs: number of rows; when not given, the length of `target_return` or `goal`, or the first observation
                says it.
            seed: starts the draws of a sampling policy over, from this seed; they go on when not given.
            goal: where a model of goals is to go, in the environment's units: one (goal_dim,) or one per row
                (n, goal_dim). When not given, observations say it that are a dictionary with `desired_goal`.

        Raises:
            ValueError: no target return anywhere, one that is not finite or not one per row, or a goal that is no such
                vector or for a model that is asked for none.
        """
        with self._lock, self._all_or_nothing():
            self._prepared = False  # the model may have changed
            self._begin(target_return, num_envs, seed, goal)

    def warm_up(self) -> None:
        """Do now what the first decision would wait for, so that it takes no longer than the others.

        The kernels are compiled, or loaded from numba's cache, and one whole decision is made for as many rows as the
        policy was reset for (one, before that) and thrown away. Running episodes and the draws stay as they are; the
        model is put in evaluation mode. If it is changed afterwards, it needs a `reset`.

        Raises:
            ValueError: the model cannot act: its weights, or its answer, are not finite.
        """
        with self._lock, self._all_or_nothing(), np.errstate(over="ignore", invalid="ignore"):  # refused by `_act`
            running = self._history is not None
            rows = self._steps.size if running else 1
            self._prepare()
            before = vars(self).copy()
            history: Any = self._new_history(rows)
            image = self.state_type == "image"
            observations = np.zeros((rows, *self.observation_shape), np.uint8 if image else np.float32)
            condition, steps = np.zeros((rows, self._condition_dim), np.float32), np.zeros(rows, np.int64)
            if self.mode == "window":  # as wide as it gets
                history.end = history.states.shape[1] - 1
                longest = self.model.config.max_ep_len if self._needs_timesteps else LONGEST_CONTEXT
                history.predict(observations, condition, steps + min(self.context_length, longest) - 1)
            self._begin(0.0, rows, goal=self.processor.goal_mean)
            if not image:
                observations[:] = self.processor.state_mean  # zero for the model
            self._act(observations, 0.0)
            vars(self).update(before)
            if running:
                self._fused, self._prepared = None, False

    def reset_rows(
        self,
        rows: ArrayLike,
        target_return: float | ArrayLike | None = None,
        *,
        autoreset_mode: Any = None,
        goal: ArrayLike | None = None,
    ) -> None:
        """Start new episodes in some rows, while the others go on.

        Call it after each step with the rows whose episodes have ended, and say how the environment resets them:

        ```python
        observations, rewards, terminated, truncated, _ = envs.step(policy.act(observations, rewards))
        policy.reset_rows(terminated | truncated, autoreset_mode=envs.metadata["autoreset_mode"])
        ```

        Args:
            rows: a boolean mask (n,) or indices.
            target_return: one number or one per selected row; what each row was last asked for when not given.
            autoreset_mode: gymnasium's. In `AutoresetMode.NEXT_STEP`, the default of `gymnasium.make_vec`, the last
                observation of an episode comes first, and the next step resets the environment whatever the action is.
                So the next `act` returns an action for these rows that does not count, and their episodes begin with
                the `act` after it. In the other modes, and when not given, the next `act` sees a first observation.
            goal: one (goal_dim,) or one per selected row; where a row was last told to go when not given.

        Raises:
            ValueError: before the number of rows is known, or a mask, index, target return, goal or mode that does not
                fit.
        """
        waits = _waits_for_a_step(autoreset_mode)
        with self._lock:
            count = self._rows("reset_rows")
            self._check_whole()
            index = checked_rows(rows, count)
            if index.size == 0:
                return
            targets = self._targets[index]
            if target_return is not None:
                targets = self._checked_targets(checked_numbers("target_return", target_return, np.float64), index.size)
            goals = self._goals[index]
            if goal is not None:
                goals = self._goals_per_row(self._given_goal(goal), index.size)
            waiting = np.zeros(count, np.bool_) if self._waiting is None else self._waiting
            self._whole = False
            self._goals[index] = goals
            waiting[index] = waits
            self._waiting = waiting if waiting.any() else None
            self._targets[index] = self._returns_to_go[index] = targets
            self._steps[index] = 0
            for row, stream in zip(index, self._next_streams(index.size), strict=True):
                self._streams[row] = stream
            cast(History, self._history).reset_rows(index)
            self._whole = True

    def act(self, observation: Any, reward: float | ArrayLike | None = None) -> Actions:
        """Choose the next action of every row.

        The first call without a `reset` before it starts episodes at the processor's target return.

        Args:
            observation: (state_dim,) of one environment, or (n, state_dim); where the processor has
                `observation_parts`, also what the environment gives, of one or of n as gymnasium batches them: a
                dictionary, a tuple, a matrix, a whole number. Of an environment of goals the dictionary is read as
                gymnasium has it: `observation` is the state, and `desired_goal` the goal of this step, unless `reset`
                named one. Of an image model the newest frame alone, (height, width) or (n, height, width) uint8, grey
                from 0 to 255.
            reward: what the previous action earned, one number or (n,); it is taken off the return-to-go. Ignored in
                rows that have just been reset. Without it the return-to-go stays as it is (robots may have no rewards).
                Give it in the units of the target return: in Atari the game's own points, not clipped ones. A policy
                that was trained on `delayed_reward` takes nothing off: there, all is earned at the end.

        Returns:
            (act_dim,) or (n, act_dim), float32, within the processor's action bounds; discrete actions, counted from
            the processor's `action_start` (0, if the environment does), are one np.int64 or (n,) int64.

        Raises:
            ValueError: an observation or reward of the wrong shape or type, not finite or too large to compute with, a
                model whose answer is not finite, no target return or goal, or a time step at or beyond `max_ep_len`
                (only where the model embeds time steps); nothing has changed then. Where recurrent states cannot be
                undone (after a KeyboardInterrupt, or with weights that large), the next call asks for a `reset`.
        """
        with self._lock, np.errstate(over="ignore", invalid="ignore"):  # refused below
            if self._history is not None:
                return self._act(observation, reward)
            with self._all_or_nothing():
                return self._act(observation, reward)

    def override_actions(self, actions: ArrayLike) -> None:
        """Say which actions were really taken, where they are not the ones that the last `act` returned.

        Args:
            actions: as `act` returns them, of all rows (noise was added, or some were drawn at random): from now on the
                model sees these as previous actions. Ignored in rows that have just been reset.

        Raises:
            ValueError: there was no `act` before, or actions of another shape or type than those that it returned, not
                finite, too large to compute with, or none of the discrete ones.
        """
        with self._lock, np.errstate(over="ignore", invalid="ignore"):  # refused below
            count = self._rows("override_actions")
            self._check_whole()
            if not self._acted:
                raise ValueError("override_actions: no action has been chosen since the reset; call act first.")
            expected = (count, self.act_dim) if self.action_type == "continuous" else (count,)
            taken = checked_numbers("actions", actions, np.float32 if self.action_type == "continuous" else None)
            if taken.shape != expected:
                raise ValueError(f"actions have shape {taken.shape}; give {expected}, one per row.")
            if self.action_type == "discrete":
                taken = taken - self.processor.action_start
            begins = self._steps == 0
            taken = np.where(begins.reshape(-1, *[1] * (taken.ndim - 1)), 0, taken).astype(taken.dtype)
            seen = self._checked_actions(taken)
            self._whole = False
            history = cast(History, self._history)
            history.remember(seen)
            history.reset_rows(np.flatnonzero(begins))
            self._whole = True

    def _act(self, observation: Any, reward: float | ArrayLike | None) -> Actions:
        """Check everything before anything changes; change all at once when the decision has been made."""
        goals = observation.get(DESIRED) if isinstance(observation, Mapping) else None
        observations, single = self._checked_observations(observation)
        if self._target_return is None:
            self._begin()
        states, large = self._seen_states(observations)
        if self._history is None:
            self._start(observations.shape[0])
        count, waiting = self._steps.size, self._waiting
        if observations.shape[0] != count:
            raise ValueError(
                f"observation has {observations.shape[0]} rows, but the policy was reset for {count}; "
                f"call reset(num_envs={observations.shape[0]}) to change their number."
            )
        self._check_whole()
        returns_to_go = self._returns_to_go
        if self.condition_input == "returns_to_go":
            returns_to_go = returns_to_go - self._checked_rewards(reward)
        self._check_time()
        if self.condition_input == "goals":
            condition, larger = self._seen_goals(goals)
        else:
            returns, larger = self._seen_returns("return-to-go", returns_to_go)
            condition = returns[:, None][:, : self._condition_dim]

        history = cast(History, self._history)
        saved = history.save(exactly=large or larger)
        self._whole = False
        try:
            actions = self._decide(history, states, condition)
            steps = self._steps + 1
            if waiting is not None:
                steps[waiting] = 0
            given = actions + self.processor.action_start if self.action_type == "discrete" else actions.copy()
            given = given[0] if single else given  # a copy: the caller may write into what it gets
        except BaseException as error:
            drawn = self.sample and not isinstance(error, ValueError)  # an answer is refused before anything is drawn
            self._whole = history.restore(saved) and not drawn
            raise
        # No call stands between these, so that an interrupt finds all of them done, or none.
        self._returns_to_go, self._steps, self._waiting = returns_to_go, steps, None
        self._acted = self._whole = True
        return given

    def _decide(self, history: History, states: NDArray[Any], condition: NDArray[np.float32]) -> NDArray[Any]:
        """Decide for what the model sees, and remember the actions as taken."""
        predicted = history.predict(states, condition, self._steps)
        self._check_answer(predicted)
        actions = self._choose(predicted)
        history.remember(self._as_seen(actions))
        if self._waiting is not None:
            history.reset_rows(np.flatnonzero(self._waiting))
        return actions

    def _choose(self, predicted: NDArray[np.float32]) -> NDArray[Any]:
        """Choose what predictions (n, act_dim) stand for: clipped actions; of logits the likeliest, or a draw."""
        if self.action_type == "continuous":
            return self.processor.denormalize_actions(predicted)
        if not self.sample:
            return predicted.argmax(axis=-1).astype(np.int64)
        # The largest of logits with Gumbel noise is a draw from their softmax. A row that waits draws nothing.
        noise = np.zeros(predicted.shape)
        for row, stream in enumerate(self._streams):
            if self._waiting is None or not self._waiting[row]:
                noise[row] = stream.gumbel(size=self.act_dim)
        return (predicted / self.temperature + noise).argmax(axis=-1).astype(np.int64)

    def _as_seen(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return actions as the model sees them."""
        return self.processor.normalize_actions(actions) if self.action_type == "continuous" else actions

    def _restart_draws(self, seed: int) -> None:
        check_whole_number("seed", seed, 0)
        self.seed, self._episodes = seed, 0

    def _next_streams(self, count: int) -> list[np.random.Generator]:
        """Spawn random streams for the episodes that begin now, in the order of their rows."""
        first, self._episodes = self._episodes, self._episodes + count
        return [np.random.default_rng([self.seed, episode]) for episode in range(first, self._episodes)]

    def _prepare(self) -> None:
        """Get the model ready to act with the weights that it has now."""
        self.model.eval()
        self._fused = fuse(self.model)
        dtype = self.model.dtype
        self._largest = FLOAT32_MAX if dtype == torch.float64 else min(LARGEST, torch.finfo(dtype).max)
        self._plain = min(_PLAIN, self._largest) ** 2
        self._prepared = True

    def _begin(
        self,
        target_return: float | ArrayLike | None = None,
        num_envs: int | None = None,
        seed: int | None = None,
        goal: ArrayLike | None = None,
    ) -> None:
        """Do as `reset`, with the model as it was prepared; of what fails, nothing is undone."""
        target_return = self.processor.target_return if target_return is None else target_return
        if target_return is None and self.condition_input != "returns_to_go":
            target_return = 0.0  # no return is asked for
        if target_return is None:
            raise ValueError(
                "No target return: this checkpoint stores none. Say which return to ask for with "
                "policy.reset(target_return=...), or set processor.target_return."
            )
        if not self._prepared:
            self._prepare()
        targets = checked_numbers("target_return", target_return, np.float64)
        goals = None if goal is None else self._given_goal(goal)
        if num_envs is None and targets.ndim:
            num_envs = targets.shape[0]
        if num_envs is None and goals is not None and goals.ndim > 1:
            num_envs = goals.shape[0]
        if num_envs is not None:
            check_whole_number("num_envs", num_envs, 1, MOST_ROWS)
        self._checked_targets(targets, num_envs or 1)
        if goals is not None and num_envs is not None:
            self._goals_per_row(goals, num_envs)
        if seed is not None:
            self._restart_draws(seed)
        self._target_return, self._history, self._waiting, self._whole = targets, None, None, True
        self._goal = goals
        if num_envs is not None:
            self._start(num_envs)

    def _start(self, count: int) -> None:
        """Make room for so many rows, all at the start of an episode."""
        if not self._prepared:
            self._prepare()
        self._targets = _per_row("target_return", cast(NDArray[np.float64], self._target_return), count)
        self._returns_to_go = self._targets.copy()
        self._goals = self._goals_per_row(np.full(self._goal_dim, np.nan) if self._goal is None else self._goal, count)
        self._steps = np.zeros(count, dtype=np.int64)
        self._acted = False
        self._streams = self._next_streams(count)
        try:
            history = self._new_history(count)
        except (MemoryError, RuntimeError) as error:  # numpy's, and torch's
            raise ValueError(f"num_envs={count}: so many rows cannot be remembered ({error}); take fewer.") from error
        self._history, self._fused, self._prepared = history, None, False

    def _new_history(self, count: int) -> History:
        """Make room for so many rows, of the model as it was prepared."""
        context_length = None if self.mode == "recurrent" else self.context_length
        if self._fused is not None:
            return CompiledHistory(self.model, self._fused, count, context_length)
        if context_length is None:
            return RecurrentState(self.model, count, self._needs_timesteps)
        return WindowHistory(self.model, count, context_length, self._previous_actions, self._needs_timesteps)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Undo everything when something inside fails; for what puts new arrays in the place of old ones."""
        before = vars(self).copy()
        try:
            yield
        except BaseException:
            vars(self).update(before)
            raise

    def _rows(self, what: str) -> int:
        if self._history is None:
            raise ValueError(f"{what}: the number of rows is not known yet; call reset(num_envs=...) or act first.")
        return self._steps.size

    def _check_whole(self) -> None:
        if not self._whole:
            raise ValueError(
                "The last decision or reset broke off half-way, so what the model remembers is lost; call reset."
            )

    def __copy__(self) -> DecisionMambaPolicy:
        """Make a policy of the same model and processor that goes on by itself."""
        return deepcopy(self, {id(shared): shared for shared in (self.model, self.processor)})

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "_lock"}
        return {**state, "_fused": None, "_prepared": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=RLock())

    def _checked_observations(self, observation: ArrayLike) -> tuple[NDArray[Any], bool]:
        """Return observations (n, ...), and whether the caller gave a single one without rows; frames are a copy."""
        shape, image = self.observation_shape, self.state_type == "image"
        observation = observation if image else self.processor.flatten_observations(observation)
        observations = checked_numbers("observation", observation, None if image else np.float32)
        if image:
            observations = observations.copy()
        single = observations.ndim == len(shape)
        rows = observations.shape[: observations.ndim - len(shape)]
        if len(rows) > 1 or observations.shape != (*rows, *shape) or observations.size == 0:
            raise ValueError(
                f"observation has shape {observations.shape}; this model reads {shape} from one environment or "
                f"(n, {', '.join(map(str, shape))}) from n.{self._what_it_saw()}"
            )
        if image and observations.dtype != np.uint8:
            raise ValueError(
                f"observation is {observations.dtype}; this model reads frames of uint8, grey from 0 to 255, as "
                "gymnasium's AtariPreprocessing gives them."
            )
        if single:
            observations = observations[None]
        return observations, single

    def _what_it_saw(self) -> str:
        """Say which part of its environment the policy was trained on, where it was a part."""
        views = split_views(self.processor.env_kwargs)[0]
        wrapped = "wrap the environment: hf_decision_mamba.views.with_views"
        return f" It was trained on {described_views(views)}; {wrapped}(env, {[*views]})." if views else ""

    def _seen_states(self, observations: NDArray[Any]) -> tuple[NDArray[Any], bool]:
        """Return observations as the model sees them, and whether any is large; those of waiting rows do not count."""
        if self.state_type == "image":
            return observations, False
        states = self.processor.normalize_states(observations)
        if self._waiting is not None and len(self._waiting) == len(states):
            states[self._waiting] = 0
        return states, self._is_large("observation", observations, states, "Check the environment or sensor.")

    def _seen_returns(self, name: str, returns: NDArray[np.float64]) -> tuple[NDArray[np.float32], bool]:
        """Return the returns-to-go (n,) as the model sees them, and whether any is large."""
        scaled = self.processor.scale_returns(returns)
        return scaled, self._is_large(name, returns, scaled, "Check rewards, target return and return_scale.")

    @property
    def _goal_dim(self) -> int:
        return self._condition_dim if self.condition_input == "goals" else 0

    def _checked_goal(self, goal: Any) -> NDArray[np.float32]:
        """Return goals of the right shape, (goal_dim,) or (n, goal_dim)."""
        if self.condition_input != "goals":
            asked = {"returns_to_go": "a return", None: "nothing"}[self.condition_input]
            raise ValueError(f"goal: this model is asked for {asked}, and reads no goal; leave it out.")
        goals = checked_numbers("goal", goal, np.float32)
        if goals.ndim not in (1, 2) or goals.shape[-1] != self._goal_dim:
            raise ValueError(
                f"goal has shape {goals.shape}; this model reads goals of {self._goal_dim} numbers: "
                f"({self._goal_dim},), or (n, {self._goal_dim}) of n environments."
            )
        return goals

    def _goals_per_row(self, goals: NDArray[Any], count: int) -> NDArray[np.float32]:
        """Return one goal per row (n, goal_dim), from one or one per row."""
        if goals.ndim > 1 and len(goals) != count:
            raise ValueError(
                f"goal has shape {goals.shape}; give one goal or ({count}, {self._goal_dim}), one per row."
            )
        return np.array(np.broadcast_to(goals, (count, self._goal_dim)), np.float32)

    def _given_goal(self, goal: Any) -> NDArray[np.float32]:
        """Return goals that a reset names, which are finite: NaN stands for none."""
        goals = self._checked_goal(goal)
        if not np.isfinite(goals).all():
            raise ValueError(f"goal={goals.tolist()} must be finite.")
        return goals

    def _seen_goals(self, observed: Any) -> tuple[NDArray[np.float32], bool]:
        """Return the goals (n, goal_dim) as the model sees them, and whether any is large.

        Args:
            observed: those that observations say; None for none. Those of the last reset come before them.
        """
        goals, missing = self._goals, np.atleast_1d(np.isnan(self._goals).any(axis=1))
        if missing.any() and observed is not None:
            goals = np.where(missing[:, None], self._goals_per_row(self._checked_goal(observed), len(goals)), goals)
        elif missing.any():
            raise ValueError(
                f"row {int(missing.argmax())} has no goal: this model is asked for one of {self._goal_dim} numbers. "
                f"Say it with policy.reset(goal=...), or act on dictionaries of observation and {DESIRED}."
            )
        seen = self.processor.normalize_goals(goals)
        if self._waiting is not None:
            seen[self._waiting] = 0
        return seen, self._is_large("goal", goals, seen, "Check the goal.")

    def _is_large(self, name: str, given: NDArray[Any], seen: NDArray[Any], advice: str) -> bool:
        """Tell whether numbers (n, ...) are so large that the model's answer may be none; refuse too large ones."""
        if np.vdot(seen, seen) <= self._plain:
            return False
        refused = np.argwhere(~(np.abs(seen) <= self._largest))
        if refused.size:
            place = tuple(refused[0])
            where = " in row " + ", dimension ".join(map(str, place))
            reason = "only finite numbers can be acted on."
            if np.isfinite(given[place]):
                reason = f"scaled for the model that is {seen[place]:.3g}, and it computes in {self.model.dtype} with "
                reason += f"numbers up to {self._largest:.3g}."
            raise ValueError(f"{name} is {given[place]:.6g}{where}; {reason} {advice}")
        return True

    def _check_answer(self, predicted: NDArray[np.float32]) -> None:
        """Refuse predictions (n, act_dim) that are not finite, and say why they are not."""
        if math.isfinite(np.vdot(predicted, predicted)) or np.isfinite(predicted).all():
            return
        for name, tensor in self.model.named_parameters():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"The model cannot act: its weights {name!r} are not finite. Load or train it again.")
        row, dimension = np.argwhere(~np.isfinite(predicted))[0]
        raise ValueError(
            f"The model's answer in row {row} is {predicted[row, dimension]} in dimension {dimension}: what it saw, or "
            f"its weights, are too large to compute with in {self.model.dtype}. Check the environment or sensor."
        )

    def _checked_actions(self, taken: NDArray[Any]) -> NDArray[Any]:
        """Return actions (n, ...) that were taken as the model sees them."""
        if self.action_type == "continuous":
            seen = self._as_seen(taken)
            self._is_large("action", taken, seen, "Give the actions that were taken.")
            return seen
        if taken.dtype.kind not in "iu" or not ((taken >= 0) & (taken < self.act_dim)).all():
            raise ValueError(f"actions are {taken.tolist()}; give whole numbers from 0 to {self.act_dim - 1}.")
        return taken.astype(np.int64)

    def _checked_targets(self, targets: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        """Return one target return per row (n,), from one number or one per row."""
        targets = _per_row("target_return", targets, count)
        with np.errstate(over="ignore"):  # refused
            self._seen_returns("target_return", targets)
        return targets

    def _checked_rewards(self, reward: float | ArrayLike | None) -> NDArray[np.float64] | float:
        """Return what to take off the return-to-go of every row: 0 where no action has been taken yet."""
        if reward is None:
            return 0.0
        rewards = checked_numbers("reward", reward, np.float64)
        if rewards.shape not in ((), self._steps.shape):
            raise ValueError(f"reward has shape {rewards.shape}; give one number or ({self._steps.size},).")
        rewards = np.where(self._steps > 0, rewards, 0.0)
        if not math.isfinite(np.vdot(rewards, rewards)) and not np.isfinite(rewards).all():
            row = int(np.flatnonzero(~np.isfinite(rewards))[0])
            raise ValueError(f"reward is {rewards[row]} in row {row}; give a finite number, or None without rewards.")
        return 0.0 if self._rewarded_at_the_end else rewards

    def _check_time(self) -> None:
        if self._needs_timesteps and self._steps.max() >= self.model.config.max_ep_len:
            row = int(self._steps.argmax())
            raise ValueError(
                f"row {row} is at time step {self._steps[row]}, but this model embeds time steps and knows only those "
                f"below max_ep_len={self.model.config.max_ep_len}; reset the row earlier or train with a larger one."
            )


def _waits_for_a_step(autoreset_mode: Any) -> bool:
    """Tell whether an environment in this mode of gymnasium resets itself in the step after an episode's last one."""
    mode = getattr(autoreset_mode, "value", autoreset_mode)
    if mode not in (None, "NextStep", "SameStep", "Disabled"):
        raise ValueError(f"autoreset_mode={autoreset_mode!r} is unknown; give envs.metadata['autoreset_mode'].")
    return bool(mode == "NextStep")


def _per_row(name: str, values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return one finite value per row (n,), from one number or one per row."""
    if values.shape not in ((), (count,)):
        raise ValueError(f"{name} has shape {values.shape}; give one number or ({count},), one per row.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}={values} must be finite.")
    return np.array(np.broadcast_to(values, (count,)))
