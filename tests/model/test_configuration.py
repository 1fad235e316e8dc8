"""DecisionMambaConfig: presets, validation, saving."""

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel
from hf_decision_mamba.model import PRESETS
from hf_decision_mamba.model.checkpoint_decision_mamba import MAX_PARAMETERS

WIDEST = {"hidden_size": 2**16, "n_layer": 1}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_models_and_survive_saving(name, tmp_path):
    config = DecisionMambaConfig.from_preset(name, state_dim=11, act_dim=3)
    config.save_pretrained(tmp_path)
    assert DecisionMambaConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert DecisionMambaModel(config).num_parameters() > 0


def test_dema_has_the_papers_size():
    """The authors count 165,007 parameters for hopper; 780 of them are heads that their model never uses."""
    config = DecisionMambaConfig.from_preset("dema-b3ld", state_dim=11, act_dim=3)
    unused_heads = (64 * 11 + 11) + (64 + 1)
    assert DecisionMambaModel(config).num_parameters() == 165_007 - unused_heads


def test_overrides_and_common_names():
    config = DecisionMambaConfig.from_preset("dema-b3ld", state_dim=3, act_dim=1, hidden_size=48, state_size=8)
    assert (config.num_hidden_layers, config.time_step_rank, config.intermediate_size) == (3, 3, 96)
    assert config.ssm_state_size == 8
    assert DecisionMambaConfig(num_hidden_layers=7).n_layer == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"state_dim": 0}, "state_dim=0 must be at least 1"),
        ({"embedding_size": 0}, "embedding_size=0"),
        ({"token_order": ("return", "state")}, "token_order"),
        ({"token_order": ("state", "return", "previous_action")}, "must not see its own action"),
        ({"token_order": ("return", "action", "state")}, "must not see its own action"),
        ({"conditioning": "none", "token_order": ("action", "state")}, "'state' and 'action' with 'action' last"),
        ({"conditioning": "plan"}, "conditioning='plan' is unknown; choose one of"),
        ({"conditioning": "goal"}, "goal_dim=None does not fit conditioning='goal'"),
        ({"goal_dim": 3}, "goal_dim=3 does not fit conditioning='return'"),
        ({"conditioning": "goal", "goal_dim": 0}, "goal_dim=0 must be at least 1"),
        ({"block_type": "gpt"}, "block_type='gpt' is unknown; choose one of"),
        ({"sequence_layout": "concatenated", "token_order": ("return", "state", "action")}, "needs 'previous_action'"),
        ({"local_mixer_inside": True}, "needs a local_mixer"),
        ({"share_local_mixer": True}, "needs a local_mixer"),
        ({"ssm": "mamba2", "block_type": "transformer"}, "is gated"),
        ({"ssm": "mamba2", "use_gate": False}, "use_gate=False needs ssm='mamba'"),
        ({"block_type": "transformer", "use_gate": False}, "use_gate=False needs .* a block_type that has a gate"),
        ({"ssm": "mamba2", "selective": False}, "selective=False needs ssm='mamba'"),
        ({"ssm": "gru", "expand": 1}, "'gru' has no convolution .* it needs conv_kernel=0 and expand=1"),
        ({"ssm": "gru", "conv_kernel": 0}, "it needs conv_kernel=0 and expand=1"),
        ({"ssm": "gru", "conv_kernel": 0, "expand": 1, "selective": False}, "selective=False needs ssm='mamba'"),
        ({"ssm": "mamba2", "head_dim": 7}, "must divide the 256 channels"),
        ({"state_type": "image", "image_size": 20}, "image_size=20"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 10**9}, "hidden_size=1000000000 must be at least 1 and at most 65536"),
        ({"state_dim": -1}, "state_dim=-1 must be at least 1"),
        ({"max_ep_len": 2**31}, "max_ep_len=2147483648"),
        ({"conv_kernel": -1}, "conv_kernel=-1 must be at least 0"),
        ({"hidden_size": 2**16, "n_layer": 2**10}, "about 2.* parameters; at most"),
        ({"max_ep_len": 2**30, "use_timestep_embedding": True}, "about 1.* parameters; at most"),
        ({"state_type": "image", "image_size": 4096, "hidden_size": 2**16}, "parameters; at most"),
        ({"state_dim": 2**20, "embedding_size": 1, **WIDEST, "predict_state_and_return": True}, "parameters; at most"),
        ({"time_step_min": 0.2}, "time_step_min=0.2 must be positive and at most time_step_max"),
        ({"time_step_min": float("nan")}, "time_step_min=nan"),
        ({"time_step_max": float("inf")}, "time_step_max=inf must be finite"),
        ({"time_step_floor": float("-inf")}, "time_step_floor=-inf"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon=0.0 must be positive"),
        ({"initializer_range": float("nan")}, "initializer_range=nan"),
        ({"embd_pdrop": 1.0}, "embd_pdrop=1.0 must be at least 0 and below 1"),
        ({"resid_pdrop": float("nan")}, "resid_pdrop=nan"),
        ({"activation_function": "step"}, "activation_function='step' is unknown; choose one of .*relu"),
        ({"embedding_activation": "step"}, "embedding_activation='step' is unknown"),
        ({"dtype": "int8"}, "dtype=torch.int8 is not floating"),
        ({"format_version": 0}, "format_version=0 must be"),
        ({"format_version": 2}, "upgrade hf_decision_mamba"),
    ],
)
def test_impossible_configs_are_refused(fields, message):
    error = StrictDataclassFieldValidationError if message == "hidden_size" else ValueError
    with pytest.raises(error, match=message):
        DecisionMambaConfig(**fields)
    with pytest.raises(ValueError, match=message):
        DecisionMambaConfig.from_dict(fields)


def test_values_changed_while_loading_are_checked(tmp_path):
    DecisionMambaConfig().save_pretrained(tmp_path)
    for config_class in (AutoConfig, DecisionMambaConfig):
        assert config_class.from_pretrained(tmp_path, hidden_size=32).hidden_size == 32
        with pytest.raises(ValueError, match="hidden_size=1000000000 must be"):
            config_class.from_pretrained(tmp_path, hidden_size=10**9)


@pytest.mark.parametrize("name", PRESETS)
def test_large_models_are_allowed(name):
    config = DecisionMambaConfig.from_preset(name, hidden_size=4096, n_layer=64, embedding_size=4096)
    assert 1e9 < config.estimated_parameters < MAX_PARAMETERS


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_estimated_well(name):
    config = DecisionMambaConfig.from_preset(name, state_dim=11, act_dim=3, hidden_size=256)
    exact = DecisionMambaModel(config).num_parameters()
    assert config.estimated_parameters == pytest.approx(exact, rel=0.2)


def test_unknown_presets_list_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown preset 'dema'; known presets: .*dema-b3ld"):
        DecisionMambaConfig.from_preset("dema")
