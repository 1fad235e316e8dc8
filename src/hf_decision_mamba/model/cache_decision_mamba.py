# Copyright 2026
"""The recurrent state of a Decision Mamba model: what one row of a batch remembers between decisions.

Constant in size however long the episode is: per layer the last tokens that the local mixer and the convolution look
back on and the state of the scan; once per model the last action and whether the episode has begun.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .configuration_decision_mamba import DecisionMambaConfig

NO_ACTION = -1  # the discrete previous action of an episode's first step


class DecisionMambaCache:
    """Recurrent states of a batch of independent episodes; a new cache stands at the start of every episode.

    Args:
        config: the model's configuration.
        batch_size: number of episodes (rows).
        device: where the states live.
        dtype: dtype of the remembered tokens; the scan's states are float32, or float64 when `dtype` is.

    Attributes:
        local_states: per layer (batch, local_mixer_window - 1, hidden_size), oldest token first; empty without a local
            mixer.
        conv_states: per layer (batch, conv_kernel - 1, channels), oldest token first.
        ssm_states: per layer (batch, channels, state_size); of a GRU (batch, channels, 1).
        last_actions: the action of the last real step: (batch, act_dim), zero at an episode's start, or (batch,), -1 at
            an episode's start, for discrete actions.
        started: (batch,) bool, whether the row has seen a real step of its episode.
        last_time_scale: (batch,) the time scale of the last real step, whose own action may be the next call's first
            token; None as long as no call has given any.
    """

    def __init__(
        self,
        config: DecisionMambaConfig,
        batch_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        state_dtype = torch.promote_types(dtype, torch.float32)
        conv_shape = (batch_size, config.conv_history, config.conv_channels)
        ssm_shape = (batch_size, config.intermediate_size, 1 if config.ssm == "gru" else config.state_size)
        local_shape = (batch_size, config.local_mixer_window - 1, config.hidden_size)
        layers = range(config.n_layer)
        self.local_states = [
            torch.zeros(local_shape, device=device, dtype=dtype) for _ in layers if config.local_mixer is not None
        ]
        self.conv_states = [torch.zeros(conv_shape, device=device, dtype=dtype) for _ in layers]
        self.ssm_states = [torch.zeros(ssm_shape, device=device, dtype=state_dtype) for _ in layers]
        if config.action_type == "discrete":
            self.last_actions = torch.full((batch_size,), NO_ACTION, device=device)
        else:
            self.last_actions = torch.zeros(batch_size, config.act_dim, device=device, dtype=dtype)
        self.started = torch.zeros(batch_size, device=device, dtype=torch.bool)
        self.last_time_scale: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.started.shape[0]

    def advance(self, actions: Tensor | None, mask: Tensor | None, time_scale: Tensor | None = None) -> None:
        """Note the last action and time scale of every row and that it has begun.

        Args:
            actions: (batch, steps, ...) or None where only previous actions are known.
            mask: (batch, steps) bool, real steps first; None when all are real.
            time_scale: (batch, steps), or None where none is given.
        """
        self.started = self.started | (torch.ones_like(self.started) if mask is None else mask[:, 0])
        if actions is not None:
            self.last_actions = self._last(self.last_actions.to(actions.dtype), actions, mask)
        if time_scale is not None:
            self.last_time_scale = self._last(self.time_scale_before(time_scale), time_scale, mask)

    def time_scale_before(self, like: Tensor) -> Tensor:
        """Return the time scale (batch,) of the step before a call's first one; ones, as `like`, if none was given."""
        return like.new_ones(self.batch_size) if self.last_time_scale is None else self.last_time_scale

    def _last(self, before: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Take the value of every row's last real step; where there is none, the one before."""
        steps = torch.full_like(self.started, values.shape[1], dtype=torch.long) if mask is None else mask.sum(1)
        known = torch.cat([before[:, None], values], dim=1)
        return known[torch.arange(self.batch_size, device=steps.device), steps]

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Put rows (indices or a boolean mask; all when not given) back to the start of an episode."""
        index: Tensor | slice = slice(None) if rows is None else torch.as_tensor(rows, device=self.started.device)

        def restarted(tensor: Tensor) -> Tensor:
            tensor = tensor.detach().clone()  # a caller may still hold the old state
            tensor[index] = NO_ACTION if tensor.dtype == torch.int64 else 0
            return tensor

        self._replace(restarted)

    def reorder(self, indices: Sequence[int] | Tensor) -> None:
        """Select rows by index, in this order; a row may be repeated or dropped."""
        index = torch.as_tensor(indices, device=self.started.device)
        self._replace(lambda tensor: tensor.index_select(0, index))

    def detach(self) -> "DecisionMambaCache":
        """Let no gradient flow back into the steps before; returns itself."""
        self._replace(Tensor.detach)
        return self

    def to(self, device: torch.device | str) -> "DecisionMambaCache":
        """Move every state to a device; returns itself."""
        self._replace(lambda tensor: tensor.to(device))
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Return every state by name, for a file."""
        lists = {"local_states": self.local_states, "conv_states": self.conv_states, "ssm_states": self.ssm_states}
        by_layer = {f"{name}.{layer}": state for name, states in lists.items() for layer, state in enumerate(states)}
        scale = {} if self.last_time_scale is None else {"last_time_scale": self.last_time_scale}
        return {**by_layer, "last_actions": self.last_actions, "started": self.started, **scale}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave of a cache of the same model and number of rows.

        Raises:
            KeyError: a state is missing.
            ValueError: a state has another shape.
        """
        if "last_time_scale" in tensors:
            self.last_time_scale = torch.ones(self.batch_size)
        for name, state in self.tensors().items():
            if tensors[name].shape != state.shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(state.shape)}")
        states = iter([tensors[name] for name in self.tensors()])
        self._replace(lambda _: next(states))

    def _replace(self, function: Callable[[Tensor], Tensor]) -> None:
        for states in (self.local_states, self.conv_states, self.ssm_states):
            states[:] = [function(state) for state in states]
        self.last_actions, self.started = function(self.last_actions), function(self.started)
        if self.last_time_scale is not None:
            self.last_time_scale = function(self.last_time_scale)
