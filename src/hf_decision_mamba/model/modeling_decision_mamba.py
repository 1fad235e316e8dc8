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
"""PyTorch Decision Mamba: return-conditioned decision models on a Mamba backbone.

Read top to bottom: embeddings, block, model; the mixers are in `mixers_decision_mamba`. The caller's view is that of
`DecisionTransformerModel`: index t holds (R_t, s_t, a_t) and `action_preds[:, t]` predicts a_t without seeing it.

Shapes: b batch, k environment steps, l tokens (k times the tokens of one step), e `embedding_size`, d `hidden_size`.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput, logging

from .cache_decision_mamba import NO_ACTION, DecisionMambaCache
from .checkpoint_decision_mamba import CheckedWeights
from .configuration_decision_mamba import CONDITIONS, DecisionMambaConfig
from .hidden_attention import scan_terms
from .mixers_decision_mamba import (
    MIXERS,
    NORMS,
    DecisionMamba2Mixer,
    DecisionMambaMixer,
    DecisionMambaMLP,
    DecisionMambaRMSNorm,
    TokenStream,
    make_local_mixer,
    take_steps,
)

logger = logging.get_logger(__name__)


class DecisionMambaImageEncoder(nn.Module):
    """The convolutions of DQN (Mnih et al. 2015) and a linear map to the embedding width."""

    def __init__(self, config: DecisionMambaConfig, embedding_size: int):
        super().__init__()
        self.conv1 = nn.Conv2d(config.num_channels, 32, 8, stride=4)
        self.conv2 = nn.Conv2d(32, 64, 4, stride=2)
        self.conv3 = nn.Conv2d(64, 64, 3, stride=1)
        side = ((config.image_size - 8) // 4 + 1 - 4) // 2 + 1 - 2
        self.proj = nn.Linear(64 * side * side, embedding_size)

    def forward(self, images: Tensor) -> Tensor:
        """Encode (b, k, frames, height, width), uint8 from 0 to 255 or floating from 0 to 1, as (b, k, e)."""
        dtype = self.proj.weight.dtype
        pixels = images.to(dtype) if images.is_floating_point() else images.to(dtype) / 255
        features = F.relu(self.conv1(pixels.flatten(0, 1)))
        features = F.relu(self.conv3(F.relu(self.conv2(features))))
        return self.proj(features.flatten(1)).unflatten(0, images.shape[:2])


class DecisionMambaActionEmbedding(nn.Embedding):
    """An embedding of discrete actions in which "no action yet" (-1) is zero."""

    def forward(self, actions: Tensor) -> Tensor:
        """Embed (b, k) integers as (b, k, e)."""
        return super().forward(actions.clamp(min=0)) * (actions != NO_ACTION)[..., None]


class PaddingAtTheEnd(NamedTuple):
    """Steps whose padding has moved to the end of their row, where no real step of a causal model can see it.

    Attributes:
        mask: (b, k) bool, the real steps first; None where all are real.
        order: (b, k) the caller's number of each step; None where nothing has moved.
        places: (b, k) where each of the caller's steps is now, likewise.
    """

    mask: Tensor | None = None
    order: Tensor | None = None
    places: Tensor | None = None

    @classmethod
    def of(cls, attention_mask: Tensor | None) -> "PaddingAtTheEnd":
        """Find the order for a mask (b, k), 1 on real steps."""
        if attention_mask is None:
            return cls()
        mask = attention_mask.bool()
        # On a GPU the answer would have to be waited for, and in a compiled graph it would be data that it depends on.
        asked = mask.device.type == "cpu" and not torch.compiler.is_compiling()
        if asked and (mask[:, 1:] <= mask[:, :-1]).all():  # as in training
            return cls(mask)
        order = torch.argsort(mask.int(), dim=1, descending=True, stable=True)
        return cls(take_steps(mask, order), order, torch.argsort(order, dim=1))

    def apply(self, x: Tensor | None, absent: float = 0) -> Any:
        """Reorder x (b, k, ...), `absent` on padding: a gradient of zero times a NaN there would be NaN."""
        if x is None or self.mask is None:
            return x
        x = x if self.order is None else take_steps(x, self.order)
        return x.masked_fill(~self.mask.reshape(self.mask.shape + (1,) * (x.dim() - 2)), absent)

    def undo(self, x: Tensor | None) -> Any:
        """Bring the steps of x (b, k, ...) back into the caller's order."""
        return x if x is None or self.places is None else take_steps(x, self.places)


class DecisionMambaBlock(GradientCheckpointingLayer):
    """h + Local(Norm(h)), h + Mixer(Norm(h)), h + MLP(Norm(h)); the first and the last only in some variants.

    Args:
        config: the variant.
        layer_idx: counted from 0.
        shared: the modules that all blocks have in common, registered by the model.
    """

    def __init__(self, config: DecisionMambaConfig, layer_idx: int, shared: nn.ModuleDict):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self._shared = (shared,)  # in a tuple, so that it is registered once
        if not config.share_norms:
            self.norms = make_norms(config)
        if config.local_mixer is not None and not config.share_local_mixer:
            self.local_mixer = make_local_mixer(config.hidden_size, config)
        self.mixer = MIXERS[config.ssm](config, layer_idx)
        if config.block_type != "mamba":
            self.mlp = DecisionMambaMLP(config)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def part(self, name: str) -> Any:
        """Return its `"norms"` or its `"local_mixer"`, its own or shared with the other blocks."""
        (shared,) = self._shared
        return shared[name] if name in shared else getattr(self, name)

    def forward(self, hidden_states: Tensor, tokens: TokenStream) -> Tensor:
        """Run one block over (b, l, d)."""
        norms = self.part("norms")
        if self.config.local_mixer is not None:
            local_mixer = self.part("local_mixer")
            history = self.config.local_mixer_window - 1
            window = tokens.with_history(norms["local"](hidden_states), "local_states", self.layer_idx, history)
            hidden_states = hidden_states + self.dropout(local_mixer(window, tokens.token_types))
        mixed = self.dropout(self.mixer(norms["mixer"](hidden_states), tokens))
        hidden_states = hidden_states + mixed if self.config.mixer_residual else mixed.to(hidden_states.dtype)
        if self.config.block_type != "mamba":
            hidden_states = hidden_states + self.dropout(self.mlp(norms["mlp"](hidden_states)))
        return hidden_states


def make_norms(config: DecisionMambaConfig) -> nn.ModuleDict:
    """Make the norms of one block, one in front of each of its parts."""
    types = {
        "local": config.norm_type if config.local_mixer is not None else None,
        "mixer": config.mixer_norm_type or config.norm_type,
        "mlp": config.norm_type if config.block_type != "mamba" else None,
    }
    size, eps = config.hidden_size, config.layer_norm_epsilon
    return nn.ModuleDict({part: NORMS[name](size, eps=eps) for part, name in types.items() if name is not None})


@dataclass
class DecisionMambaOutput(ModelOutput):
    """
    Output of [`DecisionMambaModel`]: `loss`, the fields of `DecisionTransformerOutput` and `cache_params`.

    By index and as a tuple, predictions that are absent hold their place as None, so that `output[1]` is the actions as
    in DecisionTransformer; with `labels` the loss stands in front of them. All other absent fields are left out.

    Args:
        loss (`torch.Tensor` of shape `()`): Mean squared error, or cross-entropy of discrete actions, over the labels.
        state_preds (`torch.Tensor` of shape `(batch_size, episode_length, state_dim)`): The next states, where
            `predict_state_and_return` is set and the steps' own actions are known.
        action_preds (`torch.Tensor` of shape `(batch_size, episode_length, act_dim)`): The predicted actions, or the
            logits of discrete ones.
        return_preds (`torch.Tensor` of shape `(batch_size, episode_length, 1)`): The next returns, likewise.
        hidden_states (`tuple` of `torch.Tensor` of shape `(batch_size, tokens, hidden_size)`): The tokens and every
            block's output, the last one normalised.
        attentions (`tuple` of `torch.Tensor` of shape `(batch_size, num_heads, tokens, tokens)`): Hidden attention of
            every layer, signed and without softmax, float32 for half-precision weights; zero for later and for absent
            tokens.
        last_hidden_state (`torch.Tensor` of shape `(batch_size, tokens, hidden_size)`): The normalised output of the
            last block.
        cache_params ([`DecisionMambaCache`]): The recurrent states after the last real step.
    """

    loss: Tensor | None = None
    state_preds: Tensor | None = None
    action_preds: Tensor | None = None
    return_preds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    last_hidden_state: Tensor | None = None
    cache_params: DecisionMambaCache | None = None

    def to_tuple(self) -> tuple:
        """Give the fields in their order, of the absent ones only predictions (None)."""
        held = ("state_preds", "action_preds", "return_preds")
        return tuple(getattr(self, f.name) for f in fields(self) if f.name in held or getattr(self, f.name) is not None)

    def predictions(self) -> tuple:
        """Give what `return_dict=False` returns: DecisionTransformer's three; a loss first and a cache last, if any."""
        loss = () if self.loss is None else (self.loss,)
        cache = () if self.cache_params is None else (self.cache_params,)
        return (*loss, self.state_preds, self.action_preds, self.return_preds, *cache)


class DecisionMambaPreTrainedModel(CheckedWeights, PreTrainedModel):
    """Initialisation and loading shared by Decision Mamba models."""

    config: DecisionMambaConfig
    config_class = DecisionMambaConfig
    base_model_prefix = "model"
    main_input_name = "states"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # the loss divides by `num_items_in_batch`, exact under gradient accumulation
    _no_split_modules = ["DecisionMambaBlock"]
    _skip_keys_device_placement = ["cache_params"]
    _is_stateful = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (DecisionMambaMixer, DecisionMamba2Mixer)):
            module.init_weights()
        elif isinstance(module, DecisionMambaRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            bound = 1 / math.sqrt(module.weight[0].numel())  # PyTorch's own, as the official code leaves it
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)


class DecisionMambaModel(DecisionMambaPreTrainedModel):
    """Policy on a Mamba backbone with DecisionTransformer's interface; the config is the variant and its condition."""

    def __init__(self, config: DecisionMambaConfig):
        super().__init__(config)
        size = config.embedding_size or config.hidden_size
        discrete, image = config.action_type == "discrete", config.state_type == "image"
        if config.conditioning == "return":
            self.embed_return = nn.Linear(1, size)
        elif config.conditioning == "goal":
            self.embed_goal = nn.Linear(config.condition_dim, size)
        self.embed_state = DecisionMambaImageEncoder(config, size) if image else nn.Linear(config.state_dim, size)
        self.embed_action = (
            DecisionMambaActionEmbedding(config.act_dim, size) if discrete else nn.Linear(config.act_dim, size)
        )
        if config.use_timestep_embedding:
            self.embed_timestep = nn.Embedding(config.max_ep_len, size)
        self.activation = ACT2FN[config.embedding_activation or "linear"]
        concatenated = config.sequence_layout == "concatenated"
        width = size * (len(config.token_order) if concatenated else 1)
        projected = concatenated or config.embedding_size is not None
        self.token_proj = nn.Linear(width, config.hidden_size) if projected else None
        if config.embed_layer_norm:
            self.embed_norm = NORMS["layer_norm"](config.hidden_size, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.embd_pdrop)

        self.shared = nn.ModuleDict()
        if config.share_norms:
            self.shared["norms"] = make_norms(config)
        if config.share_local_mixer:
            self.shared["local_mixer"] = make_local_mixer(config.hidden_size, config)
        self.layers = nn.ModuleList(
            [DecisionMambaBlock(config, layer_idx, self.shared) for layer_idx in range(config.n_layer)]
        )
        self.norm_f = NORMS[config.norm_type](config.hidden_size, eps=config.layer_norm_epsilon)

        self.predict_action = nn.Linear(config.hidden_size, config.act_dim, bias=config.head_bias)
        if config.predict_state_and_return:
            width = config.hidden_size + (0 if "action" in config.token_order else size)
            self.predict_state = nn.Linear(width, config.state_dim)
            self.predict_return = nn.Linear(width, 1) if config.conditioning == "return" else None
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of states, the main input."""
        return self.embed_state

    def forward(
        self,
        states: Tensor | None = None,
        actions: Tensor | None = None,
        rewards: Tensor | None = None,
        returns_to_go: Tensor | None = None,
        timesteps: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        previous_actions: Tensor | None = None,
        labels: Tensor | None = None,
        cache_params: DecisionMambaCache | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        time_scale: Tensor | None = None,
        goals: Tensor | None = None,
    ) -> tuple | DecisionMambaOutput:
        r"""
        Predict the action of every step from what a policy knows when it takes it.

        Args:
            states (`torch.Tensor` of shape `(batch_size, episode_length, state_dim)`): Normalised states; with image
                states, frame stacks of shape `(batch_size, episode_length, num_channels, image_size, image_size)`.
            actions (`torch.Tensor` of shape `(batch_size, episode_length, act_dim)`): The action of each step; a step's
                own action never reaches its prediction. Discrete actions are integers `(batch_size, episode_length)`.
            rewards: Accepted for DecisionTransformer's interface; not used.
            returns_to_go (`torch.Tensor` of shape `(batch_size, episode_length, 1)`): Scaled returns-to-go; of a single
                step also `(batch_size, 1)`. Read with `conditioning="return"` alone.
            timesteps (`torch.LongTensor` of shape `(batch_size, episode_length)`): Steps since the episode's start,
                below `max_ep_len`; read only with `use_timestep_embedding`.
            attention_mask (`torch.Tensor` of shape `(batch_size, episode_length)`): 1 for real steps, 0 for padding,
                anywhere. Padding contributes nothing to any real step; its own predictions have no meaning.
            output_hidden_states (`bool`): Return the tokens and every block's output.
            output_attentions (`bool`): Return every layer's hidden attention α: before D, gate and projection, a scan
                reads `Σ_j α_ij x_j` from the tokens x of this call. What a cache remembers from before is no part of
                it, and it has no gradient. Every channel is a head of its own; in Mamba-2 `head_dim` channels share
                one. A layer takes `4 * batch_size * num_heads * tokens²` bytes, three times that while it is computed,
                and `batch_size * num_heads * tokens² * state_size` exponentials (for Mamba-2 without `state_size`).
                `analysis.hidden_attention` of the hf_decision_mamba package gives the last decision's row alone, linear
                in tokens.
            return_dict (`bool`): Whether to return a [`DecisionMambaOutput`] or, as DecisionTransformer does, the tuple
                `(state_preds, action_preds, return_preds)`, None where the model has no such heads; the loss stands in
                front of them with `labels`, the cache behind them where one is used.
            previous_actions (`torch.Tensor` of shape `(batch_size, episode_length, act_dim)`): The action before each
                step, zero at an episode's start. Without it `actions` are shifted by one real step, and the first is
                the cache's last action or zero. A window that begins inside an episode should give it. Discrete ones
                are integers, -1 at an episode's start. Where a step's own action is a token, only a call with a cache
                needs them: the stream of tokens is then cut in front of each action instead of behind it.
            labels (`torch.Tensor` of shape `(batch_size, episode_length, act_dim)`): Target actions; entries of
                -100 and masked steps do not count.
            cache_params ([`DecisionMambaCache`]): States to continue from; updated in place.
            use_cache (`bool`): Return the states after the last real step.
            num_items_in_batch (`int`): Divisor of the summed loss; the number of counted entries when not given.
            time_scale (`torch.Tensor` of shape `(batch_size, episode_length)`): How long each step lasts, positive: the
                step size Δ of all of its tokens, its own action's too, is multiplied by it in every layer, behind
                softplus. A step of s changes the scans' states as s equal steps would: in the decay exactly, in the
                input to first order in Δ. Convolutions and local mixers do not see it. It is a constant: no gradient
                flows to it. None is 1 everywhere, and costs nothing.
            goals (`torch.Tensor` of shape `(batch_size, episode_length, goal_dim)`): The goal of every step,
                normalised, with `conditioning="goal"`.

        Raises:
            ValueError: an input that is missing, of the wrong shape, a time step at or beyond `max_ep_len`, or a time
                scale that is not positive and finite.
        """
        config = self.config
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        return_dict = config.return_dict if return_dict is None else return_dict
        use_cache = cache_params is not None or (config.use_cache if use_cache is None else use_cache)
        condition = config.select_condition(returns_to_go, goals)
        self._check_inputs(
            states, actions, condition, timesteps, attention_mask, previous_actions, cache_params, time_scale
        )
        assert states is not None
        if use_cache and self.gradient_checkpointing and self.training:
            logger.warning_once("Activation checkpointing would advance the cache twice, so no cache is used.")
            use_cache, cache_params = False, None
        if use_cache and cache_params is None:
            cache_params = DecisionMambaCache(config, states.shape[0], device=states.device, dtype=self.dtype)

        padding = PaddingAtTheEnd.of(attention_mask)
        states, actions, condition, timesteps, previous_actions = (
            padding.apply(x) for x in (states, actions, condition, timesteps, previous_actions)
        )
        if previous_actions is None:
            previous_actions = self._shift(actions, cache_params)
        if time_scale is None and cache_params is not None and cache_params.last_time_scale is not None:
            time_scale = torch.ones(states.shape[:2], device=states.device)
        time_scale = padding.apply(time_scale, absent=1)
        tokens = self._token_stream(padding.mask, states, cache_params, time_scale)
        if output_attentions:
            tokens = tokens._replace(scans=[])
        hidden_states = self._embed(
            tokens.token_types, states, actions, previous_actions, condition, timesteps
        )  # (b, l, d)
        if cache_params is not None:
            cache_params.advance(actions, padding.mask, time_scale)

        all_hidden_states = [hidden_states]
        for layer in self.layers:
            hidden_states = layer(hidden_states, tokens)
            all_hidden_states.append(hidden_states)
        all_hidden_states[-1] = self.norm_f(hidden_states)
        if not output_hidden_states:
            all_hidden_states = all_hidden_states[-1:]
        of_steps = (-1, len(tokens.token_types))  # (b, l, d) to (b, k, tokens of a step, d)
        all_hidden_states = [padding.undo(h.unflatten(1, of_steps)).flatten(1, 2) for h in all_hidden_states]

        by_step = all_hidden_states[-1].unflatten(1, of_steps)
        action_preds = self._predict_actions(by_step, tokens.token_types)  # (b, k, act_dim)
        state_preds, return_preds = self._predict_state_and_return(by_step, tokens.token_types, padding.undo(actions))
        output = DecisionMambaOutput(
            loss=None if labels is None else self._loss(action_preds, labels, attention_mask, num_items_in_batch),
            state_preds=state_preds,
            action_preds=action_preds,
            return_preds=return_preds,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=self._hidden_attention(tokens, padding) if output_attentions else None,
            last_hidden_state=all_hidden_states[-1],
            cache_params=cache_params,
        )
        return output if return_dict else output.predictions()

    def _shift(self, actions: Tensor, cache_params: DecisionMambaCache | None) -> Tensor:
        """Return the action before each step: actions one step later, behind the last one known or none."""
        if cache_params is not None:
            last = cache_params.last_actions.to(actions.dtype)
        elif self.config.action_type == "discrete":
            last = torch.full_like(actions[:, 0], NO_ACTION)
        else:
            last = torch.zeros_like(actions[:, 0])
        return torch.cat([last[:, None], actions[:, :-1]], dim=1)

    def _token_stream(
        self,
        mask: Tensor | None,
        states: Tensor,
        cache_params: DecisionMambaCache | None,
        time_scale: Tensor | None,
    ) -> TokenStream:
        """Cut the sequence into tokens; say which of them are absent, and the factor on Δ of each."""
        token_types = self.config.token_types
        scale = None if time_scale is None else time_scale.repeat_interleave(len(token_types), dim=1)
        if cache_params is None:
            return TokenStream(token_types, time_scale=scale)
        token_mask = None if mask is None else mask.repeat_interleave(len(token_types), dim=1)
        if "action" in token_types:
            # A decision is due before its own action is known. So the stream R s a R s a ... is cut into
            # (R s)(a R s)...: an episode's first action token, in front of its first return, is absent.
            token_types = ("action", *token_types[:-1])
            if token_mask is None:
                shape = (states.shape[0], states.shape[1] * len(token_types))
                token_mask = torch.ones(shape, dtype=torch.bool, device=states.device)
            token_mask = torch.cat([token_mask[:, :1] & cache_params.started[:, None], token_mask[:, 1:]], dim=1)
            if scale is not None:  # one token later, behind the step before
                scale = torch.cat([cache_params.time_scale_before(scale)[:, None], scale[:, :-1]], dim=1)
        return TokenStream(token_types, cache_params, token_mask, time_scale=scale)

    def _embed(
        self,
        token_types: tuple[str, ...],
        states: Tensor,
        actions: Any,
        previous_actions: Tensor,
        condition: Any,
        timesteps: Any,
    ) -> Tensor:
        """Make tokens (b, l, d): the embeddings of one step side by side, step after step."""
        dtype = self.dtype
        cut_before_action = token_types[0] == "action"
        parts = []
        for name in token_types if len(token_types) > 1 else self.config.token_order:
            if name in CONDITIONS:
                part = getattr(self, f"embed_{name}")(condition.to(dtype))
            elif name == "state":
                part = self.embed_state(states if self.config.state_type == "image" else states.to(dtype))
            else:
                part = self._embed_actions(actions if name == "action" and not cut_before_action else previous_actions)
            part = self.activation(part)
            if self.config.use_timestep_embedding:
                shown_steps = timesteps - 1 if name == "action" and cut_before_action else timesteps
                part = part + self.embed_timestep(shown_steps.clamp(min=0))
            parts.append(part)
        if self.config.sequence_layout == "concatenated":
            tokens = torch.cat(parts, dim=-1)
        else:
            tokens = torch.stack(parts, dim=2).flatten(1, 2)
        if self.token_proj is not None:
            tokens = self.token_proj(tokens)
        if self.config.embed_layer_norm:
            tokens = self.embed_norm(tokens)
        tokens = self.dropout(tokens)
        return tokens.to(torch.promote_types(dtype, torch.float32)) if self.config.residual_in_fp32 else tokens

    def _embed_actions(self, actions: Tensor) -> Tensor:
        """Embed actions (b, k, ...) as (b, k, e), before the activation."""
        return self.embed_action(actions if self.config.action_type == "discrete" else actions.to(self.dtype))

    @torch.no_grad()
    def _hidden_attention(self, tokens: TokenStream, padding: PaddingAtTheEnd) -> tuple[Tensor, ...]:
        """Compute hidden attention (b, heads, l, l) of every layer, with the steps where the caller has them."""
        real = tokens.mask
        if real is None and padding.mask is not None:
            real = padding.mask.repeat_interleave(len(tokens.token_types), dim=1)
        layers = [scan_terms(scan, self.config, real) for scan in tokens.scans or ()]
        # Absent tokens add nothing to a sum of step sizes, so that the terms can be moved instead of the matrices.
        places = padding.places
        return tuple((layer if places is None else layer.at_steps(places)).attention() for layer in layers)

    def _predict_actions(self, hidden_states: Tensor, token_types: tuple[str, ...]) -> Tensor:
        """Predict actions (b, k, act_dim), or logits, at the state's token of hidden_states (b, k, a step's, d)."""
        actions = self.predict_action(hidden_states[:, :, state_token(token_types)])
        return torch.tanh(actions) if self.config.action_tanh and self.config.action_type == "continuous" else actions

    def _predict_state_and_return(
        self, hidden_states: Tensor, token_types: tuple[str, ...], actions: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Predict next states (b, k, state_dim) and returns (b, k, 1) after the step's own action, where that is known.

        They are read at its token. Where it is none, its embedding stands beside what is known of the step before it.
        """
        is_token = "action" in self.config.token_order
        if not self.config.predict_state_and_return or actions is None or (is_token and token_types[-1] != "action"):
            return None, None
        if is_token:
            seen = hidden_states[:, :, -1]
        else:
            before = hidden_states[:, :, state_token(token_types)]
            seen = torch.cat([before, self.activation(self._embed_actions(actions))], dim=-1)
        return self.predict_state(seen), None if self.predict_return is None else self.predict_return(seen)

    def _loss(
        self, predictions: Tensor, labels: Tensor, attention_mask: Tensor | None, num_items: Tensor | int | None
    ) -> Tensor:
        """Average the loss over real, labelled entries (action dimensions, or discrete actions); 0 if there is none."""
        counted = labels != -100
        if attention_mask is not None:
            real = attention_mask.bool()
            counted = counted & (real if counted.dim() == 2 else real[..., None])
        predictions = predictions.to(torch.promote_types(predictions.dtype, torch.float32))
        if self.config.action_type == "discrete":
            targets = torch.where(counted, labels, -100)
            total = F.cross_entropy(predictions.flatten(0, 1), targets.flatten(), reduction="sum")
        else:
            total = torch.where(counted, predictions - labels.to(predictions.dtype), 0.0).square().sum()
        loss = total / (counted.sum().clamp(min=1) if num_items is None else num_items)
        if self.config.predict_state_and_return:
            # Sums of nothing: heads that have no labels get a gradient of zero, as DDP waits for all parameters.
            for head in filter(None, (self.predict_state, self.predict_return)):
                loss = loss + sum(parameter.flatten()[:0].sum() for parameter in head.parameters())
        return loss

    def _check_inputs(
        self, states, actions, condition, timesteps, attention_mask, previous_actions, cache_params, time_scale
    ) -> None:
        """Raise one clear error for inputs that cannot be right: shapes, presence, values of time steps and scales."""
        config = self.config
        if actions is None and cache_params is None and "action" in config.token_order:
            raise ValueError("actions are required: they are tokens of this model.")
        required = [] if config.condition_input is None else [config.condition_input]
        if states is None or (condition is None and required) or (actions is None and previous_actions is None):
            raise ValueError(f"{', '.join(['states', *required])} and one of actions or previous_actions are required.")
        state_shape: tuple[int, ...] = (config.state_dim,)
        if config.state_type == "image":
            state_shape = (config.num_channels, config.image_size, config.image_size)
        if states.dim() != 2 + len(state_shape) or states.shape[1] == 0:
            expected_shape = f"(batch, steps, {', '.join(map(str, state_shape))}) with at least one step"
            raise ValueError(f"states has shape {tuple(states.shape)}; expected {expected_shape}.")
        steps = tuple(states.shape[:2])
        action_shape = steps if config.action_type == "discrete" else (*steps, config.act_dim)
        expected = {
            "states": (states, (*steps, *state_shape)),
            "actions": (actions, action_shape),
            "previous_actions": (previous_actions, action_shape),
            **{name: (condition, (*steps, config.condition_dim)) for name in required},
            "timesteps": (timesteps, steps),
            "attention_mask": (attention_mask, steps),
            "time_scale": (time_scale, steps),
        }
        for name, (tensor, shape) in expected.items():
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape} for this model and batch.")
        if time_scale is not None and config.ssm == "gru":
            raise ValueError("time_scale multiplies step sizes, and ssm='gru' has none; leave it out.")
        if cache_params is not None and cache_params.batch_size != steps[0]:
            raise ValueError(f"cache_params holds {cache_params.batch_size} rows, but the batch has {steps[0]}.")
        if config.use_timestep_embedding:
            _check_timesteps(timesteps, config.max_ep_len)
        if time_scale is not None and not torch.compiler.is_compiling() and time_scale.device.type != "meta":
            _check_time_scale(time_scale, attention_mask)


def _check_timesteps(timesteps: Tensor | None, max_ep_len: int) -> None:
    """Refuse time steps that are not there, or that the embedding does not know."""
    if timesteps is None:
        raise ValueError("timesteps are required: this model embeds the time step (use_timestep_embedding=True).")
    if not torch.compiler.is_compiling() and timesteps.device.type != "meta":
        low, high = timesteps.min().item(), timesteps.max().item()
        if low < 0 or high >= max_ep_len:
            raise ValueError(
                f"timesteps range from {low} to {high}, but this model knows 0 to {max_ep_len - 1} (max_ep_len): train "
                "with a larger max_ep_len or end the episode earlier."
            )


def _check_time_scale(time_scale: Tensor, attention_mask: Tensor | None) -> None:
    """Refuse a real step whose time scale is not positive and finite; padding may hold anything."""
    wrong = ~((time_scale > 0) & time_scale.isfinite())
    if attention_mask is not None:
        wrong = wrong & attention_mask.bool()
    if wrong.any():
        row, step = wrong.nonzero()[0].tolist()
        found = f"time_scale is {time_scale[row, step].item()} at step {step} of row {row}"
        raise ValueError(f"{found}; it must be positive and finite at every real step: 1 leaves a step as it is.")


def state_token(token_types: tuple[str, ...]) -> int:
    """Tell which token of a step holds its state."""
    return token_types.index("state") if "state" in token_types else 0


__all__ = ["DecisionMambaModel", "DecisionMambaOutput", "DecisionMambaPreTrainedModel"]
