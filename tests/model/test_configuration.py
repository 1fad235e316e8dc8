"""DecisionMambaConfig: presets, validation, saving."""

import pytest

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel
from hf_decision_mamba.model import PRESETS


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
        ({"block_type": "gpt"}, "block_type='gpt' is unknown; choose one of"),
        ({"sequence_layout": "concatenated", "token_order": ("return", "state", "action")}, "needs 'previous_action'"),
        ({"predict_state_and_return": True}, "needs 'action'"),
        ({"local_mixer_inside": True}, "needs a local_mixer"),
        ({"share_local_mixer": True}, "needs a local_mixer"),
        ({"ssm": "mamba2", "block_type": "transformer"}, "is gated"),
        ({"ssm": "mamba2", "head_dim": 7}, "must divide the 256 channels"),
        ({"state_type": "image", "image_size": 20}, "image_size=20"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_impossible_configs_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        DecisionMambaConfig(**fields)


def test_unknown_presets_list_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown preset 'dema'; known presets: .*dema-b3ld"):
        DecisionMambaConfig.from_preset("dema")
