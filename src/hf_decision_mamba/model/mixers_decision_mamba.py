# Copyright 2026
"""The parts of a Decision Mamba block: norms, local mixers, the Mamba, Mamba-2 and GRU mixers, the feed-forward layer.

Every mixer is causal over (b, l, d) tensors and may continue from a cache. Sources: Mamba (arXiv 2312.00752), Mamba-2
(arXiv 2405.21060), DeMa's S6 (arXiv 2405.12094, "post up-projection"), DMM's local mixers (arXiv 2408.10517).

Shapes: b batch, l tokens, d `hidden_size`, c channels (`intermediate_size`), n `state_size`, r `time_step_rank`.
"""

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .cache_decision_mamba import DecisionMambaCache
from .causal_conv import causal_conv, conv_over_tokens
from .configuration_decision_mamba import DecisionMambaConfig
from .selective_scan import selective_scan


class TokenStream(NamedTuple):
    """What mixers need to know of the tokens they see, beside their values.

    Attributes:
        token_types: what the tokens of one environment step are, in order; the sequence is whole steps.
        cache: states to continue from, or None.
        mask: (b, l) bool, false where a token is absent; None when no absent token can matter, which without a cache is
            always so, because absent tokens stand behind all others.
        scans: where every layer notes the arguments of its scan, for hidden attention; None when nobody asks.
        time_scale: (b, l) the factor on every token's Δ, or None.
    """

    token_types: tuple[str, ...]
    cache: DecisionMambaCache | None = None
    mask: Tensor | None = None
    scans: list[dict[str, Any]] | None = None
    time_scale: Tensor | None = None

    def zero_absent(self, x: Tensor) -> Tensor:
        """Set the absent tokens of x (b, l, ...) to zero, so that a window over them sees nothing."""
        return x if self.mask is None else x * self.mask[..., None].to(x.dtype)

    def with_history(self, x: Tensor, states: str, layer_idx: int, count: int) -> Tensor:
        """Put x (b, l, c) behind the `count` tokens before it (b, count + l, c); the cache's window moves on."""
        x = self.zero_absent(x)
        if self.cache is None:
            return F.pad(x, (0, 0, count, 0))
        windows = getattr(self.cache, states)
        window = torch.cat([windows[layer_idx].to(x.dtype), x], dim=1)
        windows[layer_idx] = last_real(window, count, self.mask)
        return window


def take_steps(x: Tensor, index: Tensor) -> Tensor:
    """Take x (b, k, ...) at the steps index (b, j) of every row."""
    return torch.take_along_dim(x, index.reshape(index.shape + (1,) * (x.dim() - 2)), dim=1)


def last_real(window: Tensor, count: int, mask: Tensor | None) -> Tensor:
    """Take `count` entries of window (b, count + l, c) up to the last real one of its l; the first ones if none is."""
    if mask is None:
        return window[:, window.shape[1] - count :]
    positions = torch.arange(1, mask.shape[1] + 1, device=window.device)
    ends = (positions * mask).amax(1)
    return take_steps(window, ends[:, None] + torch.arange(count, device=window.device))


# ----------------------------------------------------------------------------------------------------------- norms


class DecisionMambaRMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, computed in float32 (float64 stays), returned in the weight's dtype.

    With a gate z, Mamba-2's form: x · SiLU(z) is normalised.
    """

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        hidden_states = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        if gate is not None:
            hidden_states = hidden_states * F.silu(gate.to(hidden_states.dtype))
        mean_square = torch.linalg.vecdot(hidden_states, hidden_states)[..., None] / hidden_states.shape[-1]
        scale = torch.rsqrt(mean_square + self.eps)
        return self.weight * (hidden_states * scale).to(self.weight.dtype)


class DecisionMambaLayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32 (float64 stays), returned in the weight's dtype."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = torch.promote_types(hidden_states.dtype, self.weight.dtype)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        normed = F.layer_norm(hidden_states.to(dtype), self.normalized_shape, weight, bias, self.eps)
        return normed.to(self.weight.dtype)


NORMS: dict[str, type[nn.Module]] = {"rms_norm": DecisionMambaRMSNorm, "layer_norm": DecisionMambaLayerNorm}


# ---------------------------------------------------------------------------------------------------- local mixers


class DecisionMambaLinearLocalMixer(nn.Module):
    """DMM's dense sequence mixer: the last W tokens, oldest first, through one linear map without bias."""

    def __init__(self, width: int, config: DecisionMambaConfig):
        super().__init__()
        self.proj = nn.Linear(config.local_mixer_window * width, width, bias=False)

    def forward(self, window: Tensor, token_types: tuple[str, ...]) -> Tensor:
        """Mix (b, W - 1 + l, width) to (b, l, width)."""
        width = window.shape[2]
        if window.device.type == "cpu" and type(self.proj) is nn.Linear:
            # As a convolution, which needs no copy of every token's window; on a GPU it might be rounded to TF32.
            return conv_over_tokens(window, self.proj.weight.unflatten(1, (-1, width)).mT)
        return self.proj(window.unfold(1, self.proj.in_features // width, 1).mT.flatten(2))


class DecisionMambaConvLocalMixer(nn.Module):
    """DMM's convolutional mixer: a depthwise filter of W tokens with bias for every type of token."""

    def __init__(self, width: int, config: DecisionMambaConfig):
        super().__init__()
        conv = {name: nn.Conv1d(width, width, config.local_mixer_window, groups=width) for name in config.token_types}
        self.conv = nn.ModuleDict(conv)

    def forward(self, window: Tensor, token_types: tuple[str, ...]) -> Tensor:
        """Mix (b, W - 1 + l, width) to (b, l, width); each token passes the filter of its own type only."""
        filters: Any = [self.conv[name] for name in token_types]
        outputs = [conv_over_tokens(window[:, i:], f.weight, f.bias, len(token_types)) for i, f in enumerate(filters)]
        return torch.stack(outputs, dim=2).flatten(1, 2)


def make_local_mixer(width: int, config: DecisionMambaConfig) -> nn.Module:
    """Make the config's local mixer, for tokens of some width."""
    mixers = {"linear": DecisionMambaLinearLocalMixer, "conv": DecisionMambaConvLocalMixer}
    return mixers[str(config.local_mixer)](width, config)


# ---------------------------------------------------------------------------------------------------- global mixers


class DecisionMambaMixer(nn.Module):
    """The Mamba mixer: project, convolve, scan, gate, project back.

    [x | z] = W_in u;  x = SiLU(conv(x));  [Δ | B | C] = W_x x;  y = SSM(x) · SiLU(z);  out = W_out y.
    In a "transformer" block (DeMa's post up-projection) W_in, z and W_out are absent: x = SiLU(conv(u)), out = SSM(x).
    Ablations: without `use_gate`, z is absent; without `selective`, Δ is a constant of each channel.
    """

    def __init__(self, config: DecisionMambaConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        channels = config.intermediate_size
        self.rank = int(config.time_step_rank or 0) if config.selective else 0  # the config has filled it in
        self.projected = config.block_type != "transformer"
        self.gated = self.projected and config.use_gate
        if self.projected:
            self.in_proj = nn.Linear(config.hidden_size, (1 + self.gated) * channels, bias=config.use_bias)
            self.out_proj = nn.Linear(channels, config.hidden_size, bias=config.use_bias)
        if config.local_mixer_inside:
            self.local_mixer = make_local_mixer(channels, config)
        elif config.conv_kernel:
            self.conv1d = nn.Conv1d(channels, channels, config.conv_kernel, groups=channels, bias=config.use_conv_bias)
        self.x_proj = nn.Linear(channels, self.rank + 2 * config.state_size, bias=False)
        if config.selective:
            self.dt_proj = nn.Linear(self.rank, channels, bias=True)
        else:
            self.dt_bias = nn.Parameter(torch.empty(channels))
        self.A_log = nn.Parameter(torch.empty(channels, config.state_size))
        self.D = nn.Parameter(torch.empty(channels))

    def forward(self, hidden_states: Tensor, tokens: TokenStream) -> Tensor:
        """Mix (b, l, d) along the tokens."""
        x = self.in_proj(hidden_states) if self.projected else hidden_states
        x, z = x.chunk(2, dim=-1) if self.gated else (x, None)
        x = self._mix_locally(x, tokens)
        dt, B, C = self.x_proj(x).split([self.rank, *[self.config.state_size] * 2], dim=-1)
        if self.config.selective:
            delta = F.linear(dt, self.dt_proj.weight.mT.contiguous().mT)  # its gradient is faster in this layout
            delta_bias = self.dt_proj.bias
        else:
            delta, delta_bias = torch.zeros_like(x), self.dt_bias
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        y = _scan(
            tokens,
            self.layer_idx,
            u=x,
            delta=delta,
            A=A,
            B=B,
            C=C,
            D=self.D,
            z=z,
            delta_bias=delta_bias,
            backend=self.config.scan_backend,
        )
        return self.out_proj(y) if self.projected else y

    def _mix_locally(self, x: Tensor, tokens: TokenStream) -> Tensor:
        """Compute SiLU(conv(x)), or apply the local mixer in the convolution's place."""
        if self.config.local_mixer_inside:
            window = tokens.with_history(x, "conv_states", self.layer_idx, self.config.conv_history)
            return F.silu(self.local_mixer(window, tokens.token_types))
        if self.config.conv_kernel:
            return _convolve(tokens, self.layer_idx, x, self.conv1d, self.config.scan_backend)
        return F.silu(x)

    def init_weights(self) -> None:
        """Draw the parameters that a plain draw would break, as Mamba initialises them."""
        decay_rates = torch.arange(1, self.config.state_size + 1, dtype=torch.float32).expand(self.A_log.shape)
        init.copy_(self.A_log, torch.log(decay_rates))
        init.ones_(self.D)
        if self.config.selective:
            init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        dt_bias = self.dt_proj.bias if self.config.selective else self.dt_bias
        init.copy_(dt_bias, _draw_dt_biases(self.config, self.config.intermediate_size))
        if self.projected:
            _init_out_proj(self.out_proj, self.config)


class DecisionMamba2Mixer(nn.Module):
    """The Mamba-2 mixer: one decay rate and one step size per head, the gate inside the final norm.

    [z | x | B | C | Δ] = W_in u;  (x, B, C) = SiLU(conv(x, B, C));  out = W_out RMSNorm(SSM(x) · SiLU(z)).
    """

    def __init__(self, config: DecisionMambaConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        channels, heads, convolved = config.intermediate_size, config.num_heads, config.conv_channels
        self.in_proj = nn.Linear(config.hidden_size, channels + convolved + heads, bias=config.use_bias)
        if config.conv_kernel:
            bias = config.use_conv_bias
            self.conv1d = nn.Conv1d(convolved, convolved, config.conv_kernel, groups=convolved, bias=bias)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.norm = DecisionMambaRMSNorm(channels, eps=config.layer_norm_epsilon)
        self.out_proj = nn.Linear(channels, config.hidden_size, bias=config.use_bias)

    def forward(self, hidden_states: Tensor, tokens: TokenStream) -> Tensor:
        """Mix (b, l, d) along the tokens."""
        config = self.config
        channels, state_size, head_dim = config.intermediate_size, config.state_size, config.head_dim
        z, xBC, dt = self.in_proj(hidden_states).split([channels, config.conv_channels, config.num_heads], dim=-1)
        if config.conv_kernel:
            xBC = _convolve(tokens, self.layer_idx, xBC, self.conv1d, config.scan_backend)
        else:
            xBC = F.silu(xBC)
        x, B, C = xBC.split([channels, state_size, state_size], dim=-1)
        # The scan knows channels: a head is `head_dim` channels with equal step size, decay and skip.
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        y = _scan(
            tokens,
            self.layer_idx,
            u=x,
            delta=dt.repeat_interleave(head_dim, dim=-1),
            A=A.repeat_interleave(head_dim)[:, None].expand(-1, state_size),
            B=B,
            C=C,
            D=self.D.repeat_interleave(head_dim),
            delta_bias=self.dt_bias.repeat_interleave(head_dim),
            backend=config.scan_backend,
        )
        return self.out_proj(self.norm(y, gate=z))

    def init_weights(self) -> None:
        """Initialise as Mamba-2 does: decay rates uniform in [1, 16], step sizes as in Mamba."""
        init.copy_(self.A_log, torch.log(torch.empty(self.config.num_heads).uniform_(1, 16)))
        init.ones_(self.D)
        init.copy_(self.dt_bias, _draw_dt_biases(self.config, self.config.num_heads))
        _init_out_proj(self.out_proj, self.config)


class DecisionMambaGRUMixer(nn.Module):
    """A gated recurrent unit (Cho et al., arXiv 1406.1078, as torch.nn.GRU has it), whose state is its output.

    r, z = σ(W x + U h);  n = tanh(W_n x + r · U_n h);  h = (1 - z) · n + z · h, with biases on both sides.
    """

    def __init__(self, config: DecisionMambaConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.in_proj = nn.Linear(config.hidden_size, 3 * config.intermediate_size)
        self.state_proj = nn.Linear(config.intermediate_size, 3 * config.intermediate_size)

    def forward(self, hidden_states: Tensor, tokens: TokenStream) -> Tensor:
        """Mix (b, l, d) along the tokens."""
        if tokens.scans is not None:
            raise ValueError("ssm='gru': a GRU has no scan, so no hidden attention and no output_attentions.")
        if tokens.cache is None:
            return self._recur(hidden_states, hidden_states.new_zeros(len(hidden_states), self.state_proj.in_features))
        states = tokens.cache.ssm_states
        state = states[self.layer_idx][..., 0].to(hidden_states.dtype)
        # Of the absent tokens only the first of all can stand in front of real ones.
        first = self._recur(hidden_states[:, :1], state)
        state = first[:, 0] if tokens.mask is None else torch.where(tokens.mask[:, :1], first[:, 0], state)
        output = first
        if hidden_states.shape[1] > 1:
            rest = self._recur(hidden_states[:, 1:], state)
            mask = None if tokens.mask is None else tokens.mask[:, 1:]
            state = last_real(torch.cat([state[:, None], rest], dim=1), 1, mask)[:, 0]
            output = torch.cat([first, rest], dim=1)
        states[self.layer_idx] = state[..., None].to(states[self.layer_idx].dtype)
        return output

    def _recur(self, x: Tensor, state: Tensor) -> Tensor:
        """Compute the states (b, l, c) after each of the tokens (b, l, d) that follow a state (b, c)."""
        if x.shape[1] > 1:
            weights = [self.in_proj.weight, self.state_proj.weight, self.in_proj.bias, self.state_proj.bias]
            plain = x.device.type == "cpu" or torch.compiler.is_compiling()
            # cuDNN wants all weights in one piece of memory.
            with nullcontext() if plain else torch.backends.cudnn.flags(enabled=False):
                return torch.gru(x, state[None], weights, True, 1, 0.0, self.training, False, True)[0]
        seen, known = self.in_proj(x[:, 0]).chunk(3, dim=-1), self.state_proj(state).chunk(3, dim=-1)
        reset, update = (torch.sigmoid(seen[i] + known[i]) for i in range(2))
        new = torch.tanh(seen[2] + reset * known[2])
        return ((1 - update) * new + update * state)[:, None]


MIXERS: dict[str, type[nn.Module]] = {
    "mamba": DecisionMambaMixer,
    "mamba2": DecisionMamba2Mixer,
    "gru": DecisionMambaGRUMixer,
}


def _convolve(tokens: TokenStream, layer_idx: int, x: Tensor, conv: nn.Conv1d, backend: str | None) -> Tensor:
    """Apply `causal_conv` behind the tokens that the cache remembers, if there is one."""
    history = 0
    if tokens.cache is not None:
        history = conv.kernel_size[0] - 1
        x = tokens.with_history(x, "conv_states", layer_idx, history)
    return causal_conv(x, conv, history, backend)


def _scan(tokens: TokenStream, layer_idx: int, **inputs: Any) -> Tensor:
    """Run `selective_scan` from the cache's state, leaving the final state there."""
    inputs["time_scale"] = tokens.time_scale
    if tokens.scans is not None:
        tokens.scans.append(inputs)
    initial = None if tokens.cache is None else tokens.cache.ssm_states[layer_idx]
    y, final_state = selective_scan(**inputs, mask=tokens.mask, initial_state=initial)
    if tokens.cache is not None:
        tokens.cache.ssm_states[layer_idx] = final_state
    return y


def _draw_dt_biases(config: DecisionMambaConfig, count: int) -> Tensor:
    """Draw biases (count,) from which softplus makes step sizes log-uniform in [time_step_min, time_step_max]."""
    low, high = math.log(config.time_step_min), math.log(config.time_step_max)
    floor = min(config.time_step_floor, config.time_step_min)  # whoever asks for smaller steps gets them
    delta = torch.exp(torch.rand(count) * (high - low) + low).clamp(min=floor)
    return delta + torch.log(-torch.expm1(-delta))  # inverse of softplus


def _init_out_proj(linear: nn.Linear, config: DecisionMambaConfig) -> None:
    """Draw weights as PyTorch does, smaller the more residual branches are added up."""
    bound = 1 / math.sqrt(linear.in_features * config.n_layer)
    init.uniform_(linear.weight, -bound, bound)


class DecisionMambaMLP(nn.Module):
    """W_2 act(W_1 h), position by position."""

    def __init__(self, config: DecisionMambaConfig):
        super().__init__()
        self.fc_in = nn.Linear(config.hidden_size, config.mlp_size)
        self.activation = ACT2FN[config.activation_function]
        self.fc_out = nn.Linear(config.mlp_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc_out(self.activation(self.fc_in(hidden_states)))
