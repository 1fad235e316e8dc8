"""The MLP baselines: one step in, one action out, and at home in the Auto classes and the policy."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, Trainer, TrainingArguments

from hf_decision_mamba import DecisionMambaPolicy, DecisionMambaProcessor
from hf_decision_mamba.baselines.mlp import DecisionMLPConfig, DecisionMLPModel


@pytest.fixture(scope="module")
def model() -> DecisionMLPModel:
    torch.manual_seed(0)
    return DecisionMLPModel(DecisionMLPConfig(state_dim=5, act_dim=3)).eval()


def windows(batch: int = 2, steps: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "states": torch.randn(batch, steps, 5, generator=generator),
        "actions": torch.randn(batch, steps, 3, generator=generator),
        "rewards": torch.randn(batch, steps, 1, generator=generator),
        "returns_to_go": torch.randn(batch, steps, 1, generator=generator),
        "timesteps": torch.arange(steps).expand(batch, steps),
        "attention_mask": torch.ones(batch, steps, dtype=torch.int64),
    }


def test_it_is_two_hidden_layers_of_256_and_a_tanh(model):
    assert model.num_parameters() == (6 * 256 + 256) + (256 * 256 + 256) + (256 * 3 + 3)
    inputs = windows()
    features = torch.cat([inputs["states"], inputs["returns_to_go"]], dim=-1)
    for layer in model.layers:
        features = (features @ layer.weight.T + layer.bias).clamp(min=0)
    expected = torch.tanh(features @ model.predict_action.weight.T + model.predict_action.bias)
    torch.testing.assert_close(model(**inputs).action_preds, expected)
    state_preds, action_preds, return_preds = model(**inputs, return_dict=False)
    torch.testing.assert_close(action_preds, expected)
    torch.testing.assert_close(model(**inputs)[1], expected)
    assert state_preds is return_preds is None
    first = {name: inputs[name][:, :1] for name in ("states", "returns_to_go")}
    first["returns_to_go"] = first["returns_to_go"][..., 0]  # as the example of DecisionTransformer's documentation
    torch.testing.assert_close(model(**first)[1], expected[:, :1])
    assert not torch.equal(model.train()(**inputs).action_preds, expected)  # dropout
    model.eval()


def test_an_action_depends_on_its_own_state_and_return_and_on_nothing_else(model):
    inputs = windows()
    expected = model(**inputs).action_preds
    for name in inputs:
        changed = {**inputs, name: inputs[name].clone()}
        changed[name][:, 1] += 1
        differs = (model(**changed).action_preds != expected).any(-1)
        seen = name in ("states", "returns_to_go")
        assert differs.tolist() == [[False, seen, False, False]] * 2, name


def test_every_parameter_is_initialised_as_torch_does_and_learns(model):
    fresh = DecisionMLPModel(model.config)
    for layer in (*fresh.layers, fresh.predict_action):
        bound = layer.in_features**-0.5
        assert 0.8 * bound < layer.weight.abs().max() <= bound
        assert 0 < layer.bias.abs().max() <= bound
    fresh(**windows()).action_preds.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in fresh.parameters())


def test_the_auto_classes_and_the_policy_load_it(model, tmp_path):
    processor = DecisionMambaProcessor(
        state_mean=[1.0] * 5, state_std=[2.0] * 5, return_scale=10.0, target_return=30.0, context_length=1
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), DecisionMLPConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), DecisionMLPModel)
    assert AutoProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()

    policy = DecisionMambaPolicy.from_pretrained(tmp_path)
    policy.reset(num_envs=2)
    observations = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)
    for step, (observation, earned) in enumerate(zip(observations, (0.0, 4.0, 9.0), strict=True)):
        actions = policy.act(observation, reward=[0.0, 4.0, 5.0][step])
        states = torch.from_numpy(observation - 1)[:, None] / 2
        returns = torch.full((2, 1, 1), (30.0 - earned) / 10.0)
        with torch.no_grad():
            expected = model(states=states, returns_to_go=returns).action_preds[:, 0]
        torch.testing.assert_close(torch.from_numpy(actions), expected)
    with pytest.raises(ValueError, match="DecisionMLPModel carries no state between decisions; use mode='window'"):
        DecisionMambaPolicy.from_pretrained(tmp_path, mode="recurrent")


def test_without_conditioning_an_action_depends_on_its_state_alone():
    torch.manual_seed(0)
    cloned = DecisionMLPModel(DecisionMLPConfig(conditioning="none", state_dim=5, act_dim=3)).eval()
    assert cloned.num_parameters() == (5 * 256 + 256) + (256 * 256 + 256) + (256 * 3 + 3)
    inputs = windows()
    expected = cloned(**inputs).action_preds
    torch.testing.assert_close(cloned(states=inputs["states"]).action_preds, expected, rtol=0, atol=0)
    inputs["states"][:, 1] += 1
    assert (cloned(**inputs).action_preds != expected).any(-1).tolist() == [[False, True, False, False]] * 2
    with pytest.raises(ValueError, match=r"^states are required"):
        cloned(returns_to_go=inputs["returns_to_go"])


def test_of_a_goal_an_action_depends_on_its_state_and_goal_alone(tmp_path):
    torch.manual_seed(0)
    model = DecisionMLPModel(DecisionMLPConfig(conditioning="goal", goal_dim=2, state_dim=5, act_dim=3)).eval()
    inputs = {**windows(), "goals": torch.randn(2, 4, 2)}
    features = torch.cat([inputs["states"], inputs["goals"]], dim=-1)
    for layer in model.layers:
        features = torch.relu(layer(features))
    expected = torch.tanh(model.predict_action(features))
    torch.testing.assert_close(model(**inputs).action_preds, expected)
    for name in inputs:
        changed = {**inputs, name: inputs[name].clone()}
        changed[name][:, 1] += 1
        differs = (model(**changed).action_preds != expected).any(-1)
        assert differs.tolist() == [[False, name in ("states", "goals"), False, False]] * 2, name
    with pytest.raises(ValueError, match=r"^states and goals are required"):
        model(states=inputs["states"], returns_to_go=inputs["returns_to_go"])

    model.save_pretrained(tmp_path)
    numbers = {"state_mean": [0.0] * 5, "state_std": [1.0] * 5, "goal_mean": [1.0] * 2, "goal_std": [2.0] * 2}
    DecisionMambaProcessor(**numbers, context_length=1).save_pretrained(tmp_path)
    policy = DecisionMambaPolicy.from_pretrained(tmp_path)
    policy.reset(goal=[3.0, -1.0])
    state, goal = torch.ones(1, 1, 5), torch.tensor([[[1.0, -1.0]]])
    with torch.no_grad():
        action = model(states=state, goals=goal).action_preds[0, 0]
    torch.testing.assert_close(torch.from_numpy(policy.act(state[0, 0].numpy())), action)


@pytest.mark.parametrize("conditioning", ["return", "none"])
def test_images_and_discrete_actions(conditioning, tmp_path):
    task = {"state_type": "image", "action_type": "discrete", "num_channels": 2, "image_size": 36, "act_dim": 6}
    torch.manual_seed(0)
    model = DecisionMLPModel(DecisionMLPConfig(conditioning=conditioning, hidden_size=16, **task)).eval()
    frames = torch.randint(0, 256, (2, 3, 2, 36, 36), dtype=torch.uint8)
    returns = torch.randn(2, 3, 1)
    logits = model(states=frames, returns_to_go=returns).action_preds
    assert logits.shape == (2, 3, 6)
    torch.testing.assert_close(model(states=frames / 255, returns_to_go=returns).action_preds, logits)
    features = torch.relu(model.embed_state(frames))
    features = torch.cat([features, returns], dim=-1) if conditioning == "return" else features
    for layer in model.layers:
        features = torch.relu(layer(features))
    torch.testing.assert_close(model.predict_action(features), logits)  # no tanh

    model.save_pretrained(tmp_path)
    DecisionMambaProcessor(frame_stack=2, target_return=1.0, context_length=1).save_pretrained(tmp_path)
    policy = DecisionMambaPolicy.from_pretrained(tmp_path)
    frame = frames[:, 0, 0].numpy()
    with torch.no_grad():
        stack, asked = frames[:, :1, :1].expand(-1, -1, 2, -1, -1), torch.ones(2, 1, 1)
        expected = model(states=stack, returns_to_go=asked).action_preds[:, 0].argmax(-1)
    assert policy.act(frame).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conditioning": "reward"}, "conditioning='reward' is unknown; choose one of"),
        ({"conditioning": "goal"}, "goal_dim=None does not fit conditioning='goal'"),
        ({"goal_dim": 2}, "goal_dim=2 does not fit conditioning='return'"),
        ({"state_type": "sound"}, "state_type='sound' is unknown; choose one of"),
        ({"action_type": "mixed"}, "action_type='mixed' is unknown; choose one of"),
        ({"state_type": "image", "image_size": 35}, "image_size=35 must be at least 36"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_fields_that_cannot_be_right_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DecisionMLPConfig(**fields)


@pytest.mark.parametrize("name", ["state_dim", "act_dim", "hidden_size", "n_layer"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        DecisionMLPConfig(**{name: 0})


def test_a_plain_trainer_predicts_actions_alone(model, tmp_path):
    inputs = windows()
    rows = [{name: x[row] for name, x in inputs.items()} for row in range(2)]
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    predicted = Trainer(model, arguments).predict(rows).predictions
    np.testing.assert_array_equal(predicted, model(**inputs).action_preds.detach().numpy())


def test_missing_inputs_are_named(model):
    with pytest.raises(ValueError, match="states and returns_to_go are required"):
        model(states=torch.zeros(1, 1, 5))
