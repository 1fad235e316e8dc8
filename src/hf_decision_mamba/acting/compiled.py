# Copyright 2026
"""One decision as one compiled call: the whole network for acting on a CPU, where torch's calls would cost the most.

`fuse` writes a model down as a program for `compiled_kernels`: which layer reads and writes which buffer, with which
weights. The same program continues an episode from what is remembered of it, or reads a window from the start.
Equations: those of `modeling_decision_mamba` and `mixers_decision_mamba`, whose modules are read here one by one.
"""

import functools
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..model.configuration_decision_mamba import CONDITIONS, DecisionMambaConfig
from ..model.mixers_decision_mamba import (
    DecisionMamba2Mixer,
    DecisionMambaConvLocalMixer,
    DecisionMambaLinearLocalMixer,
)
from ..model.modeling_decision_mamba import DecisionMambaModel, state_token
from ..model.selective_scan_cpu import why_no_numba
from ..model.sizes_cpu import LANES, whole_lanes
from ..model.threads_cpu import run_items

WORTH_A_THREAD = 1 << 21  # multiplications
#: Names in compiled_kernels, by those in a config.
ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "silu": "SILU", "swish": "SILU", "tanh": "TANH"}
#: The config's fields that are written down here, or cannot change a decision: whoever adds a field to the config adds
#: it here too, with what it does; until then torch acts. None: any value; else the values that are known.
FIELDS: dict[str, set[Any] | None] = {
    **dict.fromkeys(("state_dim", "act_dim", "hidden_size", "embedding_size", "n_layer", "max_ep_len", "action_tanh")),
    **dict.fromkeys(("embed_layer_norm", "use_timestep_embedding", "num_channels", "image_size", "use_gate")),
    **dict.fromkeys(("selective", "local_mixer_window", "local_mixer_inside", "share_local_mixer", "mixer_residual")),
    **dict.fromkeys(("share_norms", "n_inner", "predict_state_and_return", "head_bias", "state_size", "expand")),
    **dict.fromkeys(("head_dim", "conv_kernel", "time_step_rank", "time_step_min", "time_step_max", "time_step_floor")),
    **dict.fromkeys(("use_bias", "use_conv_bias", "residual_in_fp32", "layer_norm_epsilon", "embd_pdrop")),
    **dict.fromkeys(("resid_pdrop", "initializer_range", "use_cache", "format_version", "goal_dim")),
    "conditioning": {"return", "goal", "none"},
    "token_order": {"return", "goal", "previous_action", "state", "action"},
    "sequence_layout": {"interleaved", "concatenated"},
    "state_type": {"vector", "image"},
    "action_type": {"continuous", "discrete"},
    "block_type": {"mamba", "transformer", "mamba_mlp"},
    "ssm": {"mamba", "mamba2"},
    "local_mixer": {None, "linear", "conv"},
    "norm_type": {"rms_norm", "layer_norm"},
    "mixer_norm_type": {None, "rms_norm", "layer_norm"},
    "activation_function": {*ACTIVATIONS},
    "embedding_activation": {None, *ACTIVATIONS},
    "scan_backend": {None, "numba"},
}
Array = NDArray[Any]


def fuse(model: nn.Module) -> "FusedModel | None":
    """Write the model down, with its weights of now, as one compiled call; None where that cannot be, or is not wanted.

    It can be with numba, for a `DecisionMambaModel` on the CPU, in float32 or float64 throughout, whose config says
    nothing that `FIELDS` does not know and whose modules nobody has replaced or hooked. A `scan_backend` other than the
    CPU's kernels asks for torch everywhere.
    """
    if type(model) is not DecisionMambaModel or why_no_numba() is not None:
        return None
    settings = _settings(model.config)
    if not all(_is_known(name, value) for name, value in settings):
        return None
    tensors = list(model.parameters())
    dtypes = {tensor.dtype for tensor in tensors}
    if {tensor.device.type for tensor in tensors} != {"cpu"} or len(dtypes) > 1:
        return None
    hooked = any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
    if hooked or not dtypes <= {torch.float32, torch.float64} or _outline(model) != _outline_as_made(settings):
        return None
    return FusedModel(model)


def _settings(config: DecisionMambaConfig) -> tuple[tuple[str, Any], ...]:
    """List the names and values of a config's own fields, those that transformers does not give to every config."""
    own = sorted({field.name for field in fields(config)} - {field.name for field in fields(PreTrainedConfig)})
    values = [getattr(config, name) for name in own]
    return tuple((name, tuple(x) if isinstance(x, list) else x) for name, x in zip(own, values, strict=True))


def _is_known(name: str, value: Any) -> bool:
    """Tell whether `FusedModel` writes down what a field of the config asks for."""
    known = FIELDS.get(name, set())
    return known is None or set(value if isinstance(value, tuple) else [value]) <= known


def _outline(model: nn.Module) -> list[Any]:
    """Describe what a model consists of, but for its numbers."""
    modules = [(name, type(m), m.extra_repr()) for name, m in model.named_modules(remove_duplicate=False)]
    return modules + [(name, weights.shape) for name, weights in model.named_parameters(remove_duplicate=False)]


@functools.lru_cache(maxsize=8)
def _outline_as_made(settings: tuple[tuple[str, Any], ...]) -> list[Any]:
    """Return the outline of a model that nobody has changed since it was made from these settings."""
    with torch.device("meta"):
        return _outline(DecisionMambaModel(DecisionMambaConfig(**dict(settings))))


class FusedModel:
    """A model's network in evaluation mode for numpy arrays; made by `fuse`."""

    def __init__(self, model: DecisionMambaModel):
        from . import compiled_kernels

        self.kernels = compiled_kernels
        self.config = model.config
        self.token_types = model.config.token_types
        if "action" in self.token_types:  # as `DecisionMambaModel` cuts the stream when it acts
            self.token_types = ("action", *self.token_types[:-1])
        self.cut = self.token_types[0] == "action"
        self.decision = state_token(self.token_types)
        self.state_width = self._state_width()
        self.dtype = np.dtype(np.float32 if model.dtype == torch.float32 else np.float64)
        self._program: list[list[int]] = []
        self._buffers: list[list[int]] = []
        self._named: dict[str, int] = {}
        self._weights: list[Array] = []
        self._size = self._growth = self._weights_size = 0
        self._recurrent_state_size = LANES
        with torch.no_grad():
            self._write_program(model)
        self.program = np.array(self._program, np.int64).reshape(-1)
        self.buffers = np.array(self._buffers, np.int64).reshape(-1)
        self.weights = np.concatenate(self._weights)
        self._numbers = np.array([self.config.layer_norm_epsilon], self.dtype)
        self._nothing = np.zeros(0, self.dtype)
        act_dim, discrete = self.config.act_dim, self.config.action_type == "discrete"
        condition = self.config.condition_dim
        self._sizes = condition, 0 if discrete else act_dim, act_dim, len(self.token_types), self.decision, self.cut
        self._room = self.groups = 0
        # The first call compiles, or loads from the disk: now, rather than when the first decision is due.
        zeros, none = np.zeros((1, 1, self.state_width), self.dtype), np.zeros((1, 1), np.int64)
        actions = none if discrete else np.zeros((1, 1, act_dim), self.dtype)
        self.predict(zeros, np.zeros((1, 1, condition), self.dtype), actions, none, none[0] + 1)

    # ------------------------------------------------------------------------------------------------------- running

    def new_recurrent_state(self, rows: int) -> Array:
        """Make the state of so many episodes before they begin: zeros (rows, ...), one line for each."""
        return np.zeros((rows, self._recurrent_state_size), self.dtype)

    def predict(
        self,
        states: Array,
        condition: Array,
        previous_actions: Array,
        timesteps: Array,
        lengths: Array,
        recurrent_state: Array | None = None,
    ) -> Array:
        """Predict the action of the last step of every row.

        Args:
            states: (rows, steps, state_dim), normalised; of an image model what its encoder makes of the frames.
            condition: (rows, steps, c) what is asked for: the scaled return-to-go (c = 1), a goal, or nothing (c = 0).
            previous_actions: (rows, steps, act_dim), or (rows, steps) integers.
            timesteps: (rows, steps) integers, read where the model embeds them.
            lengths: (rows,) how many of the steps, the last ones, are real; 1 or more.
            recurrent_state: of the episodes that these steps continue; it moves on. None where they start new ones.

        Returns:
            Actions (rows, act_dim), or logits.
        """
        rows, steps = lengths.shape[0], states.shape[1]
        groups = 1
        if rows > 1:
            worth = rows * steps * len(self.token_types) * self.weights.size // WORTH_A_THREAD
            groups = max(1, min(rows, torch.get_num_threads(), worth))
        if steps > self._room or groups > self.groups:
            self._room, self.groups = max(steps, self._room), max(groups, self.groups)
            self._work = np.zeros((self.groups, self._size + self._room * self._growth), self.dtype)
            self._indices = np.zeros((self.groups, 3 * self._room), np.int64)
        if self.config.action_type == "discrete":
            discrete, continuous = previous_actions, self._nothing
        else:
            discrete, continuous = timesteps, previous_actions
        recurrent_state = self.new_recurrent_state(rows) if recurrent_state is None else recurrent_state
        out = np.empty((rows, self.config.act_dim), self.dtype)
        sizes = np.array([rows, steps, self.state_width, *self._sizes, groups], np.int64)
        integers = (np.ascontiguousarray(x, np.int64).reshape(-1) for x in (timesteps, discrete, lengths))
        floats = (np.ascontiguousarray(x, self.dtype).reshape(-1) for x in (states, condition, continuous))
        run_items(
            self.kernels.run, groups, groups, sizes, self.program, self.buffers,
            self._indices[:groups].reshape(-1), *integers, self._numbers, self.weights, recurrent_state.reshape(-1),
            *floats, out.reshape(-1), self._work[:groups].reshape(-1),
        )  # fmt: skip
        return out

    # ------------------------------------------------------------------------------------------- writing the program

    def _write_program(self, model: DecisionMambaModel) -> None:
        k, config = self.kernels, self.config
        for name, width in (
            ("states", self.state_width),
            ("condition", config.condition_dim),
            ("actions", config.act_dim),
        ):
            self._buffer(name, width, per_step=True)
        self._buffer("prediction", config.act_dim)
        tokens = self._embed(model)
        for layer in model.layers:
            tokens = self._block(layer, tokens, last=layer is model.layers[-1])
        self._norm(model.norm_f, tokens, tokens, k.LAST)
        self._linear(model.predict_action, tokens, "prediction", k.LAST)
        if config.action_tanh and config.action_type == "continuous":
            self._activate("tanh", "prediction", k.LAST)

    def _state_width(self) -> int:
        """Return the width of what `predict` takes for a state."""
        if self.config.state_type == "vector":
            return self.config.state_dim
        return self.config.embedding_size or self.config.hidden_size

    def _embed(self, model: DecisionMambaModel) -> str:
        """Put the embeddings of a step side by side, and apply what all tokens pass; as `DecisionMambaModel._embed`."""
        k, config = self.kernels, self.config
        size = config.embedding_size or config.hidden_size
        if config.sequence_layout == "concatenated":
            parts = list(config.token_order)
            starts = [i * size for i in range(len(parts))]
            stride = whole_lanes(starts[-1] + whole_lanes(size))
            self._buffer("embeddings", stride)
        else:
            parts, stride = list(self.token_types), whole_lanes(size)
            self._buffer("embeddings", size)
            starts = [i * stride for i in range(len(parts))]
            stride *= len(parts)
        for part, start in zip(parts, starts, strict=True):
            # A vector's end reaches into the next part, which is written after it.
            view = self._view(part, "embeddings", start, stride, size)
            if part in CONDITIONS:
                self._linear(getattr(model, f"embed_{part}"), "condition", view, k.EACH_STEP)
            elif part == "state" and config.state_type == "image":
                self._op(k.COPY, "states", view, k.EACH_STEP)
            elif part == "state":
                self._linear(model.embed_state, "states", view, k.EACH_STEP)
            elif config.action_type == "discrete":
                self._op(k.LOOKUP, view, view, k.EACH_STEP, k.ACTIONS, self._table(model.embed_action), 0)
            else:
                self._linear(model.embed_action, "actions", view, k.EACH_STEP)
            if config.embedding_activation is not None:
                self._activate(config.embedding_activation, view, k.EACH_STEP)
            if config.use_timestep_embedding:
                index = k.TIMESTEPS_BEFORE if part == "action" else k.TIMESTEPS
                self._op(k.LOOKUP, view, view, k.EACH_STEP, index, self._table(model.embed_timestep), 1)
        tokens = "embeddings"
        if model.token_proj is not None:
            tokens = self._buffer("tokens", config.hidden_size)
            self._linear(model.token_proj, "embeddings", tokens)
        if config.embed_layer_norm:
            self._norm(model.embed_norm, tokens, tokens)
        return tokens

    def _block(self, block: Any, tokens: str, last: bool) -> str:
        """Write down a `DecisionMambaBlock`; of the last only the token that the action is read at leaves the scan."""
        k, config = self.kernels, self.config
        rows = k.LAST if last else k.EACH_TOKEN
        norms = block.part("norms")
        normed = self._buffer("normed", config.hidden_size)
        if config.local_mixer is not None:
            self._norm(norms["local"], tokens, normed)
            mixer = block.part("local_mixer")
            self._op(k.ADD, self._local(mixer, normed, config.hidden_size), tokens)
        self._norm(norms["mixer"], tokens, normed)
        mix = self._mamba2 if isinstance(block.mixer, DecisionMamba2Mixer) else self._mamba
        self._op(k.ADD if config.mixer_residual else k.COPY, mix(block.mixer, normed, rows), tokens, rows)
        if config.block_type != "mamba":
            self._norm(norms["mlp"], tokens, normed, rows)
            inner = self._buffer("inner", config.mlp_size)
            self._linear(block.mlp.fc_in, normed, inner, rows)
            self._activate(config.activation_function, inner, rows)
            self._linear(block.mlp.fc_out, inner, self._buffer("mixed", config.hidden_size), rows)
            self._op(k.ADD, "mixed", tokens, rows)
        return tokens

    def _mamba(self, mixer: Any, x: str, rows: int) -> str:
        """Write down a `DecisionMambaMixer`."""
        k, config = self.kernels, self.config
        channels, states, rank = config.intermediate_size, config.state_size, mixer.rank
        if mixer.gated:
            to_x, to_z = mixer.in_proj.weight.chunk(2)
            x_bias, z_bias = (None, None) if mixer.in_proj.bias is None else mixer.in_proj.bias.chunk(2)
            z = self._buffer("z", channels)
            self._matrix(to_z, z_bias, x, z, rows)
            self._matrix(to_x, x_bias, x, self._buffer("x", channels))
        elif mixer.projected:
            self._linear(mixer.in_proj, x, self._buffer("x", channels))
        if mixer.projected:
            x = "x"
        if config.local_mixer_inside:
            x = self._local(mixer.local_mixer, x, channels)
        elif config.conv_kernel:
            x = self._conv([mixer.conv1d], x, channels)
        self._activate("silu", x)
        maps = self._buffer("maps", rank + 2 * states)
        self._linear(mixer.x_proj, x, maps)
        delta = self._buffer("delta", channels)
        if config.selective:
            self._linear(mixer.dt_proj, maps, delta)
        else:
            self._matrix(mixer.dt_bias.new_zeros(channels, 1), mixer.dt_bias, maps, delta)
        B, C = (self._view(name, maps, rank + i * states, None, states) for i, name in enumerate(("B", "C")))
        A = -torch.exp(mixer.A_log)
        y = self._scan(x, delta, B, C, A, mixer.D, channels)
        if mixer.gated:
            self._op(k.GATE, z, y, rows)
        if not mixer.projected:
            return y
        mixed = self._buffer("mixed", config.hidden_size)
        self._linear(mixer.out_proj, y, mixed, rows)
        return mixed

    def _mamba2(self, mixer: Any, x: str, rows: int) -> str:
        """Write down a `DecisionMamba2Mixer`."""
        k, config = self.kernels, self.config
        channels, states, heads, width = (
            config.intermediate_size,
            config.state_size,
            config.head_dim,
            config.conv_channels,
        )
        sizes = [channels, width, config.num_heads]
        to_z, to_xBC, to_dt = mixer.in_proj.weight.split(sizes)
        biases = [None] * 3 if mixer.in_proj.bias is None else mixer.in_proj.bias.split(sizes)
        z, xBC, delta = self._buffer("z", channels), self._buffer("xBC", width), self._buffer("delta", channels)
        self._matrix(to_z, biases[0], x, z, rows)
        self._matrix(to_xBC, biases[1], x, xBC)
        bias = mixer.dt_bias if biases[2] is None else mixer.dt_bias + biases[2]
        self._matrix(to_dt.repeat_interleave(heads, 0), bias.repeat_interleave(heads), x, delta)
        if config.conv_kernel:
            xBC = self._conv([mixer.conv1d], xBC, width)
        self._activate("silu", xBC)
        B, C = (self._view(name, xBC, channels + i * states, None, states) for i, name in enumerate(("B", "C")))
        A = -torch.exp(mixer.A_log).repeat_interleave(heads)[:, None].expand(-1, states)
        y = self._scan(xBC, delta, B, C, A, mixer.D.repeat_interleave(heads), channels)
        self._op(k.GATE, z, y, rows)
        self._norm(mixer.norm, y, y, rows)
        mixed = self._buffer("mixed", config.hidden_size)
        self._linear(mixer.out_proj, y, mixed, rows)
        return mixed

    def _local(self, mixer: nn.Module, x: str, width: int) -> str:
        """Write down a local mixer: a dense or a depthwise filter over the last tokens."""
        if isinstance(mixer, DecisionMambaConvLocalMixer):
            return self._conv([mixer.conv[name] for name in self.token_types], x, width)
        assert isinstance(mixer, DecisionMambaLinearLocalMixer)
        count, padded = self.config.local_mixer_window, whole_lanes(width)
        weight = torch.zeros(width, count, padded, dtype=mixer.proj.weight.dtype)
        weight[..., :width] = mixer.proj.weight.unflatten(1, (count, width))
        mixed = self._buffer(f"local of {width}", width)
        self._matrix(weight.flatten(1), None, self._history(x, width, count - 1), mixed)
        return mixed

    def _conv(self, convs: list[Any], x: str, width: int) -> str:
        """Write down a causal depthwise convolution; one for all types of tokens, or one for each."""
        convs = convs * (len(self.token_types) // len(convs))
        taps = convs[0].kernel_size[0]
        weights = torch.stack([conv.weight[:, 0].T for conv in convs])  # (token type, tap, channel)
        biases = torch.stack([conv.weight.new_zeros(width) if conv.bias is None else conv.bias for conv in convs])
        convolved = self._buffer(f"local of {width}", width)
        past = self._history(x, width, taps - 1)
        self._op(self.kernels.CONV, past, convolved, None, taps, self._keep(weights), self._keep(biases))
        return convolved

    def _history(self, x: str, width: int, count: int) -> str:
        name = self._buffer(f"{count} before {width}", width, more_rows=count)
        self._op(self.kernels.HISTORY, x, name, None, count, self._remember(count * whole_lanes(width)))
        return name

    def _scan(self, x: str, delta: str, B: str, C: str, A: Tensor, D: Tensor, channels: int) -> str:
        y, states = self._buffer("y", channels), A.shape[1]
        padded = np.zeros((whole_lanes(channels), states), self.dtype)
        padded[:channels] = (A * np.log2(np.e)).numpy()
        rate = self._keep(torch.from_numpy(padded.reshape(-1, LANES, states).swapaxes(1, 2).copy()))
        buffers = [self._named[name] for name in (delta, B, C)]
        remembered = self._remember(padded.size)
        self._op(self.kernels.SCAN, x, y, None, *buffers, rate, self._keep(D), states, remembered)
        return y

    def _linear(self, linear: Any, x: str, y: str, rows: int | None = None) -> None:
        self._matrix(linear.weight, linear.bias, x, y, rows)

    def _matrix(self, weight: Tensor, bias: Tensor | None, x: str, y: str, rows: int | None = None) -> None:
        outputs, inputs = weight.shape
        tiles = np.zeros((whole_lanes(outputs), inputs), self.dtype)
        tiles[:outputs] = weight.numpy()
        kept = self._keep(torch.from_numpy(tiles.reshape(-1, LANES, inputs).swapaxes(1, 2).copy()))
        self._op(
            self.kernels.LINEAR, x, y, rows, inputs, kept,
            self._keep(torch.zeros(outputs, dtype=weight.dtype) if bias is None else bias),
        )  # fmt: skip

    def _norm(self, norm: Any, x: str, y: str, rows: int | None = None) -> None:
        bias = getattr(norm, "bias", None)
        weights = self._keep(norm.weight), -1 if bias is None else self._keep(bias)
        self._op(self.kernels.NORM, x, y, rows, len(norm.weight), *weights)

    def _activate(self, function: str, y: str, rows: int | None = None) -> None:
        self._op(self.kernels.ACTIVATE, y, y, rows, getattr(self.kernels, ACTIVATIONS[function]))

    def _table(self, embedding: Any) -> int:
        return self._keep(embedding.weight)

    def _op(self, operation: int, x: str, y: str, rows: int | None = None, *parameters: int) -> None:
        rows = self.kernels.EACH_TOKEN if rows is None else rows
        line = [operation, self._named[x], self._named[y], rows, *parameters]
        self._program.append(line + [0] * (self.kernels.LINE - len(line)))

    def _buffer(self, name: str, width: int, *, per_step: bool = False, more_rows: int = 0) -> str:
        """Make room for rows of this width, unless a buffer has the name."""
        if name not in self._named:
            padded, rows = whole_lanes(width), 1 if per_step else len(self.token_types)
            self._named[name] = len(self._buffers)
            self._buffers.append([self._size, self._growth, padded, padded])
            self._size += more_rows * padded
            self._growth += rows * padded
        return name

    def _view(self, name: str, buffer: str, start: int, stride: int | None, width: int) -> str:
        """Name columns of a buffer, from `start` on; with a stride of its own, of a type of token."""
        offset, growth, old_stride, _ = self._buffers[self._named[buffer]]
        name = f"{name} in {buffer}"
        if name not in self._named:
            self._named[name] = len(self._buffers)
            self._buffers.append([offset + start, growth, stride or old_stride, whole_lanes(width)])
        return name

    def _keep(self, tensor: Tensor) -> int:
        """Keep weights, every line of theirs filled up with zeros to whole vectors; return where."""
        at, lines = self._weights_size, tensor.detach().numpy().reshape(-1, tensor.shape[-1])
        padded = np.zeros((len(lines), whole_lanes(lines.shape[1])), self.dtype)
        padded[:, : lines.shape[1]] = lines
        self._weights.append(padded.ravel())
        self._weights_size += padded.size
        return at

    def _remember(self, size: int) -> int:
        at = self._recurrent_state_size
        self._recurrent_state_size += size
        return at
