"""What a policy remembers between decisions: a window of the last steps, or the model's recurrent state.

All histories answer the same calls for many rows at once, each an episode of its own: arrays in, arrays out. On a CPU
`CompiledHistory` is the one that is used; the others run any model of torch, on any device.
Source: the Transformer-like and RNN-like modes of DeMa (arXiv 2405.12094, section 4).
"""

from __future__ import annotations

from copy import copy
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..model import DecisionMambaCache, DecisionMambaConfig
from ..model.cache_decision_mamba import NO_ACTION
from .compiled import FusedModel
from .shapes import condition_of, frame_stack, no_actions, no_states, state_and_action_types

Array = NDArray[Any]

_COLUMNS = ("states", "actions", "condition", "timesteps")


class History(Protocol):
    """What a policy asks of its history."""

    def predict(self, states: Array, condition: Array, steps: Array) -> Array:
        """Predict actions or logits (n, act_dim) for states (n, ...) and what is asked for (n, c) at steps (n,)."""

    def remember(self, actions: Array) -> None:
        """Note the actions (n, ...) that were taken."""

    def reset_rows(self, rows: Array) -> None:
        """Put rows (indices) back to the start of an episode."""

    def save(self, exactly: bool) -> Any:
        """Keep what `restore` needs to undo the next prediction; `exactly` also where that costs a copy."""

    def restore(self, saved: Any) -> bool:
        """Undo everything since `save`; false where that would have taken a copy."""


class CompiledHistory:
    """Windows, or recurrent states, of a network that is one compiled call; all in numpy but an image encoder.

    The last steps of every row stand in a buffer, newest last, as in `WindowHistory`; recurrent states need one step.

    Args:
        context_length: steps of a window; None for recurrent states.
    """

    def __init__(self, model: PreTrainedModel, fused: FusedModel, count: int, context_length: int | None):
        self.encode = getattr(model, "embed_state", None) if fused.config.state_type == "image" else None
        self.fused = fused
        self.recurrent_state = fused.new_recurrent_state(count) if context_length is None else None
        self.context_length = context_length or 1
        length = 2 * self.context_length + 1
        self.states = np.zeros((count, length, fused.state_width), fused.dtype)
        self.actions = no_actions(model, count, length).numpy()  # place t holds a_t
        self.no_action = NO_ACTION if fused.config.action_type == "discrete" else 0
        self.condition = np.zeros((count, length, fused.config.condition_dim), fused.dtype)
        self.timesteps = np.zeros((count, length), np.int64)
        self.frames = no_states(model, count, frame_stack(model.config))
        self.end = 1  # one place in front: the previous action of a window's first step

    def predict(self, states: Array, condition: Array, steps: Array) -> Array:
        """Predict actions or logits (n, act_dim) for states (n, ...) and what is asked for (n, c) at steps (n,)."""
        if self.end == self.states.shape[1]:
            self._move_to_front()
        now, self.end = self.end, self.end + 1
        self.states[:, now] = states if self.encode is None else self._encoded(states, steps)
        self.condition[:, now] = condition
        self.timesteps[:, now] = steps
        lengths = np.minimum(steps + 1, self.context_length)
        start = now if self.context_length == 1 else self.end - int(lengths.max())
        return self.fused.predict(
            self.states[:, start : self.end],
            self.condition[:, start : self.end],
            self.actions[:, start - 1 : now],
            self.timesteps[:, start : self.end],
            lengths,
            self.recurrent_state,
        )

    def remember(self, actions: Array) -> None:
        """Note the actions (n, ...) that were taken."""
        self.actions[:, self.end - 1] = actions

    def reset_rows(self, rows: Array) -> None:
        """Put rows (indices) back to the start of an episode; in a window their steps are not read any more."""
        self.actions[rows, self.end - 1] = self.no_action
        if self.recurrent_state is not None:
            self.recurrent_state[rows] = 0

    def save(self, exactly: bool) -> Any:
        """Keep the buffer's end, the frames, and, where asked for, a copy of recurrent states, which takes time."""
        state = self.recurrent_state
        return self.end, self.frames, state.copy() if exactly and state is not None else None

    def restore(self, saved: Any) -> bool:
        """Undo everything since `save`: what was written to the buffer lies behind its end then, and is not read."""
        self.end, self.frames, state = saved
        self.fused._room = self.fused.groups = 0  # it may have been interrupted while it made more room
        if self.recurrent_state is None:
            return True
        self.recurrent_state = self.recurrent_state if state is None else state
        return state is not None

    def __getstate__(self) -> dict[str, Any]:
        # The compiled kernels are a module, which is no part of a copy.
        fused = {name: value for name, value in vars(self.fused).items() if name != "kernels"}
        return {**vars(self), "fused": fused}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from . import compiled_kernels

        vars(self).update(state)
        self.fused = FusedModel.__new__(FusedModel)
        vars(self.fused).update(state["fused"], kernels=compiled_kernels)

    @torch.inference_mode()
    def _encoded(self, frames: Array, steps: Array) -> Array:
        """Encode the stacks whose newest frames these are; each is encoded once."""
        self.frames = _stacked(self.frames, torch.from_numpy(frames), torch.from_numpy(steps == 0))
        assert self.encode is not None
        encoded: Array = self.encode(self.frames[:, None])[:, 0].numpy()
        return encoded

    def _move_to_front(self) -> None:
        kept = self.context_length  # one less than a window of steps, and the action in front of them
        for column in (getattr(self, name) for name in _COLUMNS):
            column[:, :kept] = column[:, self.end - kept : self.end].copy()
        self.end = kept


class WindowHistory:
    """The last steps of every row, newest last, in a buffer whose end moves to the front when it is full.

    All rows share the place of the newest step, so a row that was reset later is padded on its left. Reading a window
    is a view, and a step costs one write, whatever the context length.
    """

    def __init__(
        self, model: PreTrainedModel, count: int, context_length: int, previous_actions: bool, timesteps: bool
    ):
        self.frame_stack = frame_stack(model.config)
        before = max(1, self.frame_stack - 1)  # places in front of a window: the previous action, the stack's frames
        self.kept = context_length - 1 + before
        length = 2 * self.kept + 1
        self.model = model
        self.device = model.device
        self.context_length = context_length
        self.previous_actions = previous_actions
        self.needs_timesteps = timesteps
        self.states = no_states(model, count, length)
        # Place t holds a_t, so the places before a window's hold the previous actions: none before the first step.
        self.actions = no_actions(model, count, length)
        self.no_action = NO_ACTION if state_and_action_types(model.config)[1] == "discrete" else 0
        self.condition_input, size = condition_of(model.config)
        self.condition = torch.zeros(count, length, size, device=model.device, dtype=model.dtype)
        self.timesteps = torch.zeros(count, length, device=model.device, dtype=torch.int64)
        self.end = before

    @torch.inference_mode()
    def predict(self, states: Array, condition: Array, steps: Array) -> Array:
        """Predict actions or logits (n, act_dim) for states (n, ...) and what is asked for (n, c) at steps (n,)."""
        if self.end == self.states.shape[1]:
            self._move_to_front()
        now, self.end = self.end, self.end + 1
        self.states[:, now] = torch.from_numpy(states)
        self.actions[:, now] = self.no_action  # not known yet; what stood here belongs to a step before
        self.condition[:, now] = torch.from_numpy(condition)
        if self.needs_timesteps:
            self.timesteps[:, now] = torch.from_numpy(steps)

        lengths = np.minimum(steps + 1, self.context_length)
        longest, shortest = int(lengths.max()), int(lengths.min())
        start = self.end - longest
        inputs: dict[str, Any] = {
            "states": self._stacked(start, steps) if self.frame_stack else self.states[:, start : self.end],
            "actions": self.actions[:, start : self.end],
        }
        if self.condition_input is not None:
            inputs[self.condition_input] = self.condition[:, start : self.end]
        if self.previous_actions:
            inputs["previous_actions"] = self.actions[:, start - 1 : now]
        if self.needs_timesteps:
            inputs["timesteps"] = self.timesteps[:, start : self.end]
        # Rows of one length need no mask; DecisionTransformer does, because the one it makes itself lies on the CPU.
        if shortest < longest or not self.previous_actions:
            padding = longest - torch.from_numpy(lengths)
            inputs["attention_mask"] = (torch.arange(longest) >= padding[:, None]).long().to(self.device)
        return _to_numpy(self.model(**inputs).action_preds[:, -1])

    @torch.inference_mode()
    def remember(self, actions: Array) -> None:
        """Note the actions (n, ...) that were taken."""
        self.actions[:, self.end - 1] = torch.from_numpy(actions)

    @torch.inference_mode()
    def reset_rows(self, rows: Array) -> None:
        """Forget the last action; the steps themselves are masked because their rows are short again."""
        self.actions[torch.from_numpy(rows), self.end - 1] = self.no_action

    def save(self, exactly: bool) -> Any:
        """Keep the buffer's end."""
        return self.end

    def restore(self, saved: Any) -> bool:
        """Undo everything since `save`, as `CompiledHistory.restore`."""
        self.end = saved
        return True

    def __getstate__(self) -> dict[str, Any]:
        # As bytes: of a tensor, another process would get the same memory, and two policies would write to one buffer.
        columns = {name: getattr(self, name).cpu().view(torch.uint8).numpy() for name in _COLUMNS}
        return {**vars(self), **columns, "dtypes": {name: getattr(self, name).dtype for name in _COLUMNS}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        dtypes = state.pop("dtypes")
        columns = {name: torch.from_numpy(state[name]).view(dtypes[name]).to(state["device"]) for name in _COLUMNS}
        vars(self).update(state, **columns)

    def _stacked(self, start: int, steps: NDArray[np.int64]) -> Tensor:
        """Stack the frames from `start` on that end at time steps `steps` (n,), as (n, k, frames, height, width)."""
        places = torch.arange(start, self.end)[:, None] + torch.arange(1 - self.frame_stack, 1)
        first = self.end - 1 - torch.from_numpy(steps)  # where each row's episode began, or would in an endless buffer
        places = torch.maximum(places, first[:, None, None]).to(self.device)
        return self.states[torch.arange(len(steps), device=self.device)[:, None, None], places]

    def _move_to_front(self) -> None:
        kept = self.kept  # one less than a window of steps, and what is read in front of them
        for column in (getattr(self, name) for name in _COLUMNS):
            column[:, :kept] = column[:, self.end - kept : self.end]
        self.end = kept


class RecurrentState:
    """The model's recurrent state of every row, and the action that it took last; no tensor is ever written to."""

    def __init__(self, model: PreTrainedModel, count: int, timesteps: bool):
        self.model = model
        self.device = model.device
        self.needs_timesteps = timesteps
        config = cast(DecisionMambaConfig, model.config)
        self.condition_input, _ = condition_of(config)
        self.cache = DecisionMambaCache(config, count, device=model.device, dtype=model.dtype)
        self.last_actions = no_actions(model, count)
        self.no_action = NO_ACTION if config.action_type == "discrete" else 0
        self.frame_stack = frame_stack(config)
        self.frames = no_states(model, count, self.frame_stack)

    @torch.inference_mode()
    def predict(self, states: Array, condition: Array, steps: Array) -> Array:
        """Predict actions or logits (n, act_dim) for states (n, ...) and what is asked for (n, c) at steps (n,)."""
        newest = torch.from_numpy(states).to(self.device)
        if self.frame_stack:
            newest = self.frames = _stacked(self.frames, newest, torch.from_numpy(steps == 0).to(self.device))
        asked_for = {} if self.condition_input is None else {self.condition_input: torch.from_numpy(condition)}
        output = self.model(
            states=newest[:, None],
            **{name: tensor.to(self.device)[:, None] for name, tensor in asked_for.items()},
            previous_actions=self.last_actions[:, None],
            timesteps=torch.from_numpy(steps)[:, None].to(self.device) if self.needs_timesteps else None,
            cache_params=self.cache,
        )
        return _to_numpy(output.action_preds[:, 0])

    @torch.inference_mode()
    def remember(self, actions: Array) -> None:
        """Note the actions (n, ...) that were taken."""
        self.last_actions = torch.from_numpy(actions).to(self.last_actions, copy=True)

    @torch.inference_mode()
    def reset_rows(self, rows: Array) -> None:
        """Put rows (indices) back to the start of an episode."""
        index = torch.from_numpy(rows)
        self.cache.reset(index)
        self.last_actions = self.last_actions.clone()
        self.last_actions[index] = self.no_action

    def save(self, exactly: bool) -> Any:
        """Keep the tensors of now: a prediction puts new ones in their place."""
        cache = copy(self.cache)
        for name in ("local_states", "conv_states", "ssm_states"):
            setattr(cache, name, list(getattr(cache, name)))
        return cache, self.last_actions, self.frames

    def restore(self, saved: Any) -> bool:
        """Undo everything since `save`."""
        self.cache, self.last_actions, self.frames = saved
        return True


def _stacked(stacks: Tensor, newest: Tensor, begins: Tensor) -> Tensor:
    """Move stacks (n, frames, height, width) on by newest frames (n, height, width), repeated where a row begins."""
    frames = newest[:, None]
    return torch.where(begins[:, None, None, None], frames, torch.cat([stacks[:, 1:], frames], dim=1))


def _to_numpy(predictions: Tensor) -> Array:
    numbers: Array = predictions.float().cpu().numpy()
    return numbers
