"""Looking inside a checkpoint: the windows are those that the policy decided from, and what is missing says why."""

import json

import datasets
import gymnasium
import numpy as np
import pytest
import torch
from factories import BREAKOUT, Reach, make_model, pendulum_model, pendulum_policy, pendulum_transformer

from hf_decision_mamba import (
    DecisionMambaConfig,
    DecisionMambaModel,
    DecisionMambaProcessor,
    DecisionMLPConfig,
    DecisionMLPModel,
)
from hf_decision_mamba.acting.policy import DecisionMambaPolicy
from hf_decision_mamba.analysis.episodes import DecisionWindows, chosen_episodes, play_episodes
from hf_decision_mamba.analysis.inspection import inspect_checkpoint
from hf_decision_mamba.analysis.page import write_inspection
from hf_decision_mamba.data.metadata import describe_observations

K = 5


def cartpole_policy() -> DecisionMambaPolicy:
    model = make_model(act_dim=2, action_type="discrete")
    processor = DecisionMambaProcessor(
        state_mean=[0.0] * 4, state_std=[0.5] * 4, context_length=K, env_id="CartPole-v1", target_return=100.0
    )
    return DecisionMambaPolicy(model, processor)


def breakout_policy() -> DecisionMambaPolicy:
    sizes = {"embedding_size": 16, "n_layer": 1, "act_dim": 4, "image_size": 84, "num_channels": 2}
    return DecisionMambaPolicy(
        make_model("dema-atari", **sizes), DecisionMambaProcessor(frame_stack=2, context_length=K)
    )


# -------------------------------------------------------------------------------------------- episodes and windows


@pytest.mark.parametrize(
    ("policy", "target"),
    [
        pytest.param(lambda: pendulum_policy(), -400.0, id="dema-b3ld"),
        pytest.param(lambda: pendulum_policy(pendulum_model("dema-bl3d")), -400.0, id="dema-bl3d"),
        pytest.param(lambda: pendulum_policy(pendulum_model("dmm")), -400.0, id="dmm"),
        pytest.param(lambda: pendulum_policy(pendulum_transformer()), -400.0, id="decision transformer"),
        pytest.param(cartpole_policy, 100.0, id="discrete"),
    ],
)
def test_the_model_decides_from_a_window_as_the_policy_did(policy, target):
    policy = policy()
    played = play_episodes(policy, policy.processor.env_id, target, 2, seed=3, progress=False)
    assert played.numbers == [3, 4] and played.trajectories.num_episodes == 2
    length, before = played.trajectories.lengths[1], played.trajectories.lengths[0]
    timesteps = np.array([0, 2, K - 1, K, length - 1])
    batch = DecisionWindows(policy, played).read(1, timesteps)
    last = batch["attention_mask"].sum(1) - 1
    assert last.tolist() == [0, 2, K - 1, K - 1, K - 1]

    rewards = played.trajectories.rewards[before:].astype(np.float64)
    left = [(target - rewards[:t].sum()) / policy.processor.return_scale for t in timesteps]
    np.testing.assert_allclose(batch["returns_to_go"][range(5), last, 0], left, rtol=1e-5)

    with torch.no_grad():
        predicted = policy.model(**batch).action_preds[range(5), last].numpy()
    taken = played.trajectories.actions[before + timesteps]
    if policy.action_type == "discrete":
        np.testing.assert_array_equal(predicted.argmax(-1), taken)
    else:
        np.testing.assert_allclose(policy.processor.denormalize_actions(predicted), taken, atol=2e-5)
        assert np.ptp(taken) > 0.01  # or there would be nothing to compare


def test_spaced_windows_do_not_overlap_and_reach_all_episodes():
    policy = pendulum_policy()
    played = play_episodes(policy, "Pendulum-v1", -400.0, 2, seed=0, progress=False)
    windows = DecisionWindows(policy, played)
    steps = windows.spaced(most=1000)["timesteps"]
    assert steps.shape == (2 * 200 // K, K)
    assert sorted(steps.flatten().tolist()) == sorted(2 * list(range(200)))
    few = windows.spaced(most=8)["timesteps"]
    assert few.shape == (8, K) and few[0].tolist() == few[4].tolist()


def test_episodes_of_a_data_set_are_read_with_their_own_returns_to_go():
    policy = breakout_policy()
    played = chosen_episodes(policy, str(BREAKOUT), 2, seed=1)
    again = chosen_episodes(policy, str(BREAKOUT), 2, seed=1)
    assert len(played.numbers) == 2 and played.numbers == again.numbers
    np.testing.assert_array_equal(played.returns_to_go, played.trajectories.returns_to_go)
    assert played.trajectories.num_episodes == 2


def test_actions_of_a_data_set_are_what_the_checkpoint_was_trained_on(tmp_path):
    episode = {"observations": [[0.0] * 4] * 3, "actions": [[0, 1], [1, 0], [0, 1]], "rewards": [1.0] * 3}
    (tmp_path / "one-hot.json").write_text(json.dumps([episode]))
    played = chosen_episodes(cartpole_policy(), str(tmp_path / "one-hot.json"), 1, seed=0)
    assert played.trajectories.actions.tolist() == [1, 0, 1]


# ---------------------------------------------------------------------------------------------------- measurements


def test_everything_is_measured_and_stated():
    policy = pendulum_policy()
    found = inspect_checkpoint(
        policy, "me/pendulum", target_returns=[-900, -300], episodes=2, timesteps=(20, 49), seed=7, progress=False
    )
    assert found.left_out == {}
    assert found.protocol["target_return"] == -300 and found.protocol["windows"] == 2 * 200 // K
    assert [row["number"] for row in found.protocol["episodes"]] == [7, 8]
    assert found.protocol["command"] == (
        "hf-decision-mamba inspect me/pendulum --target-return -900 -300 --timesteps 20 49 --episodes 2 --seed 7"
    )
    layers = policy.model.config.n_layer
    assert found.token_types == ("return", "previous_action", "state")
    assert found.surface.shape == (layers, 30, K, 3) and np.isfinite(found.surface).all()
    assert found.timesteps[[0, -1]].tolist() == [20, 49]
    assert found.curves.shape == (layers, K) and len(found.decays) == layers
    assert all(fit.rate_interval[0] <= fit.rate <= fit.rate_interval[1] for fit in found.decays)
    assert found.context.step_removed.shape == (80, K - 1) and found.action_spread > 0
    assert found.time_constants.steps.shape == (layers, 5)
    assert {row["target_return"] for row in found.conditioning.episodes} == {-900, -300}

    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert np.shape(numbers["attention"]["mean_over_layers"]) == (3, 30, K)
    assert numbers["decay"][1]["rate"] == found.decays[1].rate
    assert len(numbers["effective_context"]["older_removed"]) == K - 1


@pytest.mark.parametrize(
    ("own", "targets"), [(3600.0, [900, 1800, 2700, 3600, 4500]), (-300.0, [-1200, -600, -400, -300, -240]), (0.0, [0])]
)
def test_targets_lie_around_the_checkpoints_own(own, targets, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "hf_decision_mamba.analysis.inspection.evaluate_policy", lambda *_, **options: asked.update(options)
    )
    policy = pendulum_policy(target_return=own, context_length=1)
    inspect_checkpoint(policy, "here", episodes=1, progress=False)
    assert asked["target_returns"] == targets


@pytest.mark.parametrize(
    ("model", "context_length", "missing", "because"),
    [
        (pendulum_transformer, K, ["attention", "decay", "time_constants"], "no Mamba layers"),
        (
            lambda: DecisionMLPModel(DecisionMLPConfig(state_dim=3, act_dim=1, hidden_size=8, n_layer=1)),
            1,
            ["attention", "decay", "effective_context", "time_constants"],
            "no Mamba layers",
        ),
        (lambda: pendulum_model("gru"), K, ["attention", "decay", "time_constants"], "A GRU has no Mamba layers"),
        (lambda: None, 1, ["attention", "decay", "effective_context"], "decides from one step"),
    ],
    ids=["decision transformer", "rvs", "gru", "a context of one step"],
)
def test_what_a_model_does_not_have_is_left_out(model, context_length, missing, because):
    policy = pendulum_policy(model(), context_length)
    found = inspect_checkpoint(policy, "here", target_returns=[-300], episodes=1, progress=False)
    assert sorted(found.left_out) == missing and because in found.left_out["attention"]
    numbers = found.to_dict()
    assert [name for name in sorted(numbers) if numbers[name] is None] == missing


def test_images_and_discrete_actions_of_a_data_set(monkeypatch):
    monkeypatch.chdir(BREAKOUT.parents[1])
    found = inspect_checkpoint(breakout_policy(), "here", data=str(BREAKOUT), episodes=2, progress=False)
    assert sorted(found.left_out) == ["return_conditioning"] and found.conditioning is None
    assert found.protocol["data"] == "data/breakout-tiny.parquet" and found.action_spread is None
    assert found.timesteps[0] == 0 and len(found.timesteps) == max(x["length"] for x in found.protocol["episodes"])
    assert np.isnan(found.surface[:, 0, 1:]).all()  # the first decision has no past
    removed = found.context.step_removed
    assert ((removed >= 0) | np.isnan(removed)).all() and np.nanmax(removed) <= 1


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"env_id": None}, {}, "No environment: this checkpoint stores none.*--env-id Hopper-v5.*--data SOURCE"),
        ({"target_return": None}, {}, "No target return: this checkpoint stores none.*--target-return"),
        ({}, {"env_id": "CartPole-v1"}, "CartPole-v1 observes 4 dimensions"),
        ({}, {"data": str(BREAKOUT)}, r"image states of shape \(84, 84\) and 4 discrete actions, but.*shape \(3,\)"),
        ({}, {"data": str(BREAKOUT), "target_returns": [1.0]}, "nothing is played"),
        ({}, {"timesteps": (300, 600)}, "300 to 600 lie beyond the longest episode, which has 200 steps"),
        ({}, {"timesteps": (5, 5)}, r"timesteps=\(5, 5\) must be two time steps"),
        ({}, {"episodes": 0}, "episodes=0 must be at least 1"),
    ],
)
def test_refusals(settings, options, message):
    with pytest.raises(ValueError, match=message):
        inspect_checkpoint(pendulum_policy(**settings), "here", **{"episodes": 1, **options}, progress=False)


def test_episodes_longer_than_the_model_knows(tmp_path):
    episode = {"observations": [[0.0] * 3] * 201, "actions": [[0.0]] * 201, "rewards": [0.0] * 201}
    (tmp_path / "long.json").write_text(json.dumps([episode]))
    with pytest.raises(ValueError, match=r"episode of 201 steps.*max_ep_len=200"):
        inspect_checkpoint(
            pendulum_policy(pendulum_transformer()), "here", data=str(tmp_path / "long.json"), progress=False
        )


def test_parts_of_observations_and_arguments_of_the_environment_are_the_checkpoints():
    """Played or read from data, windows hold the observations as the model reads them, and actions from 0 on."""

    class Doors(gymnasium.Env):
        observation_space = gymnasium.spaces.Dict(
            [("room", gymnasium.spaces.Discrete(2)), ("light", gymnasium.spaces.Box(0, 1, (1,)))]
        )
        action_space = gymnasium.spaces.Discrete(2, start=5)

        def __init__(self, steps=4):
            self.last = steps

        def reset(self, *, seed=None, options=None):
            self.steps = 0
            return {"room": 1, "light": np.float32([0.5])}, {}

        def step(self, action):
            assert self.action_space.contains(action)
            self.steps += 1
            return {"room": 0, "light": np.float32([0.1])}, 1.0, self.steps == self.last, False, {}

    config = DecisionMambaConfig(state_dim=3, act_dim=2, action_type="discrete", hidden_size=8, n_layer=1, state_size=2)
    parts = describe_observations("here", gymnasium.spaces.Dict(Doors.observation_space.spaces.copy()))
    stored = {"observation_parts": parts, "action_start": 5, "env_kwargs": {"steps": 3}, "env_id": "Doors-v0"}
    processor = DecisionMambaProcessor([0.0] * 3, [1.0] * 3, target_return=3.0, context_length=2, **stored)
    policy = DecisionMambaPolicy(DecisionMambaModel(config), processor)
    gymnasium.register("Doors-v0", Doors, disable_env_checker=True)
    try:
        played = play_episodes(policy, "Doors-v0", 3.0, 2, seed=0, progress=False, env_kwargs={"steps": 5})
        found = inspect_checkpoint(policy, "here", episodes=1, progress=False)
    finally:
        del gymnasium.registry["Doors-v0"]
    assert played.trajectories.lengths.tolist() == [5, 5] and played.trajectories.actions.max() < 2
    np.testing.assert_allclose(played.trajectories.observations[:2], [[0.5, 0, 1], [0.1, 1, 0]])
    assert found.protocol["env_kwargs"] == {"steps": 3} and found.protocol["episodes"][0]["length"] == 3
    assert found.conditioning.env_kwargs == {"steps": 3}


def test_without_the_environments_package_a_data_set_is_offered(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Rollouts need gymnasium.")

    monkeypatch.setattr("hf_decision_mamba.analysis.episodes.make_environments", missing)
    with pytest.raises(ImportError, match=r"need gymnasium.*--data SOURCE"):
        inspect_checkpoint(pendulum_policy(), "here", progress=False)


def test_what_imitates_is_looked_into_without_returns(tmp_path):
    def imitating(**settings):
        return pendulum_policy(make_model(state_dim=3, act_dim=1, conditioning="none"), **settings)

    random = np.random.default_rng(0)
    episodes = [{"observations": random.normal(size=(9, 3)).tolist(), "actions": [[0.1]] * 9} for _ in range(3)]
    datasets.Dataset.from_list(episodes).to_parquet(tmp_path / "bare.parquet")
    source = str(tmp_path / "bare.parquet")
    of_data = inspect_checkpoint(imitating(), "here", data=source, episodes=2, memory=True, progress=False)
    assert [row["return"] for row in of_data.protocol["episodes"]] == [None, None]
    played = inspect_checkpoint(imitating(target_return=None), "here", episodes=1, timesteps=(0, 9), progress=False)
    assert played.left_out == {"return_conditioning": "This policy is asked for nothing: it imitates its data."}
    assert played.protocol["episodes"][0]["return"] < 0 and played.protocol["target_return"] is None
    for found, unsaid in ((of_data, ("their return", "returns-to-go")), (played, (", target return",))):
        write_inspection(found, tmp_path / "page")
        page = (tmp_path / "page" / "inspection.html").read_text()
        assert "their length" in page and not [row for row in unsaid if row in page]
    with pytest.raises(ValueError, match="has no rewards, but the checkpoint is asked for a return; give data that h"):
        inspect_checkpoint(pendulum_policy(), "here", data=source, progress=False)
    with pytest.raises(ValueError, match=r"target_returns=\[1.0\] cannot be asked for: this checkpoint imitates its"):
        inspect_checkpoint(imitating(), "here", target_returns=[1.0], progress=False)


@pytest.fixture
def reach():
    gymnasium.register("Reach-v0", Reach, max_episode_steps=9)
    yield
    del gymnasium.registry["Reach-v0"]


def goal_policy(**overrides) -> DecisionMambaPolicy:
    model = make_model(**{"state_dim": 3, "act_dim": 2, "conditioning": "goal", "goal_dim": 2, **overrides})
    stored = {"goal_mean": [0.5, 0.0], "goal_std": [1.0, 2.0], "context_length": K, "env_id": "Reach-v0"}
    return DecisionMambaPolicy(model, DecisionMambaProcessor([0.0] * 3, [1.0] * 3, **stored))


@pytest.mark.usefixtures("reach")
def test_what_is_asked_for_goals_is_looked_into_with_them(tmp_path):
    policy = goal_policy()
    played = play_episodes(policy, "Reach-v0", None, 2, seed=3, progress=False)
    timesteps = np.array([0, 3, played.trajectories.lengths[1] - 1])
    batch = DecisionWindows(policy, played).read(1, timesteps)
    last = batch["attention_mask"].sum(1) - 1
    with torch.no_grad():
        predicted = policy.model(**batch).action_preds[range(3), last].numpy()
    taken = played.trajectories.actions[played.trajectories.lengths[0] + timesteps]
    np.testing.assert_allclose(predicted, taken, atol=1e-5)

    found = inspect_checkpoint(policy, "here", episodes=1, timesteps=(0, 8), progress=False)
    assert found.left_out == {"return_conditioning": "This policy is asked for goals, and for no return."}
    assert "goal" in found.token_types and found.context is not None and found.time_constants is not None
    write_inspection(found, tmp_path / "page")
    page = (tmp_path / "page" / "inspection.html").read_text()
    assert "to goals" in page and "target return" not in page


def test_data_with_goals_are_looked_into(tmp_path):
    random = np.random.default_rng(0)

    def kept(**columns) -> str:
        steps = {"observations": (9, 3), "actions": (9, 2), **columns}
        rows = [{name: random.uniform(-1, 1, shape).tolist() for name, shape in steps.items()} for _ in range(3)]
        path = tmp_path / f"{'-'.join(steps)}.parquet"
        datasets.Dataset.from_list(rows).to_parquet(path)
        return str(path)

    policy = goal_policy()
    recorded, achieved = kept(goals=(9, 2)), kept(achieved_goals=(9, 2))
    for source, goals in ((recorded, "goals"), (achieved, "achieved_goals")):
        played = chosen_episodes(policy, source, 2, seed=0)
        batch = DecisionWindows(policy, played).read(1, np.array([8]))
        expected = getattr(played.trajectories, goals)[9:18][-1]
        np.testing.assert_allclose(batch["goals"][0, -1], (expected - [0.5, 0.0]) / [1.0, 2.0], rtol=1e-5)
        assert inspect_checkpoint(policy, "here", data=source, episodes=2, progress=False).curves is not None
    for source, held in ((kept(), "no goals"), (kept(goals=(9, 4)), "goals of 4 numbers")):
        with pytest.raises(ValueError, match=f"has {held}, but the checkpoint is asked for goals of 2"):
            inspect_checkpoint(policy, "here", data=source, progress=False)
    with pytest.raises(ValueError, match="asked for goals, and its memory is not followed yet"):
        inspect_checkpoint(policy, "here", memory=True, progress=False)
    with pytest.raises(ValueError, match=r"target_returns=\[1.0\] cannot be asked for: this checkpoint is asked for g"):
        inspect_checkpoint(policy, "here", target_returns=[1.0], progress=False)
