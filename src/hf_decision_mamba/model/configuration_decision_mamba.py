# Copyright 2026
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Configuration of Decision Mamba models, and the presets that carry the papers' settings.

A variant is a combination of a few orthogonal fields, never a class. Field names are DecisionTransformerConfig's and
MambaConfig's wherever these have the concept.
"""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .checkpoint_decision_mamba import FORMAT_VERSION, MAX_PARAMETERS, CheckedConfig

_DEMA = {
    "token_order": ("return", "previous_action", "state"),
    "embedding_size": 128,
    "hidden_size": 64,
    "state_size": 64,
    "n_layer": 3,
}
_DECISION_TRANSFORMER_TOKENS = {
    "token_order": ("return", "state", "action"),
    "embed_layer_norm": True,
    "norm_type": "layer_norm",
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
}
_DMM = {
    **_DECISION_TRANSFORMER_TOKENS,
    "hidden_size": 64,
    "n_layer": 3,
    "expand": 1,
    "conv_kernel": 0,
    "local_mixer": "linear",
    "local_mixer_window": 6,
    "share_norms": True,
}
_ATARI = {
    "state_type": "image",
    "action_type": "discrete",
    "embedding_activation": "tanh",
    "head_bias": False,
    "hidden_size": 128,
    "n_layer": 6,
    "state_size": 64,
    "embd_pdrop": 0.1,
}

# What each paper's main experiments use; everything not named is the default of the config class.
PRESETS: dict[str, dict[str, Any]] = {
    # DeMa (arXiv 2405.12094), MuJoCo: pre up-projection (gated Mamba), a token a modality (B3LD) or a step (BL3D).
    "dema-b3ld": _DEMA,
    "dema-bl3d": {**_DEMA, "sequence_layout": "concatenated"},
    # DeMa, MuJoCo, post up-projection: Decision Transformer's tokens, S6 instead of attention.
    "dema-post": {
        **_DECISION_TRANSFORMER_TOKENS,
        "block_type": "transformer",
        "hidden_size": 128,
        "state_size": 64,
        "n_layer": 3,
        "activation_function": "relu",
    },
    # DeMa, Atari.
    "dema-atari": {**_ATARI, "token_order": ("previous_action", "return", "state"), "embedding_size": 128},
    "dema-atari-post": {
        **_ATARI,
        "token_order": ("return", "state", "action"),
        "block_type": "transformer",
        "norm_type": "layer_norm",
        "activation_function": "gelu",
        "resid_pdrop": 0.1,
    },
    # Decision MetaMamba (arXiv 2408.10517, 2602.19805).
    "dmm": _DMM,
    "dmm-conv": {**_DMM, "local_mixer": "conv", "expand": 2, "share_norms": False},
    "dmm-mamba2": {**_DMM, "ssm": "mamba2", "state_size": 128, "head_dim": 16},
    # Decision Mamba (arXiv 2403.19925).
    "decision-mamba": {
        **_DECISION_TRANSFORMER_TOKENS,
        "block_type": "mamba_mlp",
        "use_timestep_embedding": True,
        "hidden_size": 128,
        "n_layer": 3,
        "activation_function": "gelu",
    },
    # The null hypothesis of all of them: a plain recurrent network (Cho et al., arXiv 1406.1078), about as large as
    # dema-b3ld; of vectors as of images.
    "gru": {
        "token_order": ("previous_action", "return", "state"),
        "sequence_layout": "concatenated",
        "embedding_size": 128,
        "ssm": "gru",
        "mixer_residual": False,
        "hidden_size": 100,
        "n_layer": 2,
        "expand": 1,
        "conv_kernel": 0,
    },
}

#: The tokens that say what is asked for, and the inputs that they are made of; a model has one of them, or none.
CONDITIONS = {"return": "returns_to_go", "goal": "goals"}

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "conditioning": (*CONDITIONS, "none"),
    "sequence_layout": ("interleaved", "concatenated"),
    "state_type": ("vector", "image"),
    "action_type": ("continuous", "discrete"),
    "block_type": ("mamba", "transformer", "mamba_mlp"),
    "ssm": ("mamba", "mamba2", "gru"),
    "local_mixer": (None, "linear", "conv"),
    "norm_type": ("rms_norm", "layer_norm"),
    "mixer_norm_type": (None, "rms_norm", "layer_norm"),
}


class ConditionedConfig:
    """Of a config with `conditioning` and `goal_dim`: what says at each step what the model is asked for."""

    conditioning: str
    goal_dim: int | None

    @property
    def condition_input(self) -> str | None:
        """The input that says what is asked for; None without a condition."""
        return CONDITIONS.get(self.conditioning)

    @property
    def condition_dim(self) -> int:
        """Numbers that say what is asked for at each step: 1 of a return-to-go, 0 without a condition."""
        return {"return": 1, "goal": self.goal_dim or 0, "none": 0}[self.conditioning]

    def select_condition(self, returns_to_go: Any, goals: Any) -> Any:
        """Return the one of these inputs that says what is asked for; None without a condition.

        Returns of one step may be (b, 1), as the example of DecisionTransformer's documentation has them.
        """
        if self.condition_input == "returns_to_go" and returns_to_go is not None:
            one_step = returns_to_go.dim() == 2 and returns_to_go.shape[1] == 1
            return returns_to_go[..., None] if one_step else returns_to_go
        return goals if self.condition_input == "goals" else None

    def check_goal_dim(self) -> None:
        """Refuse a goal without a size, and a size without a goal."""
        if (self.goal_dim is not None) != (self.conditioning == "goal"):
            raise ValueError(
                f"goal_dim={self.goal_dim} does not fit conditioning={self.conditioning!r}: it is the size of a goal, "
                "and only of a goal."
            )


@strict
class DecisionMambaConfig(ConditionedConfig, CheckedConfig, PreTrainedConfig):
    r"""
    Configuration of a [`DecisionMambaModel`].

    Args:
        state_dim (`int`, *optional*, defaults to 17): Dimensions of one state.
        act_dim (`int`, *optional*, defaults to 4): Dimensions of one action.
        hidden_size (`int`, *optional*, defaults to 128): Width of the backbone.
        embedding_size (`int`, *optional*): Width of the modality embeddings, mapped to `hidden_size` by a linear layer;
            without it the embeddings have `hidden_size` and no such layer exists.
        n_layer (`int`, *optional*, defaults to 3): Number of blocks.
        max_ep_len (`int`, *optional*, defaults to 4096): Longest episode that is embedded: time steps stay below it.
        action_tanh (`bool`, *optional*, defaults to `True`): Whether predicted actions pass through tanh.
        conditioning (`str`, *optional*, defaults to `"return"`): What a policy is asked for: `"return"`, the
            return-to-go; `"goal"`, a vector of `goal_dim` numbers; `"none"`, imitation of what the data do.
        goal_dim (`int`, *optional*): Dimensions of a goal; with `conditioning="goal"` only.
        token_order (`tuple[str, ...]`, *optional*, defaults to `("return", "previous_action", "state")`): What one
            environment step contributes, in order; the action is read at the state's token. Either the state comes
            last, behind the previous action, or the step's own action comes last, behind the state. A goal stands in
            the place of `"return"`, and without a condition there is no such token, whatever was given here.
        sequence_layout (`str`, *optional*, defaults to `"interleaved"`): `"interleaved"` (B3LD), one token a modality,
            or `"concatenated"` (BL3D), one token a step.
        embedding_activation (`str`, *optional*): Activation of the embeddings, e.g. `"tanh"`.
        embed_layer_norm (`bool`, *optional*, defaults to `False`): LayerNorm on the tokens.
        state_type (`str`, *optional*, defaults to `"vector"`): `"vector"`, or `"image"`: stacks of `num_channels`
            frames of `image_size` pixels squared, uint8 from 0 to 255 or floating from 0 to 1.
        action_type (`str`, *optional*, defaults to `"continuous"`): `"continuous"`, or `"discrete"`: `act_dim` is the
            number of actions.
        num_channels (`int`, *optional*, defaults to 4): Frames of an image state.
        image_size (`int`, *optional*, defaults to 84): Height and width of an image state.
        block_type (`str`, *optional*, defaults to `"mamba"`): `"mamba"`, gated Mamba (pre up-projection);
            `"transformer"`, S6 and a feed-forward layer (post up-projection); `"mamba_mlp"`, both.
        ssm (`str`, *optional*, defaults to `"mamba"`): `"mamba"` or `"mamba2"`, the recurrence of the mixer; or
            `"gru"`, the baseline without a scan, whose state is one number a channel (`conv_kernel=0`, `expand=1`).
        use_gate (`bool`, *optional*, defaults to `True`): Whether the output of a Mamba scan is multiplied by a gate,
            SiLU of a projection of the input. `False` is for ablations.
        selective (`bool`, *optional*, defaults to `True`): Whether the step size Δ of a Mamba scan depends on the
            input. With `False`, for ablations, it is one learned constant a channel; the input and output maps B and C
            depend on the input still, as in the ablation of Δ alone in Mamba's paper (arXiv 2312.00752, section 4.6).
        local_mixer (`str`, *optional*): Mixer in front of the recurrence, `"linear"` or `"conv"`.
        local_mixer_window (`int`, *optional*, defaults to 6): Tokens that the local mixer sees.
        local_mixer_inside (`bool`, *optional*, defaults to `False`): Whether a second local mixer takes the place of
            the Mamba mixer's own convolution.
        share_local_mixer (`bool`, *optional*, defaults to `False`): One local mixer for all layers.
        mixer_residual (`bool`, *optional*, defaults to `True`): Whether the Mamba mixer's output is added to its input
            or replaces it.
        norm_type (`str`, *optional*, defaults to `"rms_norm"`): `"rms_norm"` or `"layer_norm"`.
        mixer_norm_type (`str`, *optional*): Norm in front of the Mamba mixer, when it is not `norm_type`.
        share_norms (`bool`, *optional*, defaults to `False`): One set of norms for all layers.
        n_inner (`int`, *optional*): Width of the feed-forward layer; `4 * hidden_size` when not given.
        activation_function (`str`, *optional*, defaults to `"relu"`): Activation of the feed-forward layer.
        predict_state_and_return (`bool`, *optional*, defaults to `False`): Linear heads for the next state (`state_dim`
            numbers, also of image models) and return, as DecisionTransformer has them: `labels` do not train them. They
            read the action's token, or where the step's own action is none, the state's token and that action.
        head_bias (`bool`, *optional*, defaults to `True`): Bias of the action head.
        use_timestep_embedding (`bool`, *optional*, defaults to `False`): Whether a learned embedding of the time step
            is added to every embedding of that step.
        state_size (`int`, *optional*, defaults to 16): States per channel of the scan (N).
        expand (`int`, *optional*, defaults to 2): Width of a gated mixer as a multiple of `hidden_size`.
        head_dim (`int`, *optional*, defaults to 16): Channels of a Mamba-2 head.
        conv_kernel (`int`, *optional*, defaults to 4): Tokens that the causal convolution sees;
            0 for no convolution.
        time_step_rank (`int`, *optional*): Rank of the step-size projection; when not given, `hidden_size / 16`
            rounded up (`hidden_size / 32` in a `"transformer"` block, as in the papers).
        time_step_min (`float`, *optional*, defaults to 0.001): Smallest initial step size.
        time_step_max (`float`, *optional*, defaults to 0.1): Largest initial step size.
        time_step_floor (`float`, *optional*, defaults to 0.0001): Lower bound of initial step sizes.
        use_bias (`bool`, *optional*, defaults to `False`): Bias in the mixer's input and output projections.
        use_conv_bias (`bool`, *optional*, defaults to `True`): Bias in the convolution.
        residual_in_fp32 (`bool`, *optional*, defaults to `True`): Whether residuals stay in float32 when the weights
            are in half precision.
        layer_norm_epsilon (`float`, *optional*, defaults to 1e-5): Epsilon of every norm.
        embd_pdrop (`float`, *optional*, defaults to 0.0): Dropout on the tokens.
        resid_pdrop (`float`, *optional*, defaults to 0.0): Dropout on each mixer's output.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of a new time step embedding.
        scan_backend (`str`, *optional*): Backend of the selective scan (`"reference"`, `"numba"`, `"triton"` or
            `"mamba_ssm"`); chosen by device when not given.
        use_cache (`bool`, *optional*, defaults to `False`): Whether `forward` returns the recurrent states by default.
        format_version (`int`, *optional*, defaults to 1): Format of the checkpoint; a newer one than this package knows
            is refused, and every older one is read.

    Raises:
        ValueError: A value from which no model can be built; a size beyond `SIZE_LIMITS`, or more than
            `MAX_PARAMETERS` parameters, before anything is allocated.

    Example:

    ```python
    >>> from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel

    >>> config = DecisionMambaConfig.from_preset("dema-b3ld", state_dim=11, act_dim=3)
    >>> model = DecisionMambaModel(config)
    ```"""

    model_type = "decision_mamba"
    # What a Trainer does not gather: its predictions are the actions, as `compute_metrics` expects.
    keys_to_ignore_at_inference = ["state_preds", "return_preds", "last_hidden_state", "cache_params"]
    attribute_map = {
        "num_hidden_layers": "n_layer",
        "max_position_embeddings": "max_ep_len",
        "ssm_state_size": "state_size",
        "mamba_d_state": "state_size",
        "mamba_d_conv": "conv_kernel",
        "mamba_expand": "expand",
    }

    state_dim: int = 17
    act_dim: int = 4
    hidden_size: int = 128
    embedding_size: int | None = None
    n_layer: int = 3
    max_ep_len: int = 4096
    action_tanh: bool = True
    conditioning: str = "return"
    goal_dim: int | None = None
    token_order: tuple[str, ...] | list[str] = ("return", "previous_action", "state")
    sequence_layout: str = "interleaved"
    embedding_activation: str | None = None
    embed_layer_norm: bool = False
    use_timestep_embedding: bool = False
    state_type: str = "vector"
    action_type: str = "continuous"
    num_channels: int = 4
    image_size: int = 84
    block_type: str = "mamba"
    ssm: str = "mamba"
    use_gate: bool = True
    selective: bool = True
    local_mixer: str | None = None
    local_mixer_window: int = 6
    local_mixer_inside: bool = False
    share_local_mixer: bool = False
    mixer_residual: bool = True
    norm_type: str = "rms_norm"
    mixer_norm_type: str | None = None
    share_norms: bool = False
    n_inner: int | None = None
    activation_function: str = "relu"
    predict_state_and_return: bool = False
    head_bias: bool = True
    state_size: int = 16
    expand: int = 2
    head_dim: int = 16
    conv_kernel: int = 4
    time_step_rank: int | None = None
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    use_bias: bool = False
    use_conv_bias: bool = True
    residual_in_fp32: bool = True
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float | int = 0.0
    resid_pdrop: float | int = 0.0
    initializer_range: float = 0.02
    scan_backend: str | None = None
    use_cache: bool = False
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs):
        self.token_order = self._conditioned(self.token_order)  # a list, as JSON gives it back
        if self.time_step_rank is None:
            self.time_step_rank = math.ceil(self.hidden_size / (32 if self.block_type == "transformer" else 16))
        super().__post_init__(**kwargs)

    def _conditioned(self, order: tuple[str, ...] | list[str]) -> list[str]:
        """Put the token of what is asked for in the place of the return's, or leave it out."""
        if self.conditioning == "none":
            return [token for token in order if token not in CONDITIONS]
        wanted = self.conditioning if self.conditioning in CONDITIONS else "return"
        return [wanted if token in CONDITIONS else token for token in order]

    def validate_architecture(self):
        """Refuse values from which no model can be built; `@strict` validation calls this."""
        super().validate_architecture()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {choices}.")
        for name in ("activation_function", "embedding_activation"):
            if getattr(self, name) is not None and getattr(self, name) not in ACT2FN:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(ACT2FN)}.")
        for name, (holds, condition) in self._number_conditions().items():
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)} must be {condition}.")
        order = tuple(self.token_order)
        condition = [] if self.conditioning == "none" else [self.conditioning]
        if (sorted(order), order[-1:]) not in (
            (sorted([*condition, "previous_action", "state"]), ("state",)),
            (sorted([*condition, "state", "action"]), ("action",)),
        ):
            asked = f"'{condition[0]}', " if condition else ""
            raise ValueError(
                f"token_order={list(order)} must hold {asked}'previous_action' and 'state' with 'state' last, or "
                f"{asked}'state' and 'action' with 'action' last: a decision must not see its own action."
            )
        self.check_goal_dim()
        self._validate_combinations(order)

    def _number_conditions(self) -> dict[str, tuple[bool, str]]:
        """List what must hold for the numbers that are not sizes; of NaN nothing holds."""
        return {
            "time_step_min": (0 < self.time_step_min <= self.time_step_max, "positive and at most time_step_max"),
            "time_step_max": (self.time_step_max < math.inf, "finite"),
            "time_step_floor": (0 <= self.time_step_floor < math.inf, "finite and at least 0"),
            "layer_norm_epsilon": (0 < self.layer_norm_epsilon <= 1, "positive and at most 1"),
            "initializer_range": (0 <= self.initializer_range < math.inf, "finite and at least 0"),
            "embd_pdrop": (0 <= self.embd_pdrop < 1, "at least 0 and below 1"),
            "resid_pdrop": (0 <= self.resid_pdrop < 1, "at least 0 and below 1"),
        }

    def _validate_combinations(self, order: tuple[str, ...]) -> None:
        """Refuse fields that contradict each other."""
        contradictions = {
            "sequence_layout='concatenated' needs 'previous_action' in token_order, not the step's own action": (
                self.sequence_layout == "concatenated" and "action" in order
            ),
            "local_mixer_inside=True needs a local_mixer and ssm='mamba'": (
                self.local_mixer_inside and (self.local_mixer is None or self.ssm != "mamba")
            ),
            "share_local_mixer=True needs a local_mixer": self.share_local_mixer and self.local_mixer is None,
            "ssm='mamba2' is gated and cannot stand in a 'transformer' block": (
                self.ssm == "mamba2" and self.block_type == "transformer"
            ),
            "use_gate=False needs ssm='mamba' and a block_type that has a gate, 'mamba' or 'mamba_mlp'": (
                not self.use_gate and (self.ssm != "mamba" or self.block_type == "transformer")
            ),
            "selective=False needs ssm='mamba'": not self.selective and self.ssm != "mamba",
            "ssm='gru' has no convolution and no channels beyond hidden_size: it needs conv_kernel=0 and expand=1": (
                self.ssm == "gru" and (self.conv_kernel, self.expand) != (0, 1)
            ),
            f"head_dim={self.head_dim} must divide the {self.intermediate_size} channels of a Mamba-2 mixer": (
                self.ssm == "mamba2" and self.intermediate_size % self.head_dim != 0
            ),
            f"image_size={self.image_size} must be at least 36, for three convolutions": (
                self.state_type == "image" and self.image_size < 36
            ),
            f"these sizes make about {self.estimated_parameters:.1e} parameters; at most {MAX_PARAMETERS:.1e} are "
            "built": self.estimated_parameters > MAX_PARAMETERS,
        }
        for contradiction, holds in contradictions.items():
            if holds:
                raise ValueError(contradiction + ".")

    @property
    def estimated_parameters(self) -> int:
        """About how many parameters the model has: its large matrices."""
        width, size = self.hidden_size, self.embedding_size or self.hidden_size
        state_dim = 64 * (self.image_size // 8 - 3) ** 2 if self.state_type == "image" else self.state_dim
        steps = self.max_ep_len if self.use_timestep_embedding else 0
        outside = (state_dim + self.act_dim + steps + self.condition_dim) * size
        outside += len(self.token_order) * size * width + self.act_dim * width
        outside += self.state_dim * width if self.predict_state_and_return else 0
        rank = (self.time_step_rank or 0) if self.selective else 0
        projections = 0 if self.block_type == "transformer" else (2 + self.use_gate) * width
        mixer = self.intermediate_size * (projections + 2 * rank + 3 * self.state_size + self.conv_kernel)
        mixer = 6 * width * width if self.ssm == "gru" else mixer
        local = {None: 0, "linear": width, "conv": 3}[self.local_mixer] * self.local_mixer_window * width
        mlp = 2 * width * self.mlp_size if self.block_type != "mamba" else 0
        return outside + self.n_layer * (mixer + local + mlp)

    @property
    def token_types(self) -> tuple[str, ...]:
        """The tokens of one environment step, in order: `token_order`, or one for the whole step."""
        return tuple(self.token_order) if self.sequence_layout == "interleaved" else ("step",)

    @property
    def intermediate_size(self) -> int:
        """Channels of the mixer's scan."""
        return self.hidden_size if self.block_type == "transformer" else self.expand * self.hidden_size

    @property
    def num_heads(self) -> int:
        """Heads of a Mamba-2 mixer."""
        return self.intermediate_size // self.head_dim

    @property
    def conv_channels(self) -> int:
        """Channels that pass the mixer's convolution; in Mamba-2 also those of B and C."""
        return self.intermediate_size + (2 * self.state_size if self.ssm == "mamba2" else 0)

    @property
    def conv_history(self) -> int:
        """Earlier tokens that the mixer's convolution, or the local mixer in its place, looks back on."""
        return self.local_mixer_window - 1 if self.local_mixer_inside else max(0, self.conv_kernel - 1)

    @property
    def mlp_size(self) -> int:
        """Width of the feed-forward layer."""
        return self.n_inner or 4 * self.hidden_size

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "DecisionMambaConfig":
        """Build the config of a paper's variant.

        Args:
            name: a key of `PRESETS`, e.g. `"dema-b3ld"`.
            overrides: config fields to set on top; `state_dim` and `act_dim` in nearly every case.

        Raises:
            ValueError: an unknown preset; the message lists the known ones.
        """
        if name not in PRESETS:
            raise ValueError(f"Unknown preset {name!r}; known presets: {', '.join(sorted(PRESETS))}.")
        return cls(**{**PRESETS[name], **overrides})


__all__ = ["PRESETS", "DecisionMambaConfig"]
