"""What a policy is asked for: a return, a goal or nothing, in every preset."""

import pytest
import torch
from factories import drawn_model, drawn_steps

from hf_decision_mamba import DecisionMambaCache, DecisionMambaConfig, DecisionMambaModel
from hf_decision_mamba.model import PRESETS

CONDITIONS = {"goal": {"goal_dim": 3}, "none": {}}
WITHOUT_RETURNS = [(preset, condition) for preset in PRESETS for condition in CONDITIONS]


def make_model(preset: str = "dema-b3ld", condition: str = "none", **fields) -> DecisionMambaModel:
    return drawn_model(preset, conditioning=condition, **CONDITIONS[condition], **fields)


def make_inputs(model: DecisionMambaModel) -> dict[str, torch.Tensor]:
    inputs = drawn_steps(model, rows=2, steps=7)
    inputs.pop("previous_actions")  # which the model finds out
    return inputs


@torch.no_grad()
def actions_of(model: DecisionMambaModel, **inputs) -> torch.Tensor:
    return model(**inputs).action_preds


@pytest.mark.parametrize(("preset", "condition"), WITHOUT_RETURNS)
class TestEveryPreset:
    def test_chunks_with_a_cache_are_one_pass(self, preset, condition):
        model = make_model(preset, condition)
        inputs, cache = make_inputs(model), DecisionMambaCache(model.config, 2, dtype=torch.float64)
        chunks = [{name: x[:, i : i + 3] for name, x in inputs.items()} for i in range(0, 7, 3)]
        stepped = torch.cat([actions_of(model, **chunk, cache_params=cache) for chunk in chunks], 1)
        torch.testing.assert_close(stepped, actions_of(model, **inputs), atol=1e-10, rtol=1e-10)

    def test_padding_changes_no_real_step(self, preset, condition):
        model = make_model(preset, condition)
        inputs = make_inputs(model)
        garbage = {name: torch.cat([torch.full_like(x[:, :2], 1), x], 1) for name, x in inputs.items()}
        mask = torch.tensor([[0, 0, *[1] * 7]] * 2)
        padded = actions_of(model, **garbage, attention_mask=mask)[:, 2:]
        torch.testing.assert_close(padded, actions_of(model, **inputs), atol=1e-10, rtol=1e-10)

    def test_the_checkpoint_is_complete(self, preset, condition, tmp_path):
        model = make_model(preset, condition)
        model.save_pretrained(tmp_path)
        again, inputs = DecisionMambaModel.from_pretrained(tmp_path, dtype=torch.float64).eval(), make_inputs(model)
        torch.testing.assert_close(actions_of(again, **inputs), actions_of(model, **inputs))
        assert again.config.token_order == model.config.token_order

    def test_every_parameter_learns_and_hidden_attention_fits(self, preset, condition):
        model = make_model(preset, condition)
        inputs = make_inputs(model)
        output = model(**inputs, labels=inputs["actions"], output_attentions=preset != "gru")  # which has none
        output.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        tokens = 7 * len(model.config.token_types)
        assert all(layer.shape[-2:] == (tokens, tokens) for layer in output.attentions or ())


def test_the_order_of_the_tokens_follows():
    assert make_model("dema-b3ld").config.token_order == ["previous_action", "state"]
    assert make_model("dmm").config.token_types == ("state", "action")
    assert make_model("dema-atari", "goal").config.token_order == ["previous_action", "goal", "state"]
    assert make_model("dema-bl3d", "goal").config.token_types == ("step",)
    returns = DecisionMambaConfig.from_preset("dema-b3ld").token_order
    assert returns == ["return", "previous_action", "state"]


def test_without_a_condition_returns_are_not_read():
    model = make_model("dmm")
    inputs = make_inputs(model)
    asked = actions_of(model, **inputs, returns_to_go=torch.full((2, 7, 1), 1e9))
    assert torch.equal(asked, actions_of(model, **inputs)) and not hasattr(model, "embed_return")


def test_a_goal_is_read_from_its_step_on():
    model = make_model("dmm", "goal")
    inputs = make_inputs(model)
    before, goals = actions_of(model, **inputs), inputs["goals"].clone()
    goals[:, 4] += 1
    after = actions_of(model, **{**inputs, "goals": goals})
    assert torch.equal(after[:, :4], before[:, :4]) and ((after - before)[:, 4].abs() > 1e-6).all()


@pytest.mark.parametrize(
    ("goals", "message"),
    [(None, "states, goals and one of actions"), (torch.zeros(2, 7, 2), r"goals has shape \(2, 7, 2\); expected")],
)
def test_a_goal_that_is_missing_or_has_another_size(goals, message):
    model = make_model(condition="goal")
    with pytest.raises(ValueError, match=message):
        model(**{**make_inputs(model), "goals": goals})


def test_only_returns_have_a_head_for_the_next_return():
    model = make_model("dmm", "goal", predict_state_and_return=True)
    output = model(**make_inputs(model))
    assert output.state_preds.shape == (2, 7, 5) and output.return_preds is None
