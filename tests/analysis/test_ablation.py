"""Scores without the trained hidden attention: which conditions are played, with which parameters, and what is told."""

import json

import pytest
import torch

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel, DecisionMambaPolicy, DecisionMambaProcessor
from hf_decision_mamba.analysis.ablation import (
    ablate,
    ablated,
    randomize_hidden_attention,
    swap_hidden_attention,
    zero_hidden_attention,
)
from hf_decision_mamba.baselines.mlp import DecisionMLPConfig, DecisionMLPModel
from hf_decision_mamba.evaluation.rollouts import evaluate_policy

HOPPER = {"state_dim": 11, "act_dim": 3, "env_id": "Hopper-v5"}
CHEETAH = {"state_dim": 17, "act_dim": 6, "env_id": "HalfCheetah-v5"}


def make_policy(seed: int = 0, *, state_dim: int, act_dim: int, env_id: str, **sizes) -> DecisionMambaPolicy:
    torch.manual_seed(seed)
    config = DecisionMambaConfig.from_preset(
        "dema-b3ld",
        state_dim=state_dim,
        act_dim=act_dim,
        **{"hidden_size": 8, "embedding_size": 8, "state_size": 2, "n_layer": 2, **sizes},
    )
    processor = DecisionMambaProcessor(
        state_mean=[0.0] * state_dim,
        state_std=[1.0] * state_dim,
        target_return=900.0,
        context_length=4,
        env_id=env_id,
    )
    return DecisionMambaPolicy(DecisionMambaModel(config), processor)


@pytest.fixture(scope="module")
def two():
    """Two hoppers and the cheetahs whose parameters they get."""
    hoppers, cheetahs = ([make_policy(seed, **kind) for seed in (0, 1)] for kind in (HOPPER, CHEETAH))
    return ablate(hoppers, cheetahs, episodes=2, max_episode_steps=9, seed=3, progress=False), hoppers, cheetahs


def test_every_layer_and_all_layers_are_changed_in_every_way(two) -> None:
    found, _, _ = two
    assert [condition.name for condition in found.conditions] == [
        "intact",
        *(f"{how}, {where}" for how in ("swapped", "random", "zero") for where in ("layer 1", "layer 2", "all layers")),
    ]
    assert found.env_id == "Hopper-v5" and found.protocol["target_returns"] == [900.0, 900.0]


@pytest.mark.parametrize("index", [0, 1])
def test_scores_are_those_of_the_changed_models(two, index) -> None:
    found, hoppers, cheetahs = two
    model, other = hoppers[index].model, cheetahs[index].model
    models = {
        "intact": model,
        "swapped, layer 2": swap_hidden_attention(model, other, 1),
        "random, all layers": randomize_hidden_attention(model, seed=3 + index),
        "zero, layer 1": zero_hidden_attention(model, 0),
    }
    results = {condition.name: condition.results[index] for condition in found.conditions}
    for name, changed in models.items():
        policy = DecisionMambaPolicy(changed, hoppers[index].processor)
        expected = evaluate_policy(policy, episodes=2, max_episode_steps=9, seed=3, progress=False)
        assert results[name].episodes == expected.episodes, name


def test_the_environment_is_made_with_the_arguments_of_the_first_policy_or_those_given() -> None:
    policy = make_policy(**HOPPER)
    policy.processor.env_kwargs = {"reset_noise_scale": 0.0}
    options = {"changes": ["zero"], "episodes": 2, "max_episode_steps": 3, "progress": False}
    still, moved = (ablate([policy], env_kwargs=given, **options) for given in (None, {"reset_noise_scale": 0.1}))
    assert still.protocol["env_kwargs"] == {"reset_noise_scale": 0.0}
    assert moved.protocol["env_kwargs"] == {"reset_noise_scale": 0.1}
    returns = [[row["return"] for row in found.conditions[0].results[0].episodes] for found in (still, moved)]
    assert returns[0][0] == returns[0][1] and returns[1][0] != returns[1][1]


def test_intervals_are_over_checkpoints_or_over_the_episodes_of_one(two) -> None:
    found, hoppers, _ = two
    first, second = found.rows()[0]["checkpoints"]
    half = 12.706 * abs(first - second) / 2
    assert found.rows()[0]["mean"] == pytest.approx((first + second) / 2)
    assert found.rows()[0]["ci95"] == pytest.approx(
        [(first + second) / 2 - half, (first + second) / 2 + half], rel=0.01
    )
    alone = ablate(hoppers[:1], episodes=2, max_episode_steps=9, seed=3, progress=False)
    assert [condition.change for condition in alone.conditions] == [None, *["randomize"] * 3, *["zero"] * 3]
    assert alone.rows()[0]["ci95"] == found.conditions[0].results[0].summary()[0]["normalized_score_ci95"]


def test_table_numbers_and_picture_say_the_same(two, drawn, tmp_path) -> None:
    found, _, _ = two
    paths = found.save(tmp_path / "new")
    report = json.loads(paths[0].read_text())
    assert (report["quantity"], report["interval"], report["seed"]) == ("normalized_score", "t over checkpoints", 3)
    lines = found.table().splitlines()
    assert lines[0] == "Hopper-v5: 2 episodes of each of 2 checkpoints"
    for line, row in zip(lines[4:], report["conditions"], strict=True):
        assert line.startswith(row["condition"]) and f"{row['mean']:.1f}" in line
    assert paths[1].name == "ablation.png" and paths[1].is_file()
    (axes,) = drawn["ablation.png"].axes
    rows = report["conditions"]
    assert [text.get_text() for text in axes.get_yticklabels()] == [row["condition"] for row in rows]
    assert [bar.get_width() for bar in axes.patches] == [row["mean"] for row in rows]
    lines = {(*map(float, line.get_xdata()), float(line.get_ydata()[0])) for line in axes.lines}
    assert lines >= {(*row["ci95"], place) for place, row in enumerate(rows)}
    assert lines >= {(*row["checkpoints"], place) for place, row in enumerate(rows)}


def test_a_changed_policy_acts_as_the_original_does() -> None:
    policy = make_policy(**HOPPER)
    recurrent = DecisionMambaPolicy(policy.model, policy.processor, "recurrent")
    window = DecisionMambaPolicy(policy.model, policy.processor, context_length=2)
    assert ablated(recurrent, "zero").mode == "recurrent"
    assert ablated(window, "zero").context_length == 2


def no_mixers() -> DecisionMambaPolicy:
    model = DecisionMLPModel(DecisionMLPConfig(state_dim=11, act_dim=3, hidden_size=8, n_layer=1))
    return DecisionMambaPolicy(model, make_policy(**HOPPER).processor)


@pytest.mark.parametrize(
    ("others", "options", "message"),
    [
        ([], {"changes": ["swap"]}, "takes another policy's parameters; say whose with `other`"),
        ([{}, {}], {}, "others: there are 2 for 1; give one for all or one for each"),
        ([{"n_layer": 1}], {}, "the other model has no layer 1"),
        ([{"state_size": 3}], {}, r"layer 0 cannot be swapped: the model has A_log \(16, 2\)"),
        ([], {"changes": ["shuffle"]}, "change='shuffle' is unknown; choose one of swap, randomize, zero"),
    ],
)
def test_what_cannot_be_changed_is_refused_before_anything_is_played(others, options, message, monkeypatch) -> None:
    monkeypatch.setattr(
        "hf_decision_mamba.analysis.ablation.evaluate_policy", lambda *args, **kwargs: pytest.fail("played")
    )
    with pytest.raises(ValueError, match=message):
        ablate([make_policy(**HOPPER)], [make_policy(**CHEETAH, **sizes) for sizes in others], **options)


def test_models_without_hidden_attention_are_refused() -> None:
    with pytest.raises(ValueError, match="DecisionMLPModel has no Mamba mixers, so no hidden attention"):
        ablate([no_mixers()], progress=False)
    with pytest.raises(ValueError, match="give one or more"):
        ablate([])
