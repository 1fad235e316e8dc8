"""Decision Transformer for discrete actions and images: transformers' own network behind other embeddings."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor, DecisionTransformerConfig, DecisionTransformerModel

from hf_decision_mamba import DecisionMambaPolicy, DecisionMambaProcessor
from hf_decision_mamba.baselines.decision_transformer import (
    EncodedDecisionTransformerConfig,
    EncodedDecisionTransformerModel,
)

SIZES = {"hidden_size": 16, "n_layer": 2, "n_head": 2, "max_ep_len": 40, "act_dim": 4}
IMAGES = {"state_type": "image", "num_channels": 2, "image_size": 36}


def make_model(**fields) -> EncodedDecisionTransformerModel:
    torch.manual_seed(0)
    return EncodedDecisionTransformerModel(EncodedDecisionTransformerConfig(**{**SIZES, **fields})).eval()


def steps(batch: int = 2, length: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "states": torch.randn(batch, length, 5, generator=generator),
        "actions": torch.randint(4, (batch, length), generator=generator),
        "returns_to_go": torch.randn(batch, length, 1, generator=generator),
        "timesteps": torch.arange(length).expand(batch, length),
        "attention_mask": torch.ones(batch, length, dtype=torch.int64),
    }


def test_its_logits_are_those_of_transformers_model_over_one_hot_actions():
    model, inputs = make_model(state_dim=5), steps()
    theirs = DecisionTransformerModel(DecisionTransformerConfig(**SIZES, state_dim=5, action_tanh=False)).eval()
    weights = {**model.state_dict(), "embed_action.bias": torch.zeros(16)}
    weights["embed_action.weight"] = weights["embed_action.weight"].T
    theirs.load_state_dict(weights)
    one_hot = torch.nn.functional.one_hot(inputs["actions"], 4).float()
    expected = theirs(**{**inputs, "actions": one_hot}).action_preds
    found = model(**inputs).action_preds
    assert found.shape == (2, 5, 4) and found.abs().max() > 0
    torch.testing.assert_close(found, expected)
    unknown = model(**{**inputs, "actions": torch.full_like(inputs["actions"], -1)}).action_preds
    torch.testing.assert_close(unknown, theirs(**{**inputs, "actions": 0 * one_hot}).action_preds)


def test_a_goal_takes_the_place_of_the_return():
    model, inputs = make_model(state_dim=5, action_type="continuous", conditioning="goal", goal_dim=1), steps()
    inputs["actions"], goals = torch.randn(2, 5, 4), inputs.pop("returns_to_go")
    theirs = DecisionTransformerModel(DecisionTransformerConfig(**SIZES, state_dim=5)).eval()
    names = {name.replace("embed_goal", "embed_return"): x for name, x in model.state_dict().items()}
    theirs.load_state_dict(names)
    found = model(**inputs, goals=goals, output_hidden_states=True, output_attentions=True)
    expected = theirs(**inputs, returns_to_go=goals, output_hidden_states=True, output_attentions=True)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values)
    torch.testing.assert_close(model(**inputs, goals=goals, return_dict=False), expected.to_tuple()[:3])


def test_without_a_condition_a_step_is_a_state_and_an_action():
    """As transformers' network reads it that sees these tokens alone, in the same order."""
    model, inputs = make_model(state_dim=5, conditioning="none"), steps()
    inputs.pop("returns_to_go")
    found = model(**inputs)
    assert found.last_hidden_state.shape == (2, 10, 16) and not hasattr(model, "embed_return")
    time = model.embed_timestep(inputs["timesteps"])
    tokens = torch.zeros(2, 10, 16)
    tokens[:, ::2], tokens[:, 1::2] = (
        model.embed_state(inputs["states"]) + time,
        model.embed_action(inputs["actions"]) + time,
    )
    hidden = model.encoder(inputs_embeds=model.embed_ln(tokens), position_ids=torch.zeros(2, 10, dtype=torch.long))[0]
    torch.testing.assert_close(found.action_preds, model.predict_action(hidden[:, ::2]))
    torch.testing.assert_close(found.state_preds, model.predict_state(hidden[:, 1::2]))
    mask = torch.tensor([[0, 0, 1, 1, 1]] * 2)  # windows that begin in padding
    cut = {name: x[:, 2:] for name, x in inputs.items()}
    padded = model(**{**inputs, "attention_mask": mask}).action_preds[:, 2:]
    torch.testing.assert_close(padded, model(**cut).action_preds)


def test_what_is_missing_is_named():
    inputs = steps()
    for conditioning, asked in (("return", "returns_to_go"), ("goal", "goals")):
        more = {"goal_dim": 2} if asked == "goals" else {}
        model = make_model(state_dim=5, conditioning=conditioning, **more)
        with pytest.raises(ValueError, match=f"states, actions, {asked} and timesteps are required"):
            model(**{**inputs, "returns_to_go": None})


@pytest.mark.parametrize("fields", [{}, {"action_type": "continuous"}], ids=["discrete", "continuous"])
def test_images_are_encoded_as_by_the_models(fields):
    model, inputs = make_model(**IMAGES, **fields), steps()
    inputs["states"] = torch.randint(0, 256, (2, 5, 2, 36, 36), dtype=torch.uint8)
    if fields:
        inputs["actions"] = torch.randn(2, 5, 4)
    theirs = DecisionTransformerModel(DecisionTransformerConfig(**SIZES, action_tanh=bool(fields))).eval()
    theirs.embed_action = model.embed_action
    weights = {name: x for name, x in model.state_dict().items() if not name.startswith("embed_state")}
    theirs.load_state_dict(weights, strict=False)
    theirs.embed_state = torch.nn.Identity()
    expected = theirs(**{**inputs, "states": model.embed_state(inputs["states"])}).action_preds
    torch.testing.assert_close(model(**inputs).action_preds, expected)
    assert (expected.abs().max() < 1) == bool(fields) or not fields


def test_no_decision_sees_its_own_action_or_what_comes_later():
    model, inputs = make_model(state_dim=5), steps()
    expected = model(**inputs).action_preds
    changed = {name: x.clone() for name, x in inputs.items()}
    changed["actions"][:, 2:] = (changed["actions"][:, 2:] + 1) % 4
    changed["states"][:, 3:] += 1
    found = model(**changed).action_preds
    torch.testing.assert_close(found[:, :3], expected[:, :3])
    assert (found[:, 3:] != expected[:, 3:]).any(-1).all()


def test_it_loads_and_the_policy_acts_as_it_decides(tmp_path):
    model = make_model(**IMAGES)
    model.save_pretrained(tmp_path)
    DecisionMambaProcessor(frame_stack=2, target_return=3.0, context_length=2).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is EncodedDecisionTransformerModel
    assert loaded.config.to_diff_dict().items() >= IMAGES.items()
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), DecisionMambaProcessor)
    policy = DecisionMambaPolicy.from_pretrained(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (2, 36, 36), np.uint8)
    first = int(policy.act(frames[0]))
    second = int(policy.act(frames[1], reward=1.0))
    stacks = torch.from_numpy(np.stack([frames[[0, 0]], frames[[0, 1]]]))[None]
    with torch.no_grad():
        logits = model(
            states=stacks,
            actions=torch.tensor([[first, -1]]),
            returns_to_go=torch.tensor([[[3.0], [2.0]]]),
            timesteps=torch.tensor([[0, 1]]),
            attention_mask=torch.ones(1, 2),
        ).action_preds[0]
    assert [first, second] == logits.argmax(-1).tolist()
    with pytest.raises(ValueError, match="EncodedDecisionTransformerModel carries no state between decisions"):
        DecisionMambaPolicy.from_pretrained(tmp_path, mode="recurrent")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_head": 3}, "n_head=3 must divide hidden_size=16"),
        ({"attn_pdrop": 1.0}, "attn_pdrop=1.0 must be at least 0 and below 1"),
        ({**IMAGES, "image_size": 20}, "image_size=20 must be at least 36"),
        ({"action_type": "binary"}, "action_type='binary' is unknown"),
        ({"n_layer": 0}, "n_layer=0 must be at least 1"),
        ({"conditioning": "reward"}, "conditioning='reward' is unknown; choose one of"),
        ({"conditioning": "goal"}, "goal_dim=None does not fit conditioning='goal'"),
    ],
)
def test_configs_of_which_no_model_can_be_built_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EncodedDecisionTransformerConfig(**{**SIZES, **fields})
