"""From a trained model to actions: what is remembered between decisions, and the return-to-go that is left to earn.

Source: evaluation of Decision Transformer (Chen et al. 2021, algorithm 1); the Transformer-like and RNN-like modes of
DeMa (arXiv 2405.12094, section 4).
"""

from __future__ import annotations

import inspect
import os
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from .model import DecisionMambaCache, DecisionMambaConfig, DecisionMambaProcessor

Mode = Literal["window", "recurrent"]


class DecisionMambaPolicy:
    """Act in one environment or in many at once: numpy observations in, numpy actions out.

    Every row of a batch is an episode of its own, with its own history and return-to-go. The model sees as previous
    action what `act` returned, so after clipping to the action bounds.

    Args:
        model: a `DecisionMambaModel`, or in window mode any model with `DecisionTransformerModel`'s forward. It is put
            in evaluation mode by every `reset`.
        processor: normalisation, return scale, action bounds and defaults that belong to the model.
        mode: `"window"` re-reads the last `context_length` steps at every decision (Transformer-like); `"recurrent"`
            carries the model's state, at a cost that does not grow with the history (RNN-like).
        context_length: steps of the window; `processor.context_length` when not given.

    Raises:
        ValueError: an unknown mode, a model that cannot act in it, or a processor of other dimensions than the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: DecisionMambaProcessor,
        mode: Mode = "window",
        *,
        context_length: int | None = None,
    ):
        arguments = inspect.signature(model.forward).parameters
        if mode not in ("window", "recurrent"):
            raise ValueError(f"mode={mode!r} is unknown; choose 'window' or 'recurrent'.")
        if mode == "recurrent" and "cache_params" not in arguments:
            raise ValueError(f"{type(model).__name__} carries no state between decisions; use mode='window'.")
        if mode == "recurrent" and context_length is not None:
            raise ValueError(f"context_length={context_length} has no meaning in mode='recurrent'; leave it out.")
        if context_length is not None and context_length < 1:
            raise ValueError(f"context_length={context_length} must be at least 1.")
        _check_dimensions(model, processor)
        self.model = model
        self.processor = processor
        self.mode: Mode = mode
        self.context_length = processor.context_length if context_length is None else context_length
        self.state_dim: int = model.config.state_dim
        self.act_dim: int = model.config.act_dim
        # DecisionTransformer has no such argument, and always embeds the time step.
        self._previous_actions = "previous_actions" in arguments
        self._needs_timesteps = not self._previous_actions or bool(
            getattr(model.config, "use_timestep_embedding", False)
        )
        self._target_return: NDArray[np.float64] | None = None  # of the last reset, one number or one per row
        self._memory: _Window | _Recurrent | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | os.PathLike[str],
        mode: Mode = "window",
        device: torch.device | str | None = None,
        *,
        context_length: int | None = None,
        **hub_kwargs: Any,
    ) -> DecisionMambaPolicy:
        """Load model and processor from a checkpoint folder or a repository of the Hub.

        Args:
            path_or_repo_id: a folder, or `"org/name"`.
            mode: `"window"` or `"recurrent"`.
            device: where the model computes; the CPU when not given.
            context_length: steps of the window; the processor's when not given.
            hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, ... as `from_pretrained` of transformers.

        Raises:
            FileNotFoundError: the checkpoint has no preprocessor_config.json.
            OSError: no checkpoint is there (transformers says where it looked).
            ValueError: the checkpoint lacks weights that its config asks for, or they have other shapes.
        """
        model = _load_model(path_or_repo_id, **hub_kwargs)
        try:
            processor = DecisionMambaProcessor.from_pretrained(path_or_repo_id, **hub_kwargs)
        except OSError as error:
            raise FileNotFoundError(
                f"{path_or_repo_id} holds a model but no preprocessor_config.json, without which states "
                "cannot be normalised as in training; write it with DecisionMambaProcessor(...).save_pretrained(...)."
            ) from error
        if device is not None:
            cast(torch.nn.Module, model).to(device)
        return cls(model, processor, mode, context_length=context_length)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def returns_to_go(self) -> NDArray[np.float64]:
        """Return that is left to earn of every row (n,), in the environment's units."""
        self._rows("returns_to_go")
        return self._returns_to_go.copy()

    def reset(self, target_return: float | ArrayLike | None = None, num_envs: int | None = None) -> None:
        """Start new episodes in all rows.

        Args:
            target_return: the return to ask for, in the environment's units: one number or one per row (n,);
                `processor.target_return` when not given.
            num_envs: number of rows; when not given, the length of `target_return` or the first observation says it.

        Raises:
            ValueError: no target return anywhere, or one that is not finite or not one per row.
        """
        target_return = self.processor.target_return if target_return is None else target_return
        if target_return is None:
            raise ValueError(
                "No target return: this checkpoint stores none. Say which return to ask for with "
                "policy.reset(target_return=...), or set processor.target_return."
            )
        targets = np.asarray(target_return, dtype=np.float64)
        if targets.ndim and num_envs is None:
            num_envs = targets.shape[0]
        if num_envs is not None and num_envs < 1:
            raise ValueError(f"num_envs={num_envs} must be at least 1.")
        _per_row("target_return", targets, num_envs or 1)
        self._target_return = targets
        self._memory = None
        self.model.eval()
        if num_envs is not None:
            self._start(num_envs)

    def reset_rows(self, rows: ArrayLike, target_return: float | ArrayLike | None = None) -> None:
        """Start new episodes in some rows, while the others go on.

        Args:
            rows: a boolean mask (n,) or indices.
            target_return: one number or one per selected row; what each row was last asked for when not given.

        Raises:
            ValueError: before the number of rows is known, or a mask, index or target return that does not fit.
        """
        count = self._rows("reset_rows")
        memory = cast("_Window | _Recurrent", self._memory)
        index = np.asarray(rows)
        if index.dtype == np.bool_ and index.shape != (count,):
            raise ValueError(f"rows is a mask of shape {index.shape}; the policy has {count} rows.")
        index = np.flatnonzero(index) if index.dtype == np.bool_ else np.atleast_1d(index.astype(np.int64))
        if index.size == 0:
            return
        if index.min() < 0 or index.max() >= count:
            raise ValueError(f"rows={index.tolist()} go beyond the policy's rows, 0 to {count - 1}.")
        if target_return is not None:
            self._targets[index] = _per_row("target_return", np.asarray(target_return, dtype=np.float64), index.size)
        self._returns_to_go[index] = self._targets[index]
        self._steps[index] = 0
        with torch.inference_mode():  # in which the memory was made
            memory.reset_rows(torch.from_numpy(index).to(memory.device))

    def act(self, observation: ArrayLike, reward: float | ArrayLike | None = None) -> NDArray[np.float32]:
        """Choose the next action of every row.

        The first call without a `reset` before it starts episodes at the processor's target return.

        Args:
            observation: (state_dim,) of one environment, or (n, state_dim).
            reward: what the previous action earned, one number or (n,); it is taken off the return-to-go. Ignored in
                rows that have just been reset. Without it the return-to-go stays as it is (robots may have no rewards).

        Returns:
            (act_dim,) or (n, act_dim), float32, within the processor's action bounds.

        Raises:
            ValueError: an observation or reward of the wrong shape or not finite (nothing has changed then), no target
                return, or a time step at or beyond the model's `max_ep_len` (only where the model embeds time steps).
        """
        observations, single = self._checked_observations(observation)
        if self._target_return is None:
            self.reset()
        if self._memory is None:
            self._start(observations.shape[0])
        memory, count = cast("_Window | _Recurrent", self._memory), self._steps.size
        if observations.shape[0] != count:
            raise ValueError(
                f"observation has {observations.shape[0]} rows, but the policy was reset for {count}; "
                f"call reset(num_envs={observations.shape[0]}) to change their number."
            )
        rewards = self._checked_rewards(reward)
        self._check_time()

        self._returns_to_go -= rewards
        states = torch.from_numpy(self.processor.normalize_states(observations)).to(memory.device)
        returns = torch.from_numpy(self.processor.scale_returns(self._returns_to_go)).to(memory.device)
        with torch.inference_mode():
            predicted = memory.predict(states, returns, self._steps)
            actions = self.processor.clip_actions(predicted.float().cpu().numpy())
            memory.remember(torch.from_numpy(actions))
        self._steps += 1
        return actions[0].copy() if single else actions.copy()  # the caller may write into what it gets

    def _start(self, count: int) -> None:
        """Make room for so many rows, all at the start of an episode."""
        self._targets = _per_row("target_return", cast(NDArray[np.float64], self._target_return), count)
        self._returns_to_go = self._targets.copy()
        self._steps = np.zeros(count, dtype=np.int64)
        with torch.inference_mode():
            if self.mode == "recurrent":
                self._memory = _Recurrent(self.model, count, self._needs_timesteps)
            else:
                self._memory = _Window(
                    self.model, count, self.context_length, self._previous_actions, self._needs_timesteps
                )

    def _rows(self, what: str) -> int:
        if self._memory is None:
            raise ValueError(f"{what}: the number of rows is not known yet; call reset(num_envs=...) or act first.")
        return self._steps.size

    def _checked_observations(self, observation: ArrayLike) -> tuple[NDArray[np.float32], bool]:
        """Observations (n, state_dim), and whether the caller gave a single one without rows."""
        with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which is reported below
            observations = np.asarray(observation, dtype=np.float32)
        if observations.ndim not in (1, 2) or observations.shape[-1] != self.state_dim or observations.size == 0:
            raise ValueError(
                f"observation has shape {observations.shape}; this model reads ({self.state_dim},) from one "
                f"environment or (n, {self.state_dim}) from n."
            )
        single = observations.ndim == 1
        observations = np.atleast_2d(observations)
        if not np.isfinite(observations).all():
            row, dimension = np.argwhere(~np.isfinite(observations))[0]
            raise ValueError(
                f"observation is {observations[row, dimension]} in row {row}, dimension {dimension}; "
                "only finite numbers can be acted on. Check the environment or sensor."
            )
        return observations, single

    def _checked_rewards(self, reward: float | ArrayLike | None) -> NDArray[np.float64] | float:
        """What to take off the return-to-go of every row: 0 where no action has been taken yet."""
        if reward is None:
            return 0.0
        rewards = np.asarray(reward, dtype=np.float64)
        if rewards.shape not in ((), self._steps.shape):
            raise ValueError(f"reward has shape {rewards.shape}; give one number or ({self._steps.size},).")
        rewards = np.where(self._steps > 0, rewards, 0.0)
        if not np.isfinite(rewards).all():
            row = int(np.flatnonzero(~np.isfinite(rewards))[0])
            raise ValueError(f"reward is {rewards[row]} in row {row}; give a finite number, or None without rewards.")
        return rewards

    def _check_time(self) -> None:
        if self._needs_timesteps and self._steps.max() >= self.model.config.max_ep_len:
            row = int(self._steps.argmax())
            raise ValueError(
                f"row {row} is at time step {self._steps[row]}, but this model embeds time steps and knows only those "
                f"below max_ep_len={self.model.config.max_ep_len}; reset the row earlier or train with a larger one."
            )


class _Window:
    """The last steps of every row, newest last, on a tape that is written to the right and wound back when it is full.

    All rows share the place of the newest step, so a row that was reset later is padded on its left. Reading a window
    is a view, and a step costs one write, whatever the context length.
    """

    def __init__(
        self, model: PreTrainedModel, count: int, context_length: int, previous_actions: bool, timesteps: bool
    ):
        config, length = model.config, 2 * context_length + 1
        self.model = model
        self.device = model.device
        self.context_length = context_length
        self.previous_actions = previous_actions
        self.needs_timesteps = timesteps
        self.states = torch.zeros(count, length, config.state_dim, device=model.device, dtype=model.dtype)
        # Place t holds a_t, so the places before a window's hold the previous actions: zero before the first step.
        self.actions = torch.zeros(count, length, config.act_dim, device=model.device, dtype=model.dtype)
        self.returns_to_go = torch.zeros(count, length, 1, device=model.device, dtype=model.dtype)
        self.timesteps = torch.zeros(count, length, device=model.device, dtype=torch.int64)
        self.end = 1

    def predict(self, states: Tensor, returns_to_go: Tensor, steps: NDArray[np.int64]) -> Tensor:
        """Actions (n, act_dim) for states (n, state_dim) and returns-to-go (n,) at time steps `steps` (n,)."""
        if self.end == self.states.shape[1]:
            self._wind_back()
        now, self.end = self.end, self.end + 1
        self.states[:, now] = states
        self.actions[:, now] = 0  # not known yet; what stood here belongs to a lap before
        self.returns_to_go[:, now, 0] = returns_to_go
        if self.needs_timesteps:
            self.timesteps[:, now] = torch.from_numpy(steps)

        lengths = np.minimum(steps + 1, self.context_length)
        longest, shortest = int(lengths.max()), int(lengths.min())
        start = self.end - longest
        inputs: dict[str, Any] = {
            "states": self.states[:, start : self.end],
            "actions": self.actions[:, start : self.end],
            "returns_to_go": self.returns_to_go[:, start : self.end],
        }
        if self.previous_actions:
            inputs["previous_actions"] = self.actions[:, start - 1 : now]
        if self.needs_timesteps:
            inputs["timesteps"] = self.timesteps[:, start : self.end]
        # Rows of one length need no mask; DecisionTransformer does, because the one it makes itself lies on the CPU.
        if shortest < longest or not self.previous_actions:
            padding = longest - torch.from_numpy(lengths)
            inputs["attention_mask"] = (torch.arange(longest) >= padding[:, None]).long().to(self.device)
        return self.model(**inputs).action_preds[:, -1]

    def remember(self, actions: Tensor) -> None:
        """Note the actions (n, act_dim) that were taken."""
        self.actions[:, self.end - 1] = actions

    def reset_rows(self, rows: Tensor) -> None:
        """Forget the last action; the steps themselves are masked because their rows are short again."""
        self.actions[rows, self.end - 1] = 0

    def _wind_back(self) -> None:
        kept = self.context_length  # one less than a window of steps, and the action before them
        for tape in (self.states, self.actions, self.returns_to_go, self.timesteps):
            tape[:, :kept] = tape[:, self.end - kept : self.end]
        self.end = kept


class _Recurrent:
    """The model's recurrent state of every row, and the action that it took last."""

    def __init__(self, model: PreTrainedModel, count: int, timesteps: bool):
        self.model = model
        self.device = model.device
        self.needs_timesteps = timesteps
        config = cast(DecisionMambaConfig, model.config)
        self.cache = DecisionMambaCache(config, count, device=model.device, dtype=model.dtype)
        self.last_actions = torch.zeros(count, model.config.act_dim, device=model.device, dtype=model.dtype)

    def predict(self, states: Tensor, returns_to_go: Tensor, steps: NDArray[np.int64]) -> Tensor:
        """Actions (n, act_dim) for states (n, state_dim) and returns-to-go (n,) at time steps `steps` (n,)."""
        output = self.model(
            states=states[:, None],
            returns_to_go=returns_to_go[:, None, None],
            previous_actions=self.last_actions[:, None],
            timesteps=torch.from_numpy(steps)[:, None].to(self.device) if self.needs_timesteps else None,
            cache_params=self.cache,
        )
        return output.action_preds[:, 0]

    def remember(self, actions: Tensor) -> None:
        """Note the actions (n, act_dim) that were taken."""
        self.last_actions.copy_(actions)

    def reset_rows(self, rows: Tensor) -> None:
        """Put rows back to the start of an episode."""
        self.cache.reset(rows)
        self.last_actions[rows] = 0


def _load_model(path_or_repo_id: str | os.PathLike[str], **hub_kwargs: Any) -> PreTrainedModel:
    """Load a model and refuse one whose weights are not all there, which transformers would draw at random."""
    try:
        model, info = AutoModel.from_pretrained(path_or_repo_id, output_loading_info=True, **hub_kwargs)
    except RuntimeError as error:
        raise ValueError(f"The weights of {path_or_repo_id} do not match its config.json: {error}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(
            f"The weights of {path_or_repo_id} do not match its config.json: {len(missing)} are missing, "
            f"{missing[0]!r} first. Use the config that the weights were saved with."
        )
    return model


def _check_dimensions(model: PreTrainedModel, processor: DecisionMambaProcessor) -> None:
    kinds = getattr(model.config, "state_type", "vector"), getattr(model.config, "action_type", "continuous")
    if kinds != ("vector", "continuous"):
        raise ValueError(
            f"This model has {kinds[0]} states and {kinds[1]} actions; only vectors and continuous ones act."
        )
    if len(processor.state_mean) != model.config.state_dim:
        raise ValueError(
            f"The processor normalises {len(processor.state_mean)} state dimensions, but the model reads "
            f"state_dim={model.config.state_dim}; give the processor that was saved with this model."
        )
    if processor.action_low is not None and len(processor.action_low) != model.config.act_dim:
        raise ValueError(
            f"The processor bounds {len(processor.action_low)} action dimensions, but the model predicts "
            f"act_dim={model.config.act_dim}; give the processor that was saved with this model."
        )


def _per_row(name: str, values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """One finite value per row (n,), from one number or one per row."""
    if values.shape not in ((), (count,)):
        raise ValueError(f"{name} has shape {values.shape}; give one number or ({count},), one per row.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}={values} must be finite.")
    return np.array(np.broadcast_to(values, (count,)))
