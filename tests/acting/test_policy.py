"""Acting: what the model sees at every decision, rows that are independent episodes, and refusals."""

import copy
import json
import pickle
import re
import threading
from multiprocessing.reduction import ForkingPickler

import gymnasium
import numpy as np
import pytest
import torch
from factories import make_model
from gymnasium.vector import AutoresetMode
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from hf_decision_mamba import DecisionMambaModel, DecisionMambaProcessor
from hf_decision_mamba.acting.history import CompiledHistory, WindowHistory
from hf_decision_mamba.acting.policy import DecisionMambaPolicy
from hf_decision_mamba.data import Trajectories, WindowDataset
from hf_decision_mamba.model import PRESETS

S, A, K = 4, 2, 5
CONTINUOUS = [name for name in PRESETS if "atari" not in name]
ATARI = [name for name in PRESETS if "atari" in name]
SIDE, FRAMES, ACTIONS = 36, 3, 4  # the smallest frames that the encoder reads
MEAN, STD, SCALE = np.float32([0.5, -1, 0, 2]), np.float32([1, 2, 0.5, 1]), 10.0
LOW, HIGH = np.float32([-0.3, -1]), np.float32([0.3, 1])  # narrow enough that clipping matters


@pytest.fixture(autouse=True, params=["one compiled call", "torch"])
def acting(request, monkeypatch):
    """Every test is run with both: how a policy acts must not depend on what computes it."""
    if request.param == "torch":
        monkeypatch.setattr("hf_decision_mamba.acting.policy.fuse", lambda model: None)
    return request.param


def make_player(preset: str = "dema-atari", **overrides) -> DecisionMambaModel:
    """A tiny model of images and discrete actions, likewise."""
    sizes = {"embedding_size": 16, "n_layer": 1, "act_dim": ACTIONS, "image_size": SIDE, "num_channels": FRAMES}
    model = make_model(preset, **{**sizes, **overrides})
    with torch.no_grad():
        for parameter in model.embed_state.parameters():
            parameter *= 3
    return model


def make_transformer(max_ep_len: int = 50) -> DecisionTransformerModel:
    torch.manual_seed(0)
    config = DecisionTransformerConfig(
        state_dim=S, act_dim=A, hidden_size=16, n_layer=2, n_head=1, max_ep_len=max_ep_len
    )
    model = DecisionTransformerModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.dim() == 2:
                parameter *= 8
    return model


def make_processor(**overrides) -> DecisionMambaProcessor:
    settings = {"state_mean": MEAN, "state_std": STD, "return_scale": SCALE, "target_return": 30.0}
    bounds = {"context_length": K, "action_low": LOW, "action_high": HIGH}
    return DecisionMambaProcessor(**{**settings, **bounds, **overrides})


def make_player_policy(mode="window", model=None, **overrides) -> DecisionMambaPolicy:
    settings = {"frame_stack": FRAMES, "target_return": 30.0, "context_length": K, "return_scale": SCALE}
    return DecisionMambaPolicy(model or make_player(), DecisionMambaProcessor(**settings), mode, **overrides)


def make_policy(mode="window", model=None, **overrides) -> DecisionMambaPolicy:
    return DecisionMambaPolicy(model or make_model(), make_processor(**overrides), mode)


def episode(steps: int, seed: int = 0, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Observations (steps, [rows,] S) and the rewards (steps, [rows]) that each action earns."""
    generator, shape = np.random.default_rng(seed), (steps,) if rows is None else (steps, rows)
    return generator.normal(size=(*shape, S)), generator.normal(size=shape)


def play(policy: DecisionMambaPolicy, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """The actions of an episode: every decision but the first is told what the action before it earned."""
    actions = [policy.act(observations[0])]
    for observation, reward in zip(observations[1:], rewards[:-1], strict=True):
        actions.append(policy.act(observation, reward))
    return np.stack(actions)


def by_hand(model, observations, rewards, actions, t, context_length=K, target=30.0) -> np.ndarray:
    """The action at step t from one plain forward pass over the window that ends there, with nothing padded."""
    start = max(0, t + 1 - context_length)
    to_go = target - np.concatenate([[0], np.cumsum(rewards)])
    previous = np.concatenate([np.zeros((1, A)), actions])

    def tensor(x) -> torch.Tensor:
        return torch.tensor(np.asarray(x, dtype=np.float32)).to(model.dtype)[None, start : t + 1]

    inputs = {"states": tensor((observations - MEAN) / STD), "returns_to_go": tensor(to_go[:, None] / SCALE)}
    if isinstance(model, DecisionMambaModel):
        inputs["previous_actions"] = tensor(previous)
    inputs["actions"] = tensor(np.concatenate([actions[:t], np.zeros((1, A))]))
    inputs["timesteps"] = torch.arange(start, t + 1)[None]
    with torch.no_grad():
        return np.clip(model(**inputs).action_preds[0, -1].numpy(), LOW, HIGH)


@pytest.mark.parametrize(
    "model",
    [
        *map(make_model, CONTINUOUS),
        make_model(use_timestep_embedding=True),
        make_model("dmm-conv", conditioning="none"),
        make_transformer(),
    ],
    ids=[*CONTINUOUS, "dema-timesteps", "imitation", "decision-transformer"],
)
def test_a_window_is_one_forward_pass_over_the_last_steps(model):
    model = copy.deepcopy(model).double()
    observations, rewards = episode(4 * K)  # long enough to wind the tape back twice
    actions = play(DecisionMambaPolicy(model, make_processor()), observations, rewards)
    assert actions.dtype == np.float32 and actions.shape == (4 * K, A)
    assert (np.abs(actions[:, 0]) == HIGH[0]).any()  # some were clipped, and the model must see them clipped
    for t in range(4 * K):
        np.testing.assert_allclose(actions[t], by_hand(model, observations, rewards, actions, t), atol=1e-6)


@pytest.mark.parametrize("mode", ["window", "recurrent"])
def test_the_model_sees_the_actions_that_were_really_taken(mode):
    model, steps = make_model().double(), 2 * K
    observations, rewards = episode(steps)
    policy = DecisionMambaPolicy(model, make_processor(context_length=steps), mode)  # which sees the whole episode
    taken = np.random.default_rng(1).uniform(-1, 1, (steps, A)).astype(np.float32)
    for t in range(steps):
        proposed = policy.act(observations[t], rewards[t - 1] if t else None)
        expected = by_hand(model, observations, rewards, taken, t, context_length=steps)
        np.testing.assert_allclose(proposed, expected, atol=1e-6)
        policy.override_actions(taken[None, t])


@pytest.mark.parametrize("mode", ["window", "recurrent"])
def test_the_model_sees_and_predicts_actions_in_its_own_units(mode):
    mid, scale = np.float32([10, -200]), np.float32([2, 50])
    plain, in_degrees = (
        make_policy(mode),
        make_policy(
            mode, action_low=LOW * scale + mid, action_high=HIGH * scale + mid, action_mid=mid, action_scale=scale
        ),
    )
    observations, rewards = episode(2 * K)
    expected = play(plain, observations, rewards)
    assert (np.abs(expected[:, 0]) == HIGH[0]).any()  # some are clipped
    np.testing.assert_allclose(play(in_degrees, observations, rewards), expected * scale + mid, rtol=1e-5)
    plain.override_actions(LOW[None])
    in_degrees.override_actions((LOW * scale + mid)[None])
    expected = plain.act(observations[0])
    np.testing.assert_allclose(in_degrees.act(observations[0]), expected * scale + mid, rtol=1e-5)


def test_actions_that_were_taken_are_one_for_each_row():
    policy = make_policy()
    with pytest.raises(ValueError, match="override_actions: the number of rows is not known yet"):
        policy.override_actions(np.zeros((1, A)))
    policy.reset(num_envs=3)
    with pytest.raises(ValueError, match="override_actions: no action has been chosen since the reset; call act first"):
        policy.override_actions(np.zeros((3, A)))
    policy.act(np.zeros((3, S)))
    with pytest.raises(ValueError, match=r"actions have shape \(2, 2\); give \(3, 2\), one per row"):
        policy.override_actions(np.zeros((2, A)))


@pytest.mark.parametrize("mode", ["window", "recurrent"])
def test_what_was_taken_before_a_reset_of_its_row_is_no_action_of_the_new_episode(mode):
    observations, rewards = episode(6, rows=2)
    taken = np.full((2, A), 0.2, np.float32)
    late, early = make_policy(mode), make_policy(mode)
    for policy in (late, early):
        policy.reset(num_envs=2)
        policy.act(observations[0])
    early.override_actions(taken)
    early.reset_rows([1])
    late.reset_rows([1])
    late.override_actions([[0.2, 0.2], [np.nan, 0]])
    for t in range(1, 6):
        expected = early.act(observations[t], rewards[t])
        np.testing.assert_array_equal(late.act(observations[t], rewards[t]), expected)


def test_a_decision_transformer_sees_zeros_for_the_action_it_is_asked_for():
    model, seen = make_transformer(), []
    model.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs["actions"].clone()), with_kwargs=True
    )
    observations, rewards = episode(3 * K)
    actions = play(make_policy(model=model), observations, rewards)
    for t, given in enumerate(seen):
        expected = np.concatenate([actions[max(0, t + 1 - K) : t], np.zeros((1, A))])
        np.testing.assert_array_equal(given[0].numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("context_length", [1, 2, 7])
def test_the_context_length_can_be_chosen(context_length):
    model, (observations, rewards) = make_model(), episode(10)
    policy = DecisionMambaPolicy(model, make_processor(), context_length=context_length)
    actions = play(policy, observations, rewards)
    expected = by_hand(model, observations, rewards, actions, 9, context_length)
    np.testing.assert_allclose(actions[9], expected, atol=1e-6)


@pytest.mark.parametrize("preset", CONTINUOUS)
def test_recurrent_acts_as_a_window_that_holds_the_whole_history(preset):
    model, (observations, rewards) = make_model(preset), episode(3 * K)
    recurrent = play(make_policy("recurrent", model), observations, rewards)
    window = play(make_policy("window", model, context_length=3 * K), observations, rewards)
    np.testing.assert_allclose(recurrent, window, atol=1e-5)
    short = play(make_policy("window", model), observations, rewards)
    assert np.abs(recurrent[K:] - short[K:]).max() > 1e-4  # beyond the window, the history still matters


KINDS = pytest.mark.parametrize(
    ("mode", "model"),
    [
        ("window", make_model()),
        ("recurrent", make_model()),
        ("recurrent", make_model(use_timestep_embedding=True)),
        ("window", make_model("dmm")),
        ("recurrent", make_model("dmm")),
        ("window", make_transformer()),
    ],
    ids=["window", "recurrent", "recurrent-timesteps", "window-dmm", "recurrent-dmm", "decision-transformer"],
)


@KINDS
def test_rows_act_as_if_alone(mode, model):
    observations, rewards = episode(12, rows=3)
    policy = make_policy(mode, model)
    policy.reset(target_return=[10.0, 30.0, 50.0])
    together = play(policy, observations, rewards)
    for row, target in enumerate([10.0, 30.0, 50.0]):
        policy.reset(target)
        alone = play(policy, observations[:, row], rewards[:, row])
        np.testing.assert_allclose(together[:, row], alone, atol=1e-6)


@KINDS
@pytest.mark.parametrize("cut", [2, K + 3, 2 * K + 1])
def test_reset_rows_starts_new_episodes_in_some_rows_only(mode, model, cut):
    observations, rewards = episode(3 * K + 2, rows=3)
    policy, single = make_policy(mode, model), make_policy(mode, model)
    for one in (policy, single):
        one.model.double()  # what float32 rounds differently in batches of one and three comes back as previous action
    alone = {}
    for row, target, start in ((0, 7.0, cut), (1, None, 0), (2, 9.0, cut)):
        single.reset(target)
        alone[row] = start, play(single, observations[start:, row], rewards[start:, row])
    for rows in ([0, 2], np.array([True, False, True])):
        policy.reset(num_envs=3)
        before = [policy.act(observations[0])]
        before += [policy.act(observations[t], rewards[t - 1]) for t in range(1, cut)]
        policy.reset_rows(rows, target_return=[7.0, 9.0])
        after = [policy.act(observations[t], rewards[t - 1]) for t in range(cut, len(observations))]
        actions = np.stack(before + after)
        for row, (start, expected) in alone.items():
            np.testing.assert_allclose(actions[start:, row], expected, atol=1e-6)


def test_returns_to_go_are_what_is_left_to_earn():
    policy, (observations, _) = make_policy(), episode(5, rows=2)
    policy.reset(target_return=[30.0, 100.0])
    policy.act(observations[0], reward=[5.0, 5.0])  # nothing has been done yet that could earn it
    np.testing.assert_array_equal(policy.returns_to_go, [30, 100])
    policy.act(observations[1], reward=[1.0, -2.0])
    np.testing.assert_array_equal(policy.returns_to_go, [29, 102])
    policy.act(observations[2])  # no reward is known
    np.testing.assert_array_equal(policy.returns_to_go, [29, 102])
    policy.reset_rows([1])
    policy.act(observations[3], reward=[4.0, np.nan])  # the reset row's reward belongs to the episode before
    np.testing.assert_array_equal(policy.returns_to_go, [25, 100])
    policy.reset_rows([0], target_return=8.0)
    np.testing.assert_array_equal(policy.returns_to_go, [8, 100])
    policy.act(observations[4], reward=3.0)
    np.testing.assert_array_equal(policy.returns_to_go, [8, 97])


@pytest.mark.parametrize("mode", ["window", "recurrent"])
class TestImitation:
    """A model without a condition is asked for nothing."""

    def test_no_target_is_needed_and_none_is_read(self, mode):
        model, (observations, rewards) = make_model(conditioning="none").double(), episode(2 * K, rows=2)
        policy = make_policy(mode, model, target_return=None, context_length=2 * K)
        assert policy.condition_input is None
        policy.reset()
        expected = np.stack([policy.act(observation) for observation in observations])
        policy.reset(1e30, num_envs=2)
        np.testing.assert_array_equal(play(policy, observations, rewards), expected)


@pytest.mark.parametrize("preset", ["dema-b3ld", "dmm", "gru"])
def test_imitation_in_a_window_and_with_recurrent_states_agree(preset):
    model, (observations, rewards) = make_model(preset, conditioning="none").double(), episode(2 * K)
    window, recurrent = (make_policy(mode, model, context_length=2 * K) for mode in ("window", "recurrent"))
    actions = play(window, observations, rewards)
    assert len(np.unique(actions[:, 1])) > K
    np.testing.assert_allclose(play(recurrent, observations, rewards), actions, atol=1e-6)


GOAL_MEAN, GOAL_STD = np.float32([1, -2]), np.float32([2, 0.5])


def make_goal_policy(mode="window", preset="dema-b3ld", **overrides) -> DecisionMambaPolicy:
    model = make_model(preset, conditioning="goal", goal_dim=2)
    settings = {"goal_mean": GOAL_MEAN, "goal_std": GOAL_STD, "target_return": None}
    return make_policy(mode, model, **{**settings, **overrides})


def as_gymnasium_gives_it(observation: np.ndarray, goal: np.ndarray) -> dict[str, np.ndarray]:
    return {"achieved_goal": 9 * goal, "desired_goal": goal, "observation": observation}


@pytest.mark.parametrize("preset", ["dema-b3ld", "dema-bl3d", "dmm", "gru"])
def test_a_goal_is_normalised_and_read_at_every_step(preset):
    policy, (observations, _) = make_goal_policy(preset=preset), episode(3 * K)
    policy.model.double()
    goal, actions = np.array([3.0, -1.0]), []
    policy.reset(goal=goal)
    for t, observation in enumerate(observations):
        actions.append(policy.act(observation))
        start = max(0, t + 1 - K)
        seen = {
            "states": (observations - MEAN) / STD,
            "previous_actions": np.concatenate([np.zeros((1, A)), actions])[:-1],
            "goals": np.tile((goal - GOAL_MEAN) / GOAL_STD, (3 * K, 1)),
            "actions": np.concatenate([np.reshape(actions[:t], (t, A)), np.zeros((1, A))]),
        }
        window = {name: torch.tensor(values[start : t + 1])[None].double() for name, values in seen.items()}
        window["timesteps"] = torch.arange(start, t + 1)[None]
        with torch.no_grad():
            expected = np.clip(policy.model(**window).action_preds[0, -1].numpy(), LOW, HIGH)
        np.testing.assert_allclose(actions[-1], expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["window", "recurrent"])
@pytest.mark.parametrize("parts", [None, [{"path": ["observation"], "shape": [S], "size": S}]])
def test_goals_are_those_of_the_observations_or_of_the_reset(mode, parts):
    """Every row has its own, which may move; one that a reset names comes before those that observations say."""
    rows, (observations, _) = 3, episode(2 * K, rows=3)
    goals = np.random.default_rng(1).normal(size=(rows, 2))
    told, seen = (make_goal_policy(mode, observation_parts=parts) for _ in range(2))
    told.reset(goal=goals)
    seen.reset()
    moved = goals.copy()
    for t, observation in enumerate(observations):
        if t == K:  # one row begins anew, with another goal
            moved[1] += 1
            told.reset_rows([1], goal=moved[1])
            seen.reset_rows([1])
        elsewhere = as_gymnasium_gives_it(observation, goals + 7)
        actions = told.act(elsewhere if t % 2 else observation)
        np.testing.assert_array_equal(seen.act(as_gymnasium_gives_it(observation, moved)), actions)
    assert len(np.unique(actions[:, 1])) == rows
    other = make_goal_policy(mode)
    other.reset(goal=goals[::-1], num_envs=rows)
    assert not np.allclose(other.act(observations[0]), make_started(mode, goals).act(observations[0]))


def make_started(mode, goals) -> DecisionMambaPolicy:
    policy = make_goal_policy(mode)
    policy.reset(goal=goals)
    return policy


@pytest.mark.parametrize("mode", ["window", "recurrent"])
@pytest.mark.parametrize("duplicate", [copy.copy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_copies_of_a_policy_keep_its_goals(mode, duplicate):
    observations, policy = episode(4, rows=2)[0], make_started(mode, np.array([[0.0, 1], [2, 3]]))
    policy.act(observations[0])
    other = duplicate(policy)
    other.reset_rows([0], goal=[5, 5])
    alone = make_started(mode, np.array([[0.0, 1], [2, 3]]))
    alone.act(observations[0])
    assert not np.array_equal(other.act(observations[1])[0], policy.act(observations[1])[0])
    alone.act(observations[1])
    np.testing.assert_array_equal(alone.act(observations[2]), policy.act(observations[2]))


def test_the_last_observation_of_an_episode_counts_for_nothing():
    observations, goals = episode(4, rows=2)[0], np.array([[0.0, 1], [2, 3]])
    policy, later = make_goal_policy(), make_goal_policy()
    policy.act(as_gymnasium_gives_it(observations[0], goals))
    policy.reset_rows([True, True], autoreset_mode=AutoresetMode.NEXT_STEP)
    policy.act(as_gymnasium_gives_it(observations[1], goals * np.nan))
    given = as_gymnasium_gives_it(observations[2], goals)
    np.testing.assert_allclose(policy.act(given), later.act(given), atol=1e-6)


@pytest.mark.parametrize(
    ("reset", "observation", "message"),
    [
        ({}, np.zeros(S), r"row 0 has no goal: this model is asked for one of 2 numbers. .*policy.reset\(goal=...\)"),
        ({"goal": [1, 2, 3]}, None, r"goal has shape \(3,\); this model reads goals of 2 numbers: \(2,\), or \(n, 2\)"),
        ({"goal": np.zeros((3, 2)), "num_envs": 2}, None, r"goal has shape \(3, 2\); give one goal or \(2, 2\)"),
        ({"goal": [1, np.nan]}, None, r"goal=\[1.0, nan\] must be finite"),
        ({"goal": "north"}, None, "goal is str of .*; give numbers"),
        ({}, as_gymnasium_gives_it(np.zeros(S), np.zeros(3)), r"goal has shape \(3,\); this model reads goals of 2"),
        (
            {},
            as_gymnasium_gives_it(np.zeros(S), np.array([0, np.inf])),
            "goal is inf in row 0, dimension 1; only finite",
        ),
    ],
)
def test_goals_that_cannot_be_gone_to_are_refused(reset, observation, message):
    policy = make_goal_policy()
    with pytest.raises(ValueError, match=message):
        policy.reset(**reset)
        policy.act(observation)


def test_a_goal_is_refused_by_what_is_asked_for_none_and_a_processor_that_knows_none():
    for condition, asked in (("return", "a return"), ("none", "nothing")):
        with pytest.raises(ValueError, match=f"goal: this model is asked for {asked}, and reads no goal"):
            make_policy(model=make_model(conditioning=condition)).reset(goal=[1, 2])
    with pytest.raises(ValueError, match="normalises goals of 0 dimensions, but the model reads goal_dim=2"):
        make_policy(model=make_model(conditioning="goal", goal_dim=2))
    with pytest.raises(ValueError, match="normalises goals of 2 dimensions, but the model reads goal_dim=None"):
        make_policy(goal_mean=GOAL_MEAN, goal_std=GOAL_STD)


def test_one_observation_and_a_batch_of_one_are_the_same_row():
    policy, (observations, _) = make_policy(), episode(2)
    assert policy.act(observations[0]).shape == (A,)
    assert policy.act(observations[1][None]).shape == (1, A)


def test_returned_actions_belong_to_the_caller():
    observations, rewards = episode(6)
    for mode in ("window", "recurrent"):
        expected = play(make_policy(mode), observations, rewards)
        policy, actions = make_policy(mode), []
        for t in range(6):
            action = policy.act(observations[t], rewards[t - 1])
            actions.append(action.copy())
            action[:] = 1e6
        np.testing.assert_array_equal(actions, expected)


def test_dropout_is_off_while_acting():
    model = make_model(embd_pdrop=0.5)
    policy, (observations, _) = make_policy(model=model), episode(1)
    model.train()
    policy.reset()
    first = policy.act(observations[0])
    policy.reset()
    np.testing.assert_array_equal(policy.act(observations[0]), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mode", ["window", "recurrent"])
def test_weights_of_any_precision_act(mode, dtype):
    observations, rewards = episode(7)
    actions = play(make_policy(mode, make_model().to(dtype)), observations, rewards)
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions, play(make_policy(mode), observations, rewards), atol=0.05)


def film(steps: int, seed: int = 0, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Frames (steps, [rows,] height, width) and the points (steps, [rows]) that each action earns."""
    generator, shape = np.random.default_rng(seed), (steps,) if rows is None else (steps, rows)
    brightness = generator.uniform(size=(*shape, 1, 1))
    frames = (generator.integers(0, 256, (*shape, SIDE, SIDE)) * brightness).astype(np.uint8)
    return frames, generator.normal(size=shape) * 5


def watch(policy: DecisionMambaPolicy) -> list[tuple[np.ndarray, np.ndarray]]:
    """The newest state of every row (n, ...) at every decision from now on, and the logits in the same order."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    policy.model.register_forward_hook(
        lambda module, args, inputs, output: seen.append(
            (inputs["states"][:, -1].numpy().copy(), output.action_preds[:, -1].numpy().copy())
        ),
        with_kwargs=True,
    )
    return seen


class TestAtari:
    @pytest.mark.parametrize("preset", ATARI)
    @pytest.mark.parametrize("stack", [1, 2, FRAMES, K + 4])
    def test_a_window_is_what_a_model_trains_on(self, preset, stack):
        """Everything the model reads at every decision equals the window that `WindowDataset` makes of the episode."""
        model = make_player(preset, num_channels=stack)
        settings = {"frame_stack": stack, "target_return": 30.0, "context_length": K, "return_scale": SCALE}
        policy = DecisionMambaPolicy(model, DecisionMambaProcessor(**settings), sample=True, temperature=10.0)
        seen = []

        def keep(module, args, inputs, output):
            seen.append({**{name: given.clone() for name, given in inputs.items()}, "logits": output.action_preds})

        hook = model.register_forward_hook(keep, with_kwargs=True)
        frames, points = film(4 * K)  # long enough to wind the tape back
        points[-1] += 30 - points.sum()  # so that the returns-to-go of the data are those asked for
        points = points.astype(np.float32)
        actions = play(policy, frames, points)
        assert len(set(actions)) > 1
        hook.remove()

        over = np.arange(4 * K) == 4 * K - 1
        whole = np.array([0]), np.array([4 * K])
        data = Trajectories(frames, actions, points, over, np.zeros_like(over), *whole, num_actions=ACTIONS)
        for t in range(4 * K):
            start = max(0, t + 1 - K)
            options = {"return_scale": SCALE, "frame_stack": stack, "starts": [start]}
            window = WindowDataset(data, t + 1 - start, **options)[0]
            torch.testing.assert_close(seen[t]["states"][0], window["states"], rtol=0, atol=0)
            torch.testing.assert_close(seen[t]["previous_actions"][0], window["previous_actions"], rtol=0, atol=0)
            torch.testing.assert_close(seen[t]["actions"][0, :-1], window["actions"][:-1], rtol=0, atol=0)
            torch.testing.assert_close(seen[t]["returns_to_go"][0], window["returns_to_go"], rtol=0, atol=1e-5)
            with torch.no_grad():
                inputs = {name: window[name][None] for name in ("states", "actions", "returns_to_go")}
                logits = model(**inputs, previous_actions=window["previous_actions"][None]).action_preds
            torch.testing.assert_close(seen[t]["logits"][:, -1], logits[:, -1], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("preset", ATARI)
    def test_recurrent_acts_as_a_window_that_holds_the_whole_history(self, preset):
        model, (frames, points) = make_player(preset), film(K)
        played = {}
        for mode in ("recurrent", "window"):
            policy = make_player_policy(mode, model)
            seen = watch(policy)
            played[mode] = play(policy, frames, points), list(seen)
        np.testing.assert_array_equal(played["recurrent"][0], played["window"][0])
        for (state, logits), (expected_state, expected_logits) in zip(
            *(seen for _, seen in played.values()), strict=True
        ):
            np.testing.assert_array_equal(state, expected_state)
            np.testing.assert_allclose(logits, expected_logits, atol=1e-5)

    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    @pytest.mark.parametrize("cut", [1, K + 3])
    def test_rows_act_as_if_alone_also_after_a_reset_of_some(self, mode, cut):
        model, (frames, points) = make_player(), film(3 * K, rows=2)
        policy = make_player_policy(mode, model)
        seen = watch(policy)
        policy.reset(num_envs=2)
        for t in range(3 * K):
            if t == cut:
                policy.reset_rows([1], target_return=7.0)
            policy.act(frames[t], points[t - 1])
        together = list(seen)

        for row, first, target in ((0, 0, 30.0), (1, cut, 7.0)):
            policy.reset(target)
            seen.clear()
            play(policy, frames[first:, row], points[first:, row])
            for (states, logits), (state, expected) in zip(together[first:], seen, strict=True):
                np.testing.assert_array_equal(states[row], state[0])
                np.testing.assert_allclose(logits[row], expected[0], atol=1e-5)

    def test_frames_stay_bytes_until_they_are_encoded(self, acting):
        policy = make_player_policy()
        policy.reset(num_envs=2)
        kinds = CompiledHistory, WindowHistory
        (history,) = (value for value in vars(policy).values() if isinstance(value, kinds))
        if acting == "one compiled call":  # each stack is encoded once, and what the encoder said is remembered
            assert history.frames.dtype == torch.uint8
            assert history.states.shape == (2, 2 * K + 1, 16)
            return
        assert history.states.dtype == torch.uint8
        assert history.states.shape[1] == 2 * (K + FRAMES - 2) + 1  # single frames, none stacked

    def test_frames_that_may_not_be_written_are_read(self):
        frame = np.frombuffer(bytes(SIDE * SIDE), np.uint8).reshape(SIDE, SIDE)[::-1]
        assert make_player_policy().act(frame).shape == ()

    @pytest.mark.parametrize(
        ("frame", "message"),
        [
            (np.zeros((SIDE, 9), np.uint8), r"shape \(36, 9\); this model reads \(36, 36\) .* \(n, 36, 36\)"),
            (np.zeros((1, FRAMES, SIDE, SIDE), np.uint8), r"observation has shape \(1, 3, 36, 36\)"),
            (np.zeros((SIDE, SIDE), np.float32), "observation is float32; this model reads frames of uint8"),
        ],
    )
    def test_frames_of_another_kind_are_refused(self, frame, message):
        with pytest.raises(ValueError, match=message):
            make_player_policy().act(frame)


class TestDiscreteActions:
    """Of vectors too; the processor's action bounds have no part in it."""

    @staticmethod
    def make(mode="window", **options) -> DecisionMambaPolicy:
        processor = make_processor(action_low=None, action_high=None)
        return DecisionMambaPolicy(make_model(action_type="discrete", act_dim=3), processor, mode, **options)

    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    def test_actions_are_integers(self, mode):
        policy, (observations, _) = self.make(mode), episode(1)
        action = policy.act(observations[0])
        assert isinstance(action, np.int64) and action.shape == ()
        policy.reset()
        actions = policy.act(np.repeat(observations, 5, axis=0))
        assert (actions.dtype, actions.tolist()) == (np.int64, [action] * 5)

    def test_the_most_likely_action_is_taken(self):
        policy, (observations, rewards) = self.make(), episode(12)
        seen = watch(policy)
        actions = play(policy, observations, rewards)
        assert [logits[0].argmax() for _, logits in seen] == actions.tolist() and len(set(actions)) > 1

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_draws_follow_the_softmax(self, temperature):
        policy = self.make(sample=True, temperature=temperature)
        seen = watch(policy)
        actions = policy.act(np.ones((4000, S)))
        expected = torch.softmax(torch.from_numpy(seen[0][1][0]) / temperature, dim=0)
        assert expected.min() < 0.9 * expected.max()
        np.testing.assert_allclose(np.bincount(actions, minlength=3) / 4000, expected, atol=0.03)

    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    def test_draws_belong_to_the_seed_and_the_episode(self, mode):
        observations, rewards = episode(30, rows=2)

        def draws(policy) -> list[list[int]]:
            return play(policy, observations, rewards).T.tolist()

        policy = self.make(mode, sample=True, seed=1)
        both = draws(policy)
        assert draws(self.make(mode, sample=True, seed=1)) == both  # again
        assert draws(self.make(mode, sample=True, seed=2)) != both
        policy.reset()
        assert draws(policy) != both  # the draws go on
        policy.reset(seed=1)
        assert draws(policy) == both  # from the beginning

        policy.reset(seed=1)  # one row after the other
        assert play(policy, observations[:, 0], rewards[:, 0]).tolist() == both[0]
        policy.reset()
        assert play(policy, observations[:, 1], rewards[:, 1]).tolist() == both[1]

        policy.reset(seed=1, num_envs=1)  # or one after the other in the same row
        policy.reset_rows([0])
        actions = [policy.act(observations[t, 1:], rewards[t - 1, 1:]).item() for t in range(30)]
        assert actions == both[1]


@pytest.mark.parametrize("mode", ["window", "recurrent"])
class TestTooLarge:
    """Finite numbers from which no finite answer can be computed: refused, and never remembered."""

    @pytest.mark.parametrize(
        ("weights", "given", "reward", "message"),
        [
            (torch.float32, 3e38, 0, r"observation is 3e\+38 in row 1, dimension 2; scaled for the model that is inf"),
            (
                torch.float32,
                1e20,
                0,
                r"row 1, dimension 2; .* 2e\+20, and it computes in torch.float32 .* up to 1e\+16",
            ),
            (
                torch.bfloat16,
                1e20,
                0,
                r"row 1, dimension 2; .* it computes in torch.bfloat16 with numbers up to 1e\+16",
            ),
            (
                torch.float16,
                1e5,
                0,
                r"row 1, dimension 2; .* it computes in torch.float16 with numbers up to 6.55e\+04",
            ),
            (torch.float64, 3e38, 0, r"row 1, dimension 2; scaled for the model that is inf"),
            (torch.float32, 0, 1e300, r"return-to-go is -1e\+300 in row 1; scaled for the model that is -inf"),
            (torch.float64, 0, 1e40, r"return-to-go is -1e\+40 in row 1; scaled for the model that is -inf"),
            (
                torch.float16,
                0,
                1e6,
                r"return-to-go is -999970 in row 1; .* Check rewards, target return and return_scale",
            ),
        ],
    )
    def test_it_is_named_and_nothing_changes(self, mode, weights, given, reward, message):
        policy, calm = (make_policy(mode, make_model().to(weights)) for _ in range(2))
        observations, rewards = episode(8, rows=2)
        bad = observations[4].copy()
        bad[1, 2] += given
        for t in range(8):
            if t in (0, 4):  # before an episode has begun, too
                earned = [0, reward] if t else None
                if t or given:
                    with pytest.raises(ValueError, match=message):
                        policy.act(bad, earned)
                    with pytest.raises(ValueError, match=message):
                        policy.act(bad, earned)
            expected = calm.act(observations[t], rewards[t])
            np.testing.assert_array_equal(policy.act(observations[t], rewards[t]), expected)

    def test_targets(self, mode):
        policy, (observations, rewards) = make_policy(mode), episode(4, rows=2)
        expected = play(policy, observations, rewards)
        policy.reset(num_envs=2)
        play(policy, observations[:3], rewards[:3])
        message = r"target_return is 1e\+40 in row 1; scaled for the model that is inf"
        with pytest.raises(ValueError, match=message):
            policy.reset([1.0, 1e40])
        with pytest.raises(ValueError, match=message):
            policy.reset_rows([0, 1], [1.0, 1e40])
        np.testing.assert_array_equal(policy.act(observations[3], rewards[2]), expected[3])

    @pytest.mark.parametrize("size", [1e3, 1e9, 9e15])
    def test_what_is_not_refused_is_computed(self, mode, size):
        """In float32 as in float64, and so is what comes after it."""
        single, double = make_policy(mode), make_policy(mode, make_model().double())
        observations, rewards = episode(6)
        observations[2] = MEAN + size * STD * observations[2] / np.abs(observations[2]).max()
        actions = play(single, observations, rewards)
        np.testing.assert_allclose(actions, play(double, observations, rewards), atol=1e-4)

    def test_an_answer_that_is_not_finite_is_undone(self, mode):
        """What a model sees may be large enough for that only together with its weights."""
        model = make_model()
        with torch.no_grad():
            model.embed_state.weight *= 1e27
        policy, calm, (observations, rewards) = make_policy(mode, model), make_policy(mode, model), episode(6, rows=2)
        bad = observations[3].copy()
        bad[1] = [1e15, -1e15, 1e15, -1e15]
        for t in range(6):
            if t == 3:
                with pytest.raises(ValueError, match=r"answer in row 1 is nan in dimension 0: .* torch.float32"):
                    policy.act(bad, rewards[t])
            expected = calm.act(observations[t], rewards[t])
            np.testing.assert_array_equal(policy.act(observations[t], rewards[t]), expected)

    def test_logits_that_are_not_finite(self, mode):
        policy = TestDiscreteActions.make(mode, sample=True, seed=3)
        with torch.no_grad():
            policy.model.predict_action.weight.fill_(3e38)
        with pytest.raises(ValueError, match=r"The model's answer in row 0 is .*its weights, are too large"):
            policy.act(np.ones(S))


class TestWeightsThatAreNotFinite:
    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    @pytest.mark.parametrize("preset", ["dema-b3ld", "dema-post", "dmm-conv", "dmm-mamba2", "decision-mamba"])
    def test_each_of_them_is_named(self, preset, mode):
        model = make_model(preset, n_layer=1)
        for name, parameter in model.named_parameters():
            with torch.no_grad():
                before = parameter.clone()
                parameter.view(-1)[0] = np.nan
                with pytest.raises(ValueError, match=rf"cannot act: its weights '{re.escape(name)}' are not finite"):
                    play(make_policy(mode, model), *episode(2))
                parameter.copy_(before)
        assert np.isfinite(play(make_policy(mode, model), *episode(2))).all()

    def test_of_a_player(self):
        for name in ("embed_state.conv1.weight", "predict_action.weight", "layers.0.mixer.A_log"):
            policy = make_player_policy()
            with torch.no_grad():
                policy.model.get_parameter(name).view(-1)[0] = np.inf if "mixer" not in name else np.nan
            with pytest.raises(ValueError, match=f"its weights '{name}' are not finite"):
                policy.act(np.full((SIDE, SIDE), 200, np.uint8))


ACTORS = {
    "window": ("window", make_model),
    "recurrent": ("recurrent", make_model),
    "recurrent dmm": ("recurrent", lambda: make_model("dmm")),
    "recurrent bfloat16": ("recurrent", lambda: make_model().bfloat16()),
    "window decision-transformer": ("window", make_transformer),
}


def copied_by(how: str, policy: DecisionMambaPolicy) -> DecisionMambaPolicy:
    if how == "pickle":
        return pickle.loads(pickle.dumps(policy))
    if how == "process":  # as multiprocessing sends it: tensors by their memory
        return pickle.loads(ForkingPickler.dumps(policy))
    return {"copy": copy.copy, "deepcopy": copy.deepcopy}[how](policy)


class TestCopies:
    @pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle", "process"])
    @pytest.mark.parametrize("actor", ACTORS)
    def test_a_copy_goes_on_from_where_the_policy_stands(self, actor, how):
        mode, make = ACTORS[actor]
        policy, (observations, rewards) = make_policy(mode, make()), episode(4 * K, rows=2)
        policy.reset([10.0, 30.0])
        expected = play(policy, observations, rewards)
        policy.reset([10.0, 30.0])
        play(policy, observations[: K + 2], rewards[: K + 2])
        other = copied_by(how, policy)
        for t in range(K + 2, 4 * K):  # in turn, so that what both wrote to would show
            np.testing.assert_array_equal(other.act(observations[t], rewards[t - 1]), expected[t])
            np.testing.assert_array_equal(policy.act(observations[t], rewards[t - 1]), expected[t])
        other.reset([10.0, 30.0])
        np.testing.assert_array_equal(play(other, observations, rewards), expected)
        assert (other.model is policy.model) == (how == "copy")

    @pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle", "process"])
    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    def test_draws_and_frames_go_on_too(self, mode, how):
        policy, (frames, points) = make_player_policy(mode, sample=True, seed=1), film(2 * K)
        expected = play(policy, frames, points)
        policy.reset(seed=1)
        play(policy, frames[:K], points[:K])
        other = copied_by(how, policy)
        for t in range(K, 2 * K):
            assert other.act(frames[t], points[t - 1]) == policy.act(frames[t], points[t - 1]) == expected[t]

    def test_a_copy_before_the_first_decision(self):
        observations, rewards = episode(3)
        policy = make_policy()
        for begin in (lambda: None, policy.reset, policy.warm_up):
            begin()
            other = copied_by("pickle", policy)
            np.testing.assert_array_equal(
                play(other, observations, rewards), play(make_policy(), observations, rewards)
            )

    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    def test_weights_that_change_after_it_are_the_originals(self, mode):
        policy, (observations, rewards) = make_policy(mode), episode(6)
        expected = play(policy, observations, rewards)
        policy.reset()
        play(policy, observations[:3], rewards[:3])
        other = copy.deepcopy(policy)
        with torch.no_grad():
            policy.model.predict_action.bias += 1
        for t in range(3, 6):
            np.testing.assert_array_equal(other.act(observations[t], rewards[t - 1]), expected[t])
        policy.reset()
        assert np.abs(play(policy, observations, rewards) - expected).max() > 0.1


class TestInterrupts:
    """A KeyboardInterrupt after the model has answered, before the decision is done."""

    @staticmethod
    def interrupt(policy, monkeypatch, *arguments) -> None:
        def stop(actions):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(policy.processor, "denormalize_actions", stop)
            with pytest.raises(KeyboardInterrupt):
                policy.act(*arguments)

    @staticmethod
    def is_lost(mode: str, acting: str) -> bool:
        """Whether the states of before are gone: to copy them for every decision would be slow."""
        return mode == "recurrent" and acting == "one compiled call"

    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    def test_the_decision_is_undone(self, mode, acting, monkeypatch):
        policy, (observations, rewards) = make_policy(mode), episode(2 * K + 3)
        expected = play(policy, observations, rewards)
        policy.reset()
        moments = [0, 1, K + 2, 2 * K + 1]  # before there are rows, and where the tape is wound back
        for t in range(2 * K + 3):
            reward = rewards[t - 1] if t else None
            if t in moments[: 1 if self.is_lost(mode, acting) else None]:
                self.interrupt(policy, monkeypatch, observations[t], reward)
            np.testing.assert_array_equal(policy.act(observations[t], reward), expected[t])

    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    def test_a_decision_that_cannot_be_undone_asks_for_a_reset(self, mode, acting, monkeypatch):
        policy, (observations, rewards) = make_policy(mode), episode(4, rows=2)
        expected = play(policy, observations, rewards)
        policy.reset()
        play(policy, observations[:2], rewards[:2])
        before = policy.returns_to_go
        self.interrupt(policy, monkeypatch, observations[2], rewards[1])
        np.testing.assert_array_equal(policy.returns_to_go, before)
        if self.is_lost(mode, acting):
            message = "broke off half-way, so what the model remembers is lost; call reset"
            for use in (lambda: policy.act(observations[2], rewards[1]), lambda: policy.reset_rows([0])):
                with pytest.raises(ValueError, match=message):
                    use()
        else:
            np.testing.assert_array_equal(policy.act(observations[2], rewards[1]), expected[2])
        policy.reset()
        np.testing.assert_array_equal(play(policy, observations, rewards), expected)

    @pytest.mark.parametrize("acting", ["one compiled call"], indirect=True)
    def test_room_that_was_not_made_is_not_used(self, monkeypatch):
        """Kernels write where they are told to, and check nothing."""
        policy, (observations, rewards) = make_policy(), episode(K)
        expected = play(policy, observations, rewards)
        policy.reset(num_envs=1)

        def stop(*_):
            raise KeyboardInterrupt

        for t in range(K):
            reward = rewards[t - 1] if t else None
            with monkeypatch.context() as patch:
                patch.setattr(np, "zeros", stop)
                with pytest.raises(KeyboardInterrupt):
                    policy.act(observations[t], reward)
            np.testing.assert_array_equal(policy.act(observations[t], reward), expected[t])


@pytest.mark.parametrize("mode", ["window", "recurrent"])
def test_threads_that_share_a_policy_take_turns(mode):
    policy, turns, errors = make_policy(mode), [], []
    policy.reset(num_envs=8)

    def work(seed: int) -> None:
        try:
            for observation in episode(15, seed, rows=8)[0]:
                turns.append(np.isfinite(policy.act(observation, 1.0)).all())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and turns == 60 * [True]
    np.testing.assert_array_equal(policy.returns_to_go, 30.0 - 59)


def test_numbers_of_an_observation_are_found_by_their_names():
    """As LeRobot's robots give them: `{"shoulder.pos": 0.1, ...}`, in any order."""
    names = ["shoulder.pos", "elbow.pos", "wrist.pos", "gripper.pos"]
    policy = make_policy("window", observation_parts=[{"path": [name], "shape": [], "size": 1} for name in names])
    observation = {name: float(place) for place, name in enumerate(names)}
    expected = policy.act(np.arange(4.0))
    policy.reset()
    np.testing.assert_array_equal(policy.act(dict(reversed(observation.items()))), expected)
    policy.reset(num_envs=2)
    rows = policy.act({name: np.array([value, 0.0]) for name, value in observation.items()})
    np.testing.assert_allclose(rows[0], expected, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"observation has no 'wrist\.pos' and an additional 'wrist'; it must be a dict"
    ):
        policy.act({name.replace("wrist.pos", "wrist"): value for name, value in observation.items()})


class TestWarmUp:
    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    def test_the_first_decision_prepares_nothing(self, mode, monkeypatch, acting):
        policy, prepared = make_policy(mode), []
        if acting == "one compiled call":
            from hf_decision_mamba.acting.compiled import fuse

            monkeypatch.setattr(
                "hf_decision_mamba.acting.policy.fuse", lambda model: prepared.append(model) or fuse(model)
            )
        policy.warm_up()
        before = len(prepared)
        assert before == (acting == "one compiled call")
        policy.act(np.zeros(S))
        assert len(prepared) == before
        policy.reset()  # with the weights of now
        assert len(prepared) == 2 * before
        policy.act(np.zeros(S))
        assert len(prepared) == 2 * before

    @pytest.mark.parametrize("kind", [*ACTORS, "player"])
    def test_episodes_and_draws_stay_as_they_are(self, kind):
        if kind == "player":
            policy, (observations, rewards) = make_player_policy("window", sample=True, seed=1), film(2 * K, rows=2)
        else:
            mode, make = ACTORS[kind]
            policy, (observations, rewards) = make_policy(mode, make()), episode(2 * K, rows=2)
        expected = play(policy, observations, rewards)
        state = torch.get_rng_state()
        policy.reset(seed=1 if kind == "player" else None)
        policy.warm_up()
        for t in range(2 * K):
            np.testing.assert_array_equal(policy.act(observations[t], rewards[t - 1] if t else None), expected[t])
            if t in (0, K + 1):
                policy.warm_up()
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("rows", [1, 3])
    def test_a_whole_decision_is_made_and_thrown_away(self, rows, monkeypatch):
        policy = make_policy("recurrent")
        policy.reset(target_return=5.0, num_envs=rows)
        made = []
        chosen = policy.processor.denormalize_actions
        monkeypatch.setattr(
            policy.processor, "denormalize_actions", lambda predicted: made.append(chosen(predicted)) or made[-1]
        )
        policy.warm_up()
        assert made[0].shape == (rows, policy.act_dim)
        np.testing.assert_array_equal(policy.returns_to_go, [5.0] * rows)
        with pytest.raises(ValueError, match="no action has been chosen since the reset"):
            policy.override_actions(made[0])

    def test_a_model_that_cannot_act_is_said_before_anything_waits_for_it(self):
        policy = make_policy("window")
        policy.reset(num_envs=2)
        torch.nn.init.constant_(next(policy.model.parameters()), float("nan"))
        with pytest.raises(ValueError, match=r"its weights .* are not finite"):
            policy.warm_up()

    def test_a_short_time_embedding_is_enough(self):
        make_policy("window", make_model(max_ep_len=3, use_timestep_embedding=True)).warm_up()
        make_policy("window", make_transformer(max_ep_len=3)).warm_up()


def make_cart_pole_policy(mode: str, sample: bool) -> DecisionMambaPolicy:
    model = make_model(action_type="discrete", act_dim=2).double()
    processor = make_processor(action_low=None, action_high=None, state_mean=[0.0] * 4, state_std=[0.3] * 4)
    return DecisionMambaPolicy(model, processor, mode, sample=sample, seed=5)


@pytest.mark.parametrize(("mode", "sample"), [("window", False), ("recurrent", True)])
@pytest.mark.parametrize("autoreset_mode", list(AutoresetMode))
def test_episodes_of_vector_environments_are_those_that_are_played_alone(autoreset_mode, mode, sample):
    """From the first action to the last, in every way in which gymnasium's vector environments reset themselves."""
    envs = gymnasium.make_vec(
        "CartPole-v1", 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": autoreset_mode}
    )
    policy = make_cart_pole_policy(mode, sample)
    played: list[list[list[int]]] = [[[]], [[]], [[]]]  # by row, episode and step
    numbers, began = [[0], [1], [2]], 3  # of each row's episodes among all, in the order of their beginning
    observations, _ = envs.reset(seed=[0, 1, 2])
    policy.reset(num_envs=3)
    rewards, waits = None, np.zeros(3, bool)
    for _ in range(70):
        actions = policy.act(observations, rewards)
        for row in np.flatnonzero(~waits):
            played[row][-1].append(int(actions[row]))
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        over = terminated | truncated
        policy.reset_rows(over, autoreset_mode=envs.metadata["autoreset_mode"])
        if autoreset_mode == AutoresetMode.DISABLED and over.any():
            observations, _ = envs.reset(options={"reset_mask": over})
        waits = over & (autoreset_mode == AutoresetMode.NEXT_STEP)
        for row in np.flatnonzero(over):
            played[row].append([])
            numbers[row].append(began)
            began += 1
    envs.close()

    assert min(map(len, played)) > 2
    alone = make_cart_pole_policy(mode, sample)
    for row in range(3):
        env = gymnasium.make("CartPole-v1")
        observation, _ = env.reset(seed=row)
        for number, expected in zip(numbers[row], played[row], strict=True):
            alone.reset(seed=5)
            for _ in range(number):  # the episodes that began before it, whose draws are others
                alone.reset(num_envs=1)
            alone.reset()
            actions, reward, done = [], None, False
            while not done and len(actions) < len(expected):
                actions.append(int(alone.act(observation, reward)))
                observation, reward, terminated, truncated, _ = env.step(actions[-1])
                done = terminated or truncated
            assert actions == expected and (done or expected is played[row][-1])
            if done:
                observation, _ = env.reset()
        env.close()


class TestRowsThatWait:
    def test_what_they_see_and_earn_does_not_count(self):
        """The last observation of a simulation that broke down is often not finite."""
        policy, (observations, rewards) = make_policy("window", make_model(max_ep_len=4)), episode(8, rows=2)
        policy.reset(num_envs=2)
        play(policy, observations[:3], rewards[:3])
        policy.reset_rows([False, True], target_return=7.0, autoreset_mode="NextStep")
        broken = observations[3].copy()
        broken[1] = np.nan
        assert np.isfinite(policy.act(broken, [rewards[2, 0], np.nan])).all()
        np.testing.assert_array_equal(policy.returns_to_go[1], 7.0)
        expected = make_policy(model=policy.model, target_return=7.0)
        with pytest.raises(ValueError, match="observation is nan in row 1, dimension 0"):
            policy.act(broken, rewards[3])  # now it would
        for t in range(4, 8):
            actions = policy.act(observations[t], rewards[t - 1])
            single = expected.act(observations[t, 1], rewards[t - 1, 1])
            np.testing.assert_allclose(actions[1], single, atol=1e-6)

    @pytest.mark.parametrize("model", [make_model(max_ep_len=3, use_timestep_embedding=True), make_transformer(3)])
    def test_an_episode_may_last_as_long_as_the_model_knows(self, model):
        policy, (observations, rewards) = make_policy(model=model), episode(4, rows=2)
        play(policy, observations[:3], rewards[:3])
        policy.reset_rows([0, 1], autoreset_mode=AutoresetMode.NEXT_STEP)
        policy.act(observations[3], rewards[2])
        policy.act(observations[3], rewards[2])
        np.testing.assert_array_equal(policy.returns_to_go, [30, 30])

    def test_unknown_modes_are_refused(self):
        policy = make_policy()
        policy.reset(num_envs=1)
        with pytest.raises(
            ValueError, match=r"autoreset_mode='next' is unknown; give envs.metadata\['autoreset_mode'\]"
        ):
            policy.reset_rows([0], autoreset_mode="next")


class TestTime:
    def test_models_without_timesteps_act_beyond_max_ep_len(self):
        policy = make_policy("recurrent", make_model(max_ep_len=3))
        assert np.isfinite(play(policy, *episode(8))).all()

    @pytest.mark.parametrize(
        ("mode", "model"),
        [
            ("window", make_model(max_ep_len=3, use_timestep_embedding=True)),
            ("recurrent", make_model(max_ep_len=3, use_timestep_embedding=True)),
            ("window", make_transformer(max_ep_len=3)),
        ],
    )
    def test_models_with_timesteps_stop_at_max_ep_len(self, mode, model):
        policy, (observations, rewards) = make_policy(mode, model), episode(4, rows=2)
        play(policy, observations[:3], rewards[:3])
        with pytest.raises(ValueError, match=r"row 0 is at time step 3, .* max_ep_len=3"):
            policy.act(observations[3])
        policy.reset_rows([0, 1])
        assert policy.act(observations[3]).shape == (2, A)


class TestBadInput:
    @pytest.mark.parametrize(
        ("observation", "message"),
        [
            (np.zeros(S + 1), r"observation has shape \(5,\); this model reads \(4,\) .* \(n, 4\)"),
            (np.zeros((2, S, 1)), r"observation has shape \(2, 4, 1\)"),
            (np.zeros((0, S)), r"observation has shape \(0, 4\)"),
            ([[0, 0, 0, 0], [0, np.nan, 0, 0]], r"observation is nan in row 1, dimension 1"),
            ([0, 0, 0, 1e300], r"observation is inf in row 0, dimension 3"),
            (np.zeros((3, S)), r"observation has 3 rows, but the policy was reset for 2; call reset\(num_envs=3\)"),
            (
                {"position": np.zeros(S)},
                "observation is a dictionary of position, but this checkpoint has no observation_parts",
            ),
            ([[None] * S] * 2, "observation is list of object; give numbers"),
            (["0"] * S, "observation is list of <U1; give numbers"),
            (np.zeros((2, S), complex), "observation is ndarray of complex128; give numbers"),
            ([[0, 0, 0, 0], [0, 0]], "observation cannot be read as an array of numbers"),
        ],
    )
    def test_observation(self, observation, message):
        policy = make_policy()
        policy.reset(num_envs=2)
        with pytest.raises(ValueError, match=message):
            policy.act(observation)

    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    @pytest.mark.parametrize(
        ("reward", "message"),
        [
            ([0.0, np.nan], r"reward is nan in row 1"),
            (np.inf, r"reward is inf in row 0"),
            ([1.0, 2.0, 3.0], r"reward has shape \(3,\); give one number or \(2,\)"),
            ("much", "reward is str of <U4; give numbers"),
        ],
    )
    def test_reward(self, reward, message, mode):
        policy, (observations, rewards) = make_policy(mode), episode(4, rows=2)
        expected = play(policy, observations, rewards)
        policy.reset()
        play(policy, observations[:3], rewards[:3])
        with pytest.raises(ValueError, match=message):
            policy.act(observations[3], reward)
        np.testing.assert_array_equal(policy.act(observations[3], rewards[2]), expected[3])  # nothing had changed

    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    def test_a_model_whose_weights_diverged(self, mode):
        model = make_model()
        with torch.no_grad():
            model.embed_state.weight.fill_(1e38)
        policy = make_policy(mode, model)
        with pytest.raises(ValueError, match=r"answer in row 0 is nan in dimension 0: what it saw, or its weights, "):
            policy.act(np.ones(S))

    def test_no_target_return(self):
        policy = make_policy(target_return=None)
        for start in (policy.reset, lambda: policy.act(np.zeros(S))):
            with pytest.raises(ValueError, match=r"No target return.*policy\.reset\(target_return=\.\.\.\)"):
                start()
        policy.reset(target_return=3.0)
        assert policy.act(np.zeros(S)).shape == (A,)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"target_return": np.nan}, "target_return=nan must be finite"),
            (
                {"target_return": [1.0, 2.0], "num_envs": 3},
                r"target_return has shape \(2,\); give one number or \(3,\)",
            ),
            ({"num_envs": 0}, "num_envs=0 must be at least 1"),
            ({"num_envs": 2.5}, "num_envs=2.5 must be a whole number"),
            ({"num_envs": "2"}, "num_envs='2' must be a whole number"),
            ({"num_envs": True}, "num_envs=True must be a whole number"),
            ({"num_envs": 10**12}, "num_envs=1000000000000 must be at most 1048576"),
            ({"target_return": "high"}, "target_return is str of <U4; give numbers"),
            ({"target_return": [1.0, None]}, "target_return is list of object; give numbers"),
            ({"seed": 0.5}, "seed=0.5 must be a whole number"),
        ],
    )
    def test_reset(self, arguments, message):
        policy, (observations, rewards) = make_policy(), episode(4)
        expected = play(policy, observations, rewards)
        policy.reset()
        play(policy, observations[:3], rewards[:3])
        with pytest.raises(ValueError, match=message):
            policy.reset(**arguments)
        np.testing.assert_array_equal(policy.act(observations[3], rewards[2]), expected[3])  # nothing had changed

    def test_more_rows_than_there_is_memory_for(self, monkeypatch):
        def full(*_):
            raise MemoryError("Unable to allocate 9 TiB")

        for name in ("CompiledHistory", "WindowHistory"):
            monkeypatch.setattr(f"hf_decision_mamba.acting.policy.{name}", full)
        with pytest.raises(ValueError, match=r"num_envs=1000: so many rows cannot be remembered \(Unable to allocate"):
            make_policy().reset(num_envs=1000)

    @pytest.mark.parametrize(
        ("rows", "target_return", "message"),
        [
            ([2], None, r"rows=\[2\] go beyond the policy's rows, 0 to 1"),
            (np.array([True]), None, r"mask of shape \(1,\); the policy has 2 rows"),
            ([0, 1], [1.0, 2.0, 3.0], r"target_return has shape \(3,\)"),
            ([0], np.nan, "target_return=nan must be finite"),
            ([0], "high", "target_return is str of <U4; give numbers"),
            (["a"], None, "rows is list of <U1; give numbers"),
            (np.array([0.0, 1.0]), None, r"rows are float64 of shape \(2,\); give a boolean mask \(2,\) or indices"),
            ([[0], [1]], None, r"rows are int64 of shape \(2, 1\); give a boolean mask"),
            (None, None, "rows is NoneType of object; give numbers"),
        ],
    )
    def test_reset_rows(self, rows, target_return, message):
        policy = make_policy()
        with pytest.raises(ValueError, match="number of rows is not known yet"):
            policy.reset_rows([0])
        policy.reset(num_envs=2)
        (observations, rewards), other = episode(3, rows=2), make_policy()
        play(policy, observations[:2], rewards[:2])
        with pytest.raises(ValueError, match=message):
            policy.reset_rows(rows, target_return)
        policy.reset_rows([])
        expected = play(other, observations, rewards)[2]
        np.testing.assert_array_equal(policy.act(observations[2], rewards[1]), expected)  # nothing had changed

    @pytest.mark.parametrize(
        ("actions", "message"),
        [
            ([[np.nan, 0], [0, 0]], "action is nan in row 0, dimension 0; only finite numbers"),
            ([[0, 0], [0, 1e30]], r"action is 1e\+30 in row 1, dimension 1; scaled for the model that is 1e\+30"),
            ([[0, 1e300], [0, 0]], "action is inf in row 0, dimension 1; only finite numbers"),
            ("left", "actions is str of <U4; give numbers"),
        ],
    )
    def test_overriding(self, actions, message):
        policy, (observations, rewards) = make_policy("recurrent"), episode(2, rows=2)
        expected = play(policy, observations, rewards)[1]
        policy.reset()
        policy.act(observations[0])
        with pytest.raises(ValueError, match=message):
            policy.override_actions(actions)
        np.testing.assert_array_equal(policy.act(observations[1], rewards[0]), expected)

    @pytest.mark.parametrize("actions", [[0, 3], [-1, 0], [0.0, 1.0], [[0], [1]]])
    def test_overriding_by_what_is_none_of_the_discrete_actions(self, actions):
        policy = TestDiscreteActions.make()
        policy.act(np.zeros((2, S)))
        with pytest.raises(ValueError, match=r"give whole numbers from 0 to 2|actions have shape \(2, 1\)"):
            policy.override_actions(actions)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"mode": "fast"}, "mode='fast' is unknown; choose 'window' or 'recurrent'"),
            ({"model": make_transformer(), "mode": "recurrent"}, "DecisionTransformerModel carries no state"),
            ({"mode": "recurrent", "context_length": 4}, "context_length=4 has no meaning"),
            ({"model": make_model(action_type="discrete")}, "processor bounds actions, but the model chooses discrete"),
            ({"model": make_player()}, r"for vector states \(its state_mean is given\), but the model reads image"),
            ({"processor": DecisionMambaProcessor()}, r"for image states \(its state_mean is None\), .* vector states"),
            (
                {"model": make_player(), "processor": DecisionMambaProcessor(frame_stack=4)},
                "stacks 4 frames, but the model reads num_channels=3",
            ),
            ({"sample": True}, "sample=True needs discrete actions"),
            ({"temperature": 0.0}, "temperature=0.0 must be a positive number"),
            ({"temperature": 0.5}, "temperature=0.5 has no meaning without sample=True"),
            ({"temperature": "warm"}, "temperature='warm' a positive number"),
            ({"sample": "no"}, "sample='no' must be True or False"),
            ({"seed": -1}, "seed=-1 must be at least 0"),
            ({"seed": "0"}, "seed='0' must be a whole number"),
            ({"context_length": 0}, "context_length=0 must be at least 1"),
            ({"context_length": 2.0}, "context_length=2.0 must be a whole number"),
            ({"context_length": 10**9}, "context_length=1000000000 must be at most 1048576"),
            ({"model": make_model(state_dim=9)}, "normalises 4 state dimensions, but the model reads state_dim=9"),
            ({"model": make_model(act_dim=9)}, "bounds 2 action dimensions, but the model predicts act_dim=9"),
        ],
    )
    def test_construction(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            DecisionMambaPolicy(**{"model": make_model(), "processor": make_processor(), **arguments})


class TestFromPretrained:
    @pytest.mark.parametrize("model", [make_model(), make_transformer()], ids=["dema", "decision-transformer"])
    def test_a_folder_acts_as_what_was_saved(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        make_processor().save_pretrained(tmp_path)
        policy = DecisionMambaPolicy.from_pretrained(tmp_path, device="cpu")
        assert policy.device.type == "cpu" and type(policy.model) is type(model)
        observations, rewards = episode(7)
        expected = play(make_policy(model=model), observations, rewards)
        np.testing.assert_array_equal(play(policy, observations, rewards), expected)
        assert DecisionMambaPolicy.from_pretrained(tmp_path, context_length=3).context_length == 3

    def test_a_folder_of_a_player(self, tmp_path):
        policy, (frames, points) = make_player_policy(sample=True, temperature=2.0, seed=3), film(4)
        policy.model.save_pretrained(tmp_path)
        policy.processor.save_pretrained(tmp_path)
        loaded = DecisionMambaPolicy.from_pretrained(tmp_path, sample=True, temperature=2.0, seed=3)
        np.testing.assert_array_equal(play(loaded, frames, points), play(policy, frames, points))

    def test_the_processor_is_missing(self, tmp_path):
        make_model().save_pretrained(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"holds a model but no preprocessor_config\.json"):
            DecisionMambaPolicy.from_pretrained(tmp_path)

    @pytest.mark.parametrize("change", [{"n_layer": 3}, {"state_size": 5}], ids=["missing", "other-shape"])
    def test_weights_do_not_match_the_config(self, change, tmp_path):
        make_model().save_pretrained(tmp_path)
        make_processor().save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=re.escape(f"The weights of {tmp_path} do not match its config.json")):
            DecisionMambaPolicy.from_pretrained(tmp_path)
