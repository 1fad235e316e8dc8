"""Official checkpoints as ours: the authors' weights, loaded into `DecisionMambaModel`.

Each architecture is a table of renamed weights and of constructor arguments turned into config fields. Tensors that the
authors' forward pass never reads are dropped by name; anything else that is unknown or missing is an error.
Sources: AndssY/dema (e2aed7e1), too-z/decision-metamamba (90ad44d8, 3d0f554b), Toshihiro-Ota/decision-mamba (35f99441).
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .model import DecisionMambaConfig, DecisionMambaModel
from .reporting.checks import wrong_type

Weights = dict[str, Tensor]


class _Architecture(NamedTuple):
    """How one official class becomes ours.

    Attributes:
        make_config: official constructor arguments to our config.
        renames: (pattern, replacement) pairs; the first pattern that matches a whole key renames it, None drops it.
        transposed: pattern of official keys whose matrices stand the other way round.
        prepare: changes the official weights as a whole before any renaming.
    """

    make_config: Callable[..., DecisionMambaConfig]
    renames: tuple[tuple[str, str | None], ...]
    transposed: str = r"(?!)"
    prepare: Callable[[Weights], Weights] = dict


def convert_official_checkpoint(
    state_dict: Mapping[str, Tensor], architecture: str, **official_constructor_arguments: Any
) -> DecisionMambaModel:
    """Build a `DecisionMambaModel` that computes what the authors' model with these weights computes.

    The model is returned in evaluation mode, in the dtype of the weights. DeMa's training alignment is one step staler
    than its own evaluation; ours is the evaluation's, whose array `actions` is our `previous_actions`.

    Args:
        state_dict: the official weights, by their official names.
        architecture: `"dema"` (class `Mamba_mujoco`), `"dema-post"` (`DecisionTransformer` with S6), `"dema-atari"`
            (`DMamba`), `"dema-atari-post"` (`GPT` with S6), `"dmm"` (`DecisionMetaMamba`, second generation),
            `"dmm-gen1"` (first generation) or `"decision-mamba"` (Ota's `DecisionMamba`).
        official_constructor_arguments: what the official class was built with, e.g. `state_dim=11, d_model=64`.

    Raises:
        TypeError: `state_dict` is something else.
        ValueError: an unknown architecture or constructor argument, or weights that do not fit (each is named).
    """
    if not isinstance(state_dict, Mapping):
        raise wrong_type("state_dict", state_dict, "the weights by name, such as torch.load(path, weights_only=True)")
    if architecture not in _ARCHITECTURES:
        raise ValueError(f"Unknown architecture {architecture!r}; known: {', '.join(sorted(_ARCHITECTURES))}.")
    official = _ARCHITECTURES[architecture]
    model = DecisionMambaModel(official.make_config(**official_constructor_arguments))
    converted: Weights = {}
    for key, tensor in official.prepare(dict(state_dict)).items():
        name = _renamed(key, official.renames)
        if name is not None:
            converted[name] = (tensor.mT if re.fullmatch(official.transposed, key) else tensor).detach().clone()
    _check_fit(converted, model.state_dict())
    model.load_state_dict(converted, assign=True)  # assigned, so that the weights keep their dtype
    return model.eval()


def _renamed(key: str, renames: tuple[tuple[str, str | None], ...]) -> str | None:
    for pattern, replacement in renames:
        if match := re.fullmatch(pattern, key):
            return None if replacement is None else match.expand(replacement)
    return key  # unknown names are reported with the misfits


def _check_fit(converted: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    problems = [f"missing {name}" for name in expected.keys() - converted.keys()]
    problems += [f"unexpected {name}" for name in converted.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(converted[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected.keys() & converted.keys()
        if converted[name].shape != expected[name].shape
    ]
    if problems:
        raise ValueError("The checkpoint does not fit its constructor arguments: " + "; ".join(sorted(problems)) + ".")


def _refuse_unknown(arguments: Mapping[str, Any], unread: tuple[str, ...]) -> None:
    """Refuse arguments that are unknown; those that the official forward pass never reads may be given."""
    unknown = sorted(arguments.keys() - set(unread))
    if unknown:
        raise ValueError(f"Unknown official constructor arguments: {', '.join(unknown)}.")


def _refuse_other(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} cannot be converted; {' or '.join(map(repr, known))} can.")


_HEAD_AND_NORM = (
    (r"predict_action\.0\.(.+)", r"predict_action.\1"),
    (r"embed_ln\.(.+)", r"embed_norm.\1"),
)

# ------------------------------------------------------------------------------------------------- DeMa, MuJoCo

_MAMBA_BACKBONE = (
    (r"backbone\.embedding\.(.+)", r"token_proj.\1"),
    (r"backbone\.layers\.(\d+)\.norm\.(.+)", r"layers.\1.norms.mixer.\2"),
    (r"backbone\.layers\.(\d+)\.mixer\.(.+)", r"layers.\1.mixer.\2"),
    (r"backbone\.norm_f\.(.+)", r"norm_f.\1"),
)


def _ssm_fields(ssm_cfg: Mapping[str, int] | None) -> dict[str, int]:
    ssm = dict(ssm_cfg or {})
    fields = {
        "state_size": ssm.pop("d_state", 16),
        "expand": ssm.pop("expand", 2),
        "conv_kernel": ssm.pop("d_conv", 4),
    }
    _refuse_unknown(ssm, ())
    return fields


def _layout(type_input: str) -> str:
    _refuse_other("type_input", type_input, ("B3LD", "BL3D"))
    return "interleaved" if type_input == "B3LD" else "concatenated"


def _dema(
    state_dim: int,
    act_dim: int,
    embedding_dim: int = 128,
    d_model: int = 64,
    n_layer: int = 3,
    ssm_cfg: Mapping[str, int] | None = None,
    max_ep_len: int = 4096,
    type_input: str = "B3LD",
    time_embd: bool = False,
    action_tanh: bool = True,
    reward_type: str = "normal",
    **unread: Any,
) -> DecisionMambaConfig:
    _refuse_unknown(unread, ("dropout", "max_length"))
    _refuse_other("reward_type", reward_type, ("normal",))
    return DecisionMambaConfig.from_preset(
        "dema-b3ld",
        state_dim=state_dim,
        act_dim=act_dim,
        embedding_size=embedding_dim,
        hidden_size=d_model,
        n_layer=n_layer,
        max_ep_len=max_ep_len,
        sequence_layout=_layout(type_input),
        use_timestep_embedding=time_embd,
        action_tanh=action_tanh,
        **_ssm_fields(ssm_cfg),
    )


def _dema_post(
    state_dim: int,
    act_dim: int,
    hidden_size: int,
    n_layer: int = 3,
    n_inner: int | None = None,
    activation_function: str = "relu",
    max_ep_len: int = 4096,
    action_tanh: bool = True,
    attn_type: str = "s6",
    **unread: Any,
) -> DecisionMambaConfig:
    _refuse_unknown(unread, ("max_length", "n_head", "n_positions", "resid_pdrop", "attn_pdrop", "embd_pdrop"))
    _refuse_other("attn_type", attn_type, ("s6",))
    return DecisionMambaConfig.from_preset(
        "dema-post",
        state_dim=state_dim,
        act_dim=act_dim,
        hidden_size=hidden_size,
        n_layer=n_layer,
        n_inner=n_inner,
        activation_function=activation_function,
        max_ep_len=max_ep_len,
        action_tanh=action_tanh,
        predict_state_and_return=True,
    )


# -------------------------------------------------------------------------------------------------- DeMa, Atari

_ATARI = (
    (r"state_encoder\.0\.(.+)", r"embed_state.conv1.\1"),
    (r"state_encoder\.2\.(.+)", r"embed_state.conv2.\1"),
    (r"state_encoder\.4\.(.+)", r"embed_state.conv3.\1"),
    (r"state_encoder\.7\.(.+)", r"embed_state.proj.\1"),
    (r"ret_emb\.0\.(.+)", r"embed_return.\1"),
    (r"action_embeddings\.0\.(.+)", r"embed_action.\1"),
    (r"head\.(.+)", r"predict_action.\1"),
)


def _dema_atari(
    vocab_size: int,
    n_embed: int = 128,
    d_model: int = 128,
    n_layer: int = 6,
    ssm_cfg: Mapping[str, int] | None = None,
    type_input: str = "B3LD",
    **unread: Any,
) -> DecisionMambaConfig:
    _refuse_unknown(unread, ("block_size", "dropout", "d_conv", "expand"))
    return DecisionMambaConfig.from_preset(
        "dema-atari",
        act_dim=vocab_size,
        embedding_size=n_embed,
        hidden_size=d_model,
        n_layer=n_layer,
        sequence_layout=_layout(type_input),
        **_ssm_fields(ssm_cfg),
    )


def _dema_atari_post(
    vocab_size: int,
    n_layer: int,
    n_embd: int,
    d_state: int = 64,
    expand: int = 2,
    d_conv: int = 4,
    model_type: str = "reward_conditioned",
    **unread: Any,
) -> DecisionMambaConfig:
    _refuse_unknown(unread, ("block_size", "n_head", "max_timestep", "embd_pdrop", "resid_pdrop", "attn_pdrop"))
    _refuse_other("model_type", model_type, ("reward_conditioned",))
    return DecisionMambaConfig.from_preset(
        "dema-atari-post",
        act_dim=vocab_size,
        hidden_size=n_embd,
        n_layer=n_layer,
        state_size=d_state,
        conv_kernel=d_conv,
        time_step_rank=math.ceil(n_embd / expand / 16),  # the only place where `expand` enters
    )


# --------------------------------------------------------------------------------------------- Decision MetaMamba

_DMM_UNREAD = (
    *("dataset", "device", "max_length", "n_head", "n_inner", "drop_p", "activation_function", "resid_pdrop"),
    *("embd_pdrop", "attn_pdrop", "n_positions"),
)


def _dmm(
    state_dim: int,
    act_dim: int,
    hidden_size: int,
    n_layer: int = 3,
    window_size: int = 6,
    max_ep_len: int = 4096,
    env_name: str = "",
    global_sequence_mixer: str = "mamba1",
    action_tanh: bool = True,
    **unread: Any,
) -> DecisionMambaConfig:
    _refuse_unknown(unread, _DMM_UNREAD)
    _refuse_other("global_sequence_mixer", global_sequence_mixer, ("mamba1", "mamba2"))
    return DecisionMambaConfig.from_preset(
        "dmm" if global_sequence_mixer == "mamba1" else "dmm-mamba2",
        state_dim=state_dim,
        act_dim=act_dim,
        hidden_size=hidden_size,
        n_layer=n_layer,
        local_mixer_window=window_size,
        max_ep_len=max_ep_len,
        action_tanh=action_tanh,
        share_local_mixer=any(name in env_name for name in ("kitchen", "antmaze")),
    )


def _dmm_prepare(weights: Weights) -> Weights:
    """Refuse weights without the one local mixer of kitchen and antmaze, which users have to add to the state_dict."""
    if not any("local_sequence_mixers" in key for key in weights) and "unregistered_dsm_lin_weight" not in weights:
        raise ValueError(
            "The local mixer's weights are missing. The official code does not save them for kitchen and antmaze; add "
            "the module's matrix to the state_dict as 'unregistered_dsm_lin_weight'."
        )
    return weights


def _dmm_gen1(
    state_dim: int,
    act_dim: int,
    hidden_size: int,
    token_mixer: str,
    n_layer: int = 3,
    max_ep_len: int = 4096,
    action_tanh: bool = True,
    **unread: Any,
) -> DecisionMambaConfig:
    _refuse_unknown(unread, (*_DMM_UNREAD, "env_name", "window_size"))  # the window is always 6
    _refuse_other("token_mixer", token_mixer, ("conv", "line", "double-conv", "double-line"))
    double = token_mixer.startswith("double")
    return DecisionMambaConfig.from_preset(
        "dmm-conv",
        state_dim=state_dim,
        act_dim=act_dim,
        hidden_size=hidden_size,
        n_layer=n_layer,
        max_ep_len=max_ep_len,
        action_tanh=action_tanh,
        local_mixer="conv" if token_mixer.endswith("conv") else "linear",
        local_mixer_inside=double,
        mixer_residual=double,
    )


def _dmm_gen1_prepare(weights: Weights) -> Weights:
    """Fold the three matrices of a "line" mixer into the one that the official code effectively applies.

    It computes all three for every token and interleaves their outputs along the channels instead of along the tokens,
    so that output channel c always comes from matrix c mod 3.
    """
    folded = {key: tensor for key, tensor in weights.items() if not key.endswith("_lin.weight")}
    for key, tensor in weights.items():
        if key.endswith("rtg_lin.weight"):
            matrices = [tensor, *(weights[key.replace("rtg_lin", name)] for name in ("obs_lin", "act_lin"))]
            rows = torch.arange(len(tensor))
            folded[key.replace("rtg_lin", "lin")] = torch.stack(matrices)[rows % 3, rows]
    return folded


def _dmm_gen1_mixer(official: str, name: str) -> tuple[tuple[str, str], ...]:
    prefix, target = rf"model\.layers\.(\d+)\.{official}\.", rf"layers.\1.{name}."
    types = {"rtg": "return", "obs": "state", "act": "action"}
    convs = tuple(
        (rf"{prefix}{short}_conv1d\.(.+)", rf"{target}conv.{token_type}.\2") for short, token_type in types.items()
    )
    return (*convs, (rf"{prefix}lin\.weight", rf"{target}proj.weight"))


# -------------------------------------------------------------------------------------------- Decision Mamba (Ota)


def _decision_mamba(
    state_dim: int,
    act_dim: int,
    hidden_size: int,
    n_layer: int = 3,
    n_inner: int | None = None,
    max_ep_len: int = 4096,
    model_type: str = "dmamba",
    remove_act_embs: bool = False,
    action_tanh: bool = True,
    **unread: Any,
) -> DecisionMambaConfig:
    _refuse_unknown(unread, (*_DMM_UNREAD, "window_size", "env_name"))
    _refuse_other("model_type", model_type, ("dmamba", "dmamba-min"))
    _refuse_other("remove_act_embs", remove_act_embs, (False,))
    return DecisionMambaConfig.from_preset(
        "decision-mamba",
        state_dim=state_dim,
        act_dim=act_dim,
        hidden_size=hidden_size,
        n_layer=n_layer,
        n_inner=n_inner,
        max_ep_len=max_ep_len,
        action_tanh=action_tanh,
        mixer_norm_type="rms_norm" if model_type == "dmamba-min" else None,
    )


_ARCHITECTURES = {
    "dema": _Architecture(
        _dema,
        (
            (r"ret_emb\.(.+)", r"embed_return.\1"),
            (r"state_encoder\.(.+)", r"embed_state.\1"),
            (r"action_embeddings\.(.+)", r"embed_action.\1"),
            (r"predict_(state|return)\.(.+)", None),
            *_HEAD_AND_NORM,
            *_MAMBA_BACKBONE,
        ),
    ),
    "dema-post": _Architecture(
        _dema_post,
        (
            (r"transformer\.h\.(\d+)\.attn\.(.+)", r"layers.\1.mixer.\2"),
            (r"transformer\.h\.(\d+)\.ln_1\.(.+)", r"layers.\1.norms.mixer.\2"),
            (r"transformer\.h\.(\d+)\.ln_2\.(.+)", r"layers.\1.norms.mlp.\2"),
            (r"transformer\.h\.(\d+)\.mlp\.c_fc\.(.+)", r"layers.\1.mlp.fc_in.\2"),
            (r"transformer\.h\.(\d+)\.mlp\.c_proj\.(.+)", r"layers.\1.mlp.fc_out.\2"),
            (r"transformer\.ln_f\.(.+)", r"norm_f.\1"),
            (r"transformer\.wte\.weight", None),
            *_HEAD_AND_NORM,
        ),
        transposed=r".*\.mlp\..*\.weight",
    ),
    "dema-atari": _Architecture(_dema_atari, (*_ATARI, *_MAMBA_BACKBONE)),
    "dema-atari-post": _Architecture(
        _dema_atari_post,
        (
            (r"blocks\.(\d+)\.attn\.(.+)", r"layers.\1.mixer.\2"),
            (r"blocks\.(\d+)\.ln1\.(.+)", r"layers.\1.norms.mixer.\2"),
            (r"blocks\.(\d+)\.ln2\.(.+)", r"layers.\1.norms.mlp.\2"),
            (r"blocks\.(\d+)\.mlp\.0\.(.+)", r"layers.\1.mlp.fc_in.\2"),
            (r"blocks\.(\d+)\.mlp\.2\.(.+)", r"layers.\1.mlp.fc_out.\2"),
            (r"ln_f\.(.+)", r"norm_f.\1"),
            (r"tok_emb\.weight", None),
            *_ATARI,
        ),
    ),
    "dmm": _Architecture(
        _dmm,
        (
            (r"model\.global_sequence_mixers\.\d+\.conv1d\.(.+)", None),
            (r"model\.global_sequence_mixers\.(\d+)\.(.+)", r"layers.\1.mixer.\2"),
            (r"model\.local_sequence_mixers\.(\d+)\.lin\.weight", r"layers.\1.local_mixer.proj.weight"),
            (r"unregistered_dsm_lin_weight", r"shared.local_mixer.proj.weight"),
            (r"model\.ln_1\.(.+)", r"shared.norms.local.\1"),
            (r"model\.ln_2\.(.+)", r"shared.norms.mixer.\1"),
            (r"model\.ln_f\.(.+)", r"norm_f.\1"),
            *_HEAD_AND_NORM,
        ),
        prepare=_dmm_prepare,
    ),
    "dmm-gen1": _Architecture(
        _dmm_gen1,
        (
            *_dmm_gen1_mixer("multimodal_token_mixer_1", "local_mixer"),
            *_dmm_gen1_mixer("multimodal_token_mixer_2", "mixer.local_mixer"),
            (r"model\.layers\.(\d+)\.ln_1\.(.+)", r"layers.\1.norms.local.\2"),
            (r"model\.layers\.(\d+)\.ln_2\.(.+)", r"layers.\1.norms.mixer.\2"),
            (r"model\.layers\.(\d+)\.(.+)", r"layers.\1.mixer.\2"),
            (r"model\.ln_f\.(.+)", r"norm_f.\1"),
            *_HEAD_AND_NORM,
        ),
        prepare=_dmm_gen1_prepare,
    ),
    "decision-mamba": _Architecture(
        _decision_mamba,
        (
            (r"transformer\.h\.(\d+)\.mamba\.(.+)", r"layers.\1.mixer.\2"),
            (r"transformer\.h\.(\d+)\.norm_mamba\.(.+)", r"layers.\1.norms.mixer.\2"),
            (r"transformer\.h\.(\d+)\.ln_2\.(.+)", r"layers.\1.norms.mlp.\2"),
            (r"transformer\.h\.(\d+)\.mlp_channels\.0\.(.+)", r"layers.\1.mlp.fc_in.\2"),
            (r"transformer\.h\.(\d+)\.mlp_channels\.2\.(.+)", r"layers.\1.mlp.fc_out.\2"),
            (r"transformer\.ln_f\.(.+)", r"norm_f.\1"),
            *_HEAD_AND_NORM,
        ),
    ),
}
