"""Arrays in memory: a list of episodes or flat columns become trajectories, and what is wrong with them is named."""

import logging
from typing import Any

import gymnasium
import numpy as np
import pytest

from hf_decision_mamba.data import Trajectories, load_trajectories


def episode(steps: int = 2, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """An episode that terminates; `changes` replace columns or, if None, drop them."""
    random = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        "observations": random.normal(size=(steps, 3)),
        "actions": random.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "rewards": np.arange(steps),
        "terminations": np.arange(steps) == steps - 1,
    }
    return {name: values for name, values in {**columns, **changes}.items() if values is not None}


def flat(steps: int = 6, **changes: Any) -> dict[str, Any]:
    """Flat columns as D4RL has them: an episode of two steps terminates, one of three is cut off by the time limit."""
    columns = {
        **episode(steps),
        "terminations": None,
        "terminals": np.arange(steps) == 1,
        "timeouts": np.arange(steps) == 4,
    }
    return {name: values for name, values in {**columns, **changes}.items() if values is not None}  # fmt: skip


def test_a_list_of_episodes() -> None:
    episodes = [episode(2), episode(3, seed=1, truncations=None)]
    trajectories = load_trajectories(episodes)
    assert repr(trajectories) == (
        "Trajectories('arrays in memory': 2 episodes, 5 steps, state_dim=3, act_dim=2, env_id=None)"
    )
    expected = np.concatenate([one["observations"] for one in episodes]).astype(np.float32)
    np.testing.assert_array_equal(trajectories.observations, expected)
    assert trajectories.rewards.tolist() == [0, 1, 0, 1, 2]
    assert trajectories.terminations.tolist() == [False, True, False, False, True]


def rollout(environment: gymnasium.Env, seed: int, steps: int) -> dict[str, list[Any]]:
    """An episode as one records it: the observation after the last action is there too."""
    observation, _ = environment.reset(seed=seed)
    kept: dict[str, list[Any]] = {
        name: [] for name in ("observations", "actions", "rewards", "terminated", "truncated")
    }
    for _ in range(steps):
        kept["observations"].append(observation)
        action = environment.action_space.sample()
        observation, *outcome, _ = environment.step(action)
        for name, value in zip(("actions", "rewards", "terminated", "truncated"), (action, *outcome), strict=True):
            kept[name].append(value)
        if outcome[1] or outcome[2]:
            break
    kept["observations"].append(observation)
    return kept


def test_rollouts_in_gymnasium_lose_the_observation_that_no_action_follows() -> None:
    environment = gymnasium.make("CartPole-v1")
    environment.action_space.seed(0)
    rollouts = [rollout(environment, seed, steps=200) for seed in range(3)] + [rollout(environment, 3, steps=2)]
    trajectories = load_trajectories(
        rollouts, columns={"terminations": "terminated", "truncations": "truncated"}
    )  # fmt: skip
    assert (trajectories.action_type, trajectories.act_dim) == ("discrete", 2)
    assert trajectories.lengths().tolist() == [len(one["rewards"]) for one in rollouts]
    np.testing.assert_array_equal(
        trajectories.observations, np.concatenate([one["observations"][:-1] for one in rollouts])
    )
    last = trajectories.episode_offsets[1:] - 1
    assert trajectories.terminations[last].tolist() == [True, True, True, False]
    assert trajectories.truncations[last].tolist() == [False, False, False, True]


def test_flat_columns_are_cut_where_an_episode_ended() -> None:
    columns = flat()
    trajectories = load_trajectories(columns)
    assert trajectories.lengths().tolist() == [2, 3, 1]
    assert np.flatnonzero(trajectories.terminations).tolist() == [1]
    assert np.flatnonzero(trajectories.truncations).tolist() == [4, 5]  # the last one is cut short
    np.testing.assert_array_equal(trajectories.actions, columns["actions"])


@pytest.mark.parametrize(
    ("flags", "terminations", "truncations"),
    [
        ({"timeouts": np.zeros(6)}, [1], [5]),
        ({"terminals": np.arange(6) == 5, "timeouts": np.arange(6) == 5}, [5], [5]),
        ({"terminals": None}, [], [4, 5]),
        ({"timeouts": None, "dones": np.arange(6) % 2}, [1], [3, 5]),
        ({"terminals": None, "timeouts": None, "dones": np.arange(6) % 2}, [1, 3, 5], []),
    ],
    ids=["never timed out", "both at the end", "timeouts only", "terminals and dones", "dones only"],
)
def test_how_flat_episodes_ended(flags: dict[str, Any], terminations: list[int], truncations: list[int]) -> None:
    trajectories = load_trajectories(flat(**flags))
    assert np.flatnonzero(trajectories.terminations).tolist() == terminations
    assert np.flatnonzero(trajectories.truncations).tolist() == truncations


def test_without_truncations_episodes_end_at_terminations_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load_trajectories(flat(timeouts=None)).lengths().tolist() == [2, 4]
    assert "has no truncations (timeouts): its episodes end at terminations only" in caplog.text


def test_frames_and_slices_of_episodes() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 4, 5), np.uint8)
    trajectories = load_trajectories(flat(observations=frames), split="train[1:]")
    assert trajectories.lengths().tolist() == [3, 1]
    np.testing.assert_array_equal(trajectories.observations, frames[2:])


def test_rewards_and_flags_may_be_columns_of_one_number() -> None:
    shaped = {name: flat()[name].reshape(-1, 1) for name in ("rewards", "terminals", "timeouts")}
    np.testing.assert_array_equal(load_trajectories(flat(**shaped)).rewards, load_trajectories(flat()).rewards)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "has no episodes"),
        ([episode(), 7], "episode 1 is of type int; expected a dict of its columns"),
        ([episode(rewards=None)], "no column 'rewards' for the rewards; its columns are observations, actions, term"),
        ([episode(), episode(rewards=None)], "episode 1 has no column 'rewards', which the first one has"),
        ([episode(), episode(0)], "episode 1 is empty in column 'observations'.* remove it"),
        ([episode(), {**episode(0), "observations": []}], "episode 1 is empty in column 'observations'.* remove it"),
        ([episode(rewards=[1.0])], "episode 0: the number of steps differs, 2 in column 'observations' and 1 in"),
        ([episode(2, observations=np.zeros((4, 3))), episode()], "episode 0: the number of steps differs, 4 .* and 2"),
        (
            [episode(3), episode(2, rewards=np.zeros(3))],
            "episode 1: .* 2 in column 'observations' and 3 in column 'rew",
        ),
        (
            [episode(), episode(observations=np.zeros((2, 4)))],
            r"episode 1, column 'observations': .*\(4,\) a step, where",
        ),
        (
            [episode(), episode(actions=np.zeros(2, int))],
            r"episode 1, column 'actions': int64 of \(\) a step, where the",
        ),
        ([episode(observations=[[1, 2], [3]])], "episode 0, column 'observations': steps of different dimensions"),
        (
            [episode(observations=[["a"], ["b"]])],
            r"episode 0, column 'observations': expected \(steps, dim.*found shape",
        ),
        ([episode(observations=np.zeros((2, 3), complex))], "'observations': expected .*of complex128"),
        ([episode(observations=np.zeros((2, 3), object))], "'observations': expected .*of object"),
        ([episode(observations=np.zeros(2))], r"'observations': expected \(steps, dimensions\) numbers, or .*uint8"),
        ([episode(observations=np.zeros((2, 8, 8)))], "'observations': expected .* uint8 for grey frames"),
        ([episode(actions=[0.1, 0.2])], r"'actions': expected \(steps, dimensions\) numbers, or \(steps,\) integers"),
        ([episode(rewards=np.zeros((2, 2)))], r"'rewards': expected \(steps,\) numbers, found shape \(2, 2\)"),
        ([episode(terminations=[0, 2])], "episode 0, step 1, column 'terminations': expected true or false .* found 2"),
        ([episode(), episode(terminations=[True, True])], "episode 1, step 0, column 'terminations': the episode ends"),
        ([episode(), episode(rewards=[0, np.nan])], "episode 1, step 1, column 'rewards': the value is nan"),
        (
            [episode(), episode(observations=np.full((2, 3), 1e300))],
            "episode 1, step 0, column 'observations', dim.* inf",
        ),
        (
            [episode(actions=[-1, 0])],
            "episode 0, step 0, column 'actions': the action is -1, but discrete actions count",
        ),
        (flat(rewards=np.zeros(5)), "5 steps in column 'rewards' and 6 steps? in column 'actions'|5 steps .* and 6 in"),
        (flat(terminals=np.full(6, 3)), "step 0, column 'terminals': expected true or false .*found 3"),
        (flat(terminals=None, timeouts=None), "nothing says where its episodes end, .* max_episode_steps"),
        (flat(terminals=np.zeros(6), timeouts=None), "nothing says where its episodes end"),
        ({name: values[:0] for name, values in flat().items()}, "has no steps"),
    ],
)
def test_names_what_is_wrong(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_trajectories(source)
    assert "data set 'arrays in memory'" in str(raised.value)


@pytest.mark.parametrize("option", [{"config": "a"}, {"revision": "main"}, {"split": "test"}])
def test_refuses_options_that_would_do_nothing(option: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(option.values()))):
        load_trajectories([episode()], **option)  # type: ignore[arg-type]


def actions_of(actions: Any) -> Trajectories:
    return load_trajectories([episode(), episode(actions=actions)])


def test_actions_a_little_outside_of_their_space_are_clipped_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trajectories = actions_of([[0.5, -1.25], [1.375, 1.0]])
    assert trajectories.actions[2:].tolist() == [[0.5, -1], [1, 1]]
    assert "episode 1, step 1, column 'actions', dimension 0: the action is 1.375, outside" in caplog.text
    assert "those of 2 steps in 4" in caplog.text


def test_rounding_is_clipped_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert actions_of([[np.nextafter(np.float32(1), np.float32(2)), 0.0], [0, 0]]).actions.max() == 1
    assert not caplog.text


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([[0.0, np.nan], [90.0, 0.0]], "episode 1, step 0, column 'actions', dimension 1: the value is nan"),
        ([[0.0, np.inf], [0.0, 0.0]], "episode 1, step 0, column 'actions', dimension 1: the value is inf"),
    ],
)
def test_refuses_actions_that_are_not_finite(actions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        actions_of(actions)
