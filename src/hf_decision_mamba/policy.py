"""From a trained model to actions: what is remembered between decisions, and the return-to-go that is left to earn.

Source: evaluation of Decision Transformer (Chen et al. 2021, algorithm 1); the Transformer-like and RNN-like modes of
DeMa (arXiv 2405.12094, section 4).
"""

from __future__ import annotations

import inspect
import os
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from numpy.typing import ArrayLike, NDArray
from transformers import AutoConfig, AutoModel, PreTrainedModel

from .memory import FusedMemory, Memory, RecurrentMemory, WindowMemory, kinds_of, observation_shape
from .model import DecisionMambaProcessor
from .model.fused_cpu import fuse
from .model.loading_decision_mamba import (
    DAMAGE,
    CheckedConfig,
    check_config_file,
    check_sizes,
    in_short,
    load_checked,
)

Mode = Literal["window", "recurrent"]
Actions = NDArray[np.float32] | NDArray[np.int64] | np.int64


class DecisionMambaPolicy:
    """Act in one environment or in many at once: numpy observations in, numpy actions out.

    Every row of a batch is an episode of its own, with its own history and return-to-go. The model sees as previous
    action what `act` returned, so after clipping to the action bounds. Of images a row gives its newest frame, and the
    policy stacks the last ones as `WindowDataset` does: before an episode's first frame, that frame repeats.

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
        self.state_type, self.action_type = kinds_of(model.config)
        _check_sampling(sample, temperature, self.action_type)
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
        self._needs_timesteps = not self._previous_actions or bool(
            getattr(model.config, "use_timestep_embedding", False)
        )
        self._target_return: NDArray[np.float64] | None = None  # of the last reset, one number or one per row
        self._memory: Memory | None = None

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
            if not _is_missing(path_or_repo_id, error):  # it is no JSON, or cannot be read now
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
    ) -> None:
        """Start new episodes in all rows.

        Args:
            target_return: the return to ask for, in the environment's units: one number or one per row (n,);
                `processor.target_return` when not given.
            num_envs: number of rows; when not given, the length of `target_return` or the first observation says it.
            seed: starts the draws of a sampling policy over, from this seed; they go on when not given.

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
        if seed is not None:
            self._restart_draws(seed)
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
        memory = cast(Memory, self._memory)
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
        for row, stream in zip(index, self._next_streams(index.size), strict=True):
            self._streams[row] = stream
        with torch.inference_mode():  # in which the memory was made
            memory.reset_rows(index)

    def act(self, observation: ArrayLike, reward: float | ArrayLike | None = None) -> Actions:
        """Choose the next action of every row.

        The first call without a `reset` before it starts episodes at the processor's target return.

        Args:
            observation: (state_dim,) of one environment, or (n, state_dim); where the processor has
                `observation_parts`, also what the environment gives, of one or of n as gymnasium batches them: a
                dictionary, a tuple, a matrix, a whole number. Of an image model the newest frame alone, (height, width)
                or (n, height, width) uint8, grey from 0 to 255.
            reward: what the previous action earned, one number or (n,); it is taken off the return-to-go. Ignored in
                rows that have just been reset. Without it the return-to-go stays as it is (robots may have no rewards).
                Give it in the units of the target return: in Atari the game's own points, not clipped ones.

        Returns:
            (act_dim,) or (n, act_dim), float32, within the processor's action bounds; discrete actions, counted from
            the processor's `action_start` (0, if the environment does), are one np.int64 or (n,) int64.

        Raises:
            ValueError: an observation or reward of the wrong shape or type or not finite (nothing has changed then),
                no target return, or a time step at or beyond `max_ep_len` (only where the model embeds time steps);
                or a prediction that is not finite.
        """
        observations, single = self._checked_observations(observation)
        if self._target_return is None:
            self.reset()
        if self._memory is None:
            self._start(observations.shape[0])
        memory, count = cast(Memory, self._memory), self._steps.size
        if observations.shape[0] != count:
            raise ValueError(
                f"observation has {observations.shape[0]} rows, but the policy was reset for {count}; "
                f"call reset(num_envs={observations.shape[0]}) to change their number."
            )
        rewards = self._checked_rewards(reward)
        self._check_time()

        self._returns_to_go -= rewards
        if self.state_type == "vector":
            observations = self.processor.normalize_states(observations)
        returns_to_go = self.processor.scale_returns(self._returns_to_go)
        with torch.inference_mode():
            actions = self._choose(memory.predict(observations, returns_to_go, self._steps))
            memory.remember(self._as_seen(actions))
        self._steps += 1
        actions = actions + self.processor.action_start if self.action_type == "discrete" else actions.copy()
        return actions[0] if single else actions  # a copy: the caller may write into what it gets

    def took(self, actions: ArrayLike) -> None:
        """Say which actions were really taken, where they are not the ones that the last `act` returned.

        Args:
            actions: as `act` returns them, of all rows (noise was added, or some were drawn at random): from now on the
                model sees these as previous actions.

        Raises:
            ValueError: there was no `act` before, or the actions have another shape than those that it returned.
        """
        count = self._rows("took")
        taken = np.asarray(actions, dtype=np.float32 if self.action_type == "continuous" else np.int64)
        expected = (count, self.act_dim) if self.action_type == "continuous" else (count,)
        if taken.shape != expected:
            raise ValueError(f"actions have shape {taken.shape}; give {expected}, one per row.")
        if self.action_type == "discrete":
            taken = taken - self.processor.action_start
        with torch.inference_mode():  # in which the memory was made
            cast(Memory, self._memory).remember(self._as_seen(taken))

    def _choose(self, predicted: NDArray[np.float32]) -> NDArray[Any]:
        """The actions that predictions (n, act_dim) stand for: clipped, or of logits the most likely or drawn ones."""
        if not np.isfinite(predicted).all():
            row, dimension = np.argwhere(~np.isfinite(predicted))[0]
            raise ValueError(
                f"the model predicts {predicted[row, dimension]} in row {row}, dimension {dimension} of the action: "
                "its weights diverged or are damaged. Use an earlier checkpoint, or get it again."
            )
        if self.action_type == "continuous":
            return self.processor.denormalize_actions(predicted)
        if not self.sample:
            return predicted.argmax(axis=-1).astype(np.int64)
        # The largest of logits with Gumbel noise is a draw from their softmax.
        noise = np.stack([stream.gumbel(size=self.act_dim) for stream in self._streams])
        return (predicted / self.temperature + noise).argmax(axis=-1).astype(np.int64)

    def _as_seen(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions as the model sees them."""
        return self.processor.normalize_actions(actions) if self.action_type == "continuous" else actions

    def _restart_draws(self, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed} must be at least 0.")
        self.seed, self._episodes = seed, 0

    def _next_streams(self, count: int) -> list[np.random.Generator]:
        """Random streams of the episodes that begin now, in the order of their rows."""
        first, self._episodes = self._episodes, self._episodes + count
        return [np.random.default_rng([self.seed, episode]) for episode in range(first, self._episodes)]

    def _start(self, count: int) -> None:
        """Make room for so many rows, all at the start of an episode."""
        self._targets = _per_row("target_return", cast(NDArray[np.float64], self._target_return), count)
        self._returns_to_go = self._targets.copy()
        self._steps = np.zeros(count, dtype=np.int64)
        self._streams = self._next_streams(count)
        with torch.inference_mode():
            self._memory = self._new_memory(count)

    def _new_memory(self, count: int) -> Memory:
        """Room for so many rows; the weights that it acts with are the model's of now."""
        context_length = None if self.mode == "recurrent" else self.context_length
        fused = fuse(self.model)
        if fused is not None:
            return FusedMemory(self.model, fused, count, context_length)
        if context_length is None:
            return RecurrentMemory(self.model, count, self._needs_timesteps)
        return WindowMemory(self.model, count, context_length, self._previous_actions, self._needs_timesteps)

    def _rows(self, what: str) -> int:
        if self._memory is None:
            raise ValueError(f"{what}: the number of rows is not known yet; call reset(num_envs=...) or act first.")
        return self._steps.size

    def _checked_observations(self, observation: ArrayLike) -> tuple[NDArray[Any], bool]:
        """Observations (n, ...), and whether the caller gave a single one without rows; frames are a copy."""
        shape, image = self.observation_shape, self.state_type == "image"
        observation = observation if image else self.processor.flatten_observations(observation)
        with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which is reported below
            observations = np.array(observation) if image else np.asarray(observation, dtype=np.float32)
        single = observations.ndim == len(shape)
        rows = observations.shape[: observations.ndim - len(shape)]
        if len(rows) > 1 or observations.shape != (*rows, *shape) or observations.size == 0:
            raise ValueError(
                f"observation has shape {observations.shape}; this model reads {shape} from one environment or "
                f"(n, {', '.join(map(str, shape))}) from n."
            )
        if image and observations.dtype != np.uint8:
            raise ValueError(
                f"observation is {observations.dtype}; this model reads frames of uint8, grey from 0 to 255, as "
                "gymnasium's AtariPreprocessing gives them."
            )
        if single:
            observations = observations[None]
        if not image and not np.isfinite(observations).all():
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


def load_model(path_or_repo_id: str | os.PathLike[str], **hub_kwargs: Any) -> PreTrainedModel:
    """Load a model of any class when its config and weights can be trusted; each of ours checks itself.

    Args, raises: as `DecisionMambaPolicy.from_pretrained`.
    """
    try:
        check_config_file(path_or_repo_id, **hub_kwargs)
        config = AutoConfig.from_pretrained(path_or_repo_id, **hub_kwargs)
        load = partial(AutoModel.from_pretrained, path_or_repo_id, config=config)
        if isinstance(config, CheckedConfig):
            return load(**hub_kwargs)
        check_sizes(config)
        return load_checked(load, lambda: AutoModel.from_config(config), path_or_repo_id, **hub_kwargs)
    except OSError as error:
        raise OSError(f"No checkpoint can be loaded from {path_or_repo_id}: {in_short(error)}") from error
    except DAMAGE as error:
        if isinstance(error, ValueError) and str(error).startswith(f"The weights of {path_or_repo_id} "):
            raise
        raise ValueError(f"The checkpoint in {path_or_repo_id} cannot be loaded: {in_short(error)}") from error


def _check_sampling(sample: bool, temperature: float, action_type: str) -> None:
    if sample and action_type == "continuous":
        raise ValueError("sample=True needs discrete actions, but this model's are continuous; leave it out.")
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature={temperature} must be a positive number.")
    if temperature != 1 and not sample:
        raise ValueError(f"temperature={temperature} has no meaning without sample=True.")


def _check_dimensions(model: PreTrainedModel, processor: DecisionMambaProcessor) -> None:
    config, other = model.config, "give the processor that was saved with this model."
    state_type, action_type = kinds_of(config)
    if processor.state_type != state_type:
        raise ValueError(
            f"The processor is for {processor.state_type} states (its state_mean is "
            f"{'None' if processor.state_mean is None else 'given'}), but the model reads {state_type} states; {other}"
        )
    if state_type == "image" and processor.frame_stack != config.num_channels:
        raise ValueError(
            f"The processor stacks {processor.frame_stack} frames, but the model reads "
            f"num_channels={config.num_channels}; {other}"
        )
    if processor.state_mean is not None and len(processor.state_mean) != config.state_dim:
        raise ValueError(
            f"The processor normalises {len(processor.state_mean)} state dimensions, but the model reads "
            f"state_dim={config.state_dim}; {other}"
        )
    if processor.action_start and action_type == "continuous":
        raise ValueError(f"The processor numbers actions, but the model's are continuous; {other}")
    for does, values in (("bounds", processor.action_low), ("scales", processor.action_scale)):
        if values is not None and action_type == "discrete":
            raise ValueError(f"The processor {does} actions, but the model chooses discrete ones; {other}")
        if values is not None and len(values) != config.act_dim:
            raise ValueError(
                f"The processor {does} {len(values)} action dimensions, but the model predicts "
                f"act_dim={config.act_dim}; {other}"
            )


def _is_missing(path_or_repo_id: str | os.PathLike[str], error: BaseException | None) -> bool:
    """Whether an error of loading the processor means that the checkpoint has no preprocessor_config.json."""
    if os.path.isdir(path_or_repo_id):
        return not os.path.isfile(os.path.join(path_or_repo_id, "preprocessor_config.json"))
    while error is not None:
        if isinstance(error, EntryNotFoundError):
            return not isinstance(error, LocalEntryNotFoundError)
        error = error.__cause__ or error.__context__
    return False


def _per_row(name: str, values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """One finite value per row (n,), from one number or one per row."""
    if values.shape not in ((), (count,)):
        raise ValueError(f"{name} has shape {values.shape}; give one number or ({count},), one per row.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}={values} must be finite.")
    return np.array(np.broadcast_to(values, (count,)))
