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
    assert trajectories.lengths.tolist() == [len(one["rewards"]) for one in rollouts]
    np.testing.assert_array_equal(
        trajectories.observations, np.concatenate([one["observations"][:-1] for one in rollouts])
    )
    last = trajectories.step_offsets()[1:] - 1
    assert trajectories.terminations[last].tolist() == [True, True, True, False]
    assert trajectories.truncations[last].tolist() == [False, False, False, True]


def test_flat_columns_are_cut_where_an_episode_ended() -> None:
    columns = flat()
    trajectories = load_trajectories(columns)
    assert trajectories.lengths.tolist() == [2, 3, 1]
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
        ({"terminals": None, "dones": np.arange(6) == 1}, [1], [4, 5]),
        ({"terminals": None, "timeouts": None, "dones": np.arange(6) % 2}, [1, 3, 5], []),
    ],
    ids=[
        "never timed out",
        "both at the end",
        "timeouts only",
        "terminals and dones",
        "timeouts and dones",
        "dones only",
    ],
)
def test_how_flat_episodes_ended(flags: dict[str, Any], terminations: list[int], truncations: list[int]) -> None:
    trajectories = load_trajectories(flat(**flags))
    assert np.flatnonzero(trajectories.terminations).tolist() == terminations
    assert np.flatnonzero(trajectories.truncations).tolist() == truncations


def test_without_truncations_episodes_end_at_terminations_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load_trajectories(flat(timeouts=None)).lengths.tolist() == [2, 4]
    assert "has no truncations (timeouts): its episodes end at terminations only" in caplog.text


def following(observations: np.ndarray, last: Any = (3, 5)) -> np.ndarray:
    """What each step leads to: the next row, and something else at the last step of each episode."""
    after = np.roll(observations, -1, axis=0)
    after[list(last)] += 1
    return after


@pytest.mark.parametrize("frames", [False, True])
def test_what_a_step_led_to_shows_that_an_episode_ended(frames: bool, caplog: pytest.LogCaptureFixture) -> None:
    seen = np.random.default_rng(0).integers(0, 200, (6, 4, 5), np.uint8) if frames else flat()["observations"]
    flags = {"terminals": np.arange(6) == 1, "timeouts": np.zeros(6), "observations": seen}
    with caplog.at_level(logging.WARNING):
        trajectories = load_trajectories(flat(**flags, next_observations=following(seen)))
    assert trajectories.lengths.tolist() == [2, 2, 2]
    assert np.flatnonzero(trajectories.truncations).tolist() == [3, 5]
    assert "column 'next_observations': what 1 steps led to, the first of them step 3, is not the observ" in caplog.text
    caplog.clear()
    rounded = following(seen, last=[1, 5]).astype(seen.dtype if frames else np.float16)
    assert load_trajectories(flat(**flags, next_observations=rounded)).lengths.tolist() == [2, 4]
    one = {**flags, "terminals": np.zeros(6), "next_observations": following(seen, last=[5])}
    assert load_trajectories(flat(**one)).lengths.tolist() == [6]
    assert not caplog.text


def test_steps_that_do_not_follow_on_one_another_are_no_trajectories() -> None:
    seen = flat()["observations"]
    with pytest.raises(
        ValueError, match=r"what 3 of 6 steps led to is not the observation of the step after, .* order"
    ):
        load_trajectories(flat(next_observations=following(seen, last=[0, 2, 3])))
    with pytest.raises(ValueError, match=r"'next_observations': shape \(6, 2\), where the observations have \(6, 3\)"):
        load_trajectories(flat(next_observations=seen[:, :2]))


def test_frames_and_slices_of_episodes() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 4, 5), np.uint8)
    trajectories = load_trajectories(flat(observations=frames), split="train[1:]")
    assert trajectories.lengths.tolist() == [3, 1]
    np.testing.assert_array_equal(trajectories.observations, frames[2:])


def test_rewards_and_flags_may_be_columns_of_one_number() -> None:
    shaped = {name: flat()[name].reshape(-1, 1) for name in ("rewards", "terminals", "timeouts")}
    np.testing.assert_array_equal(load_trajectories(flat(**shaped)).rewards, load_trajectories(flat()).rewards)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "has no episodes"),
        ([episode(), 7], "episode 1 is of type int; expected a dict of its columns"),
        ([episode(actions=None)], "no column 'actions' for the actions; its columns are observations, rewards, term"),
        ([episode(), episode(rewards=None)], "episode 1 has no column 'rewards', which others have"),
        ([episode(rewards=None), episode(), episode()], "episode 0 has no column 'rewards', which others have"),
        (
            [episode(), episode(truncations=[False, True]), episode()],
            "episode 1 has a column 'truncations', which others have not; every episode needs the same columns",
        ),
        ([episode(), episode(0)], "episode 1 is empty in column 'observations'.* remove it"),
        ([episode(), {**episode(0), "observations": []}], "episode 1 is empty in column 'observations'.* remove it"),
        ([episode(rewards=[1.0])], "episode 0: .* differs, 1 in column 'rewards' and 2 in the others"),
        ([episode(2, observations=np.zeros((4, 3))), episode()], "episode 0: the number of steps differs, 4 .* and 2"),
        ([episode(3), episode(2, rewards=np.zeros(3))], "episode 1: .* 3 in column 'rewards' and 2 in the others"),
        (
            [episode(), episode(observations=np.zeros((2, 4)))],
            r"episode 1, column 'observations': .*\(4,\) a step, where",
        ),
        (
            [episode(observations=np.zeros((2, 4))), episode(), episode()],
            r"episode 0, column 'observations': .*\(4,\) a step, where other episodes have \(3,\)",
        ),
        (
            [episode(), episode(actions=np.zeros(2, int))],
            r"episode 1, column 'actions': int64 of \(\) a step, where other",
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
        ([episode(actions=np.zeros((2, 0)))], r"'actions': expected .*found shape \(2, 0\)"),
        ([episode(actions=["a", "b"])], r"'actions': expected \(steps, dimensions\) numbers, or \(steps,\) integers"),
        ([episode(actions=[0, 1 << 16])], "episode 0, step 1, column 'actions': the action is 65536, but discrete act"),
        ([episode(rewards=[3e38, 3e38])], "episode 0, step 0, column 'returns_to_go': the value is inf in float32"),
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
        (flat(rewards=np.zeros(5)), "the number of steps differs, 5 in column 'rewards' and 6 in the others"),
        (flat(actions=np.zeros((5, 2))), "the number of steps differs, 5 in column 'actions' and 6 in the others"),
        (flat(terminals=np.full(6, 3)), "step 0, column 'terminals': expected true or false .*found 3"),
        (flat(terminals=None, timeouts=None), "nothing says where its episodes end, .* max_episode_steps"),
        (flat(terminals=np.zeros(6), timeouts=None), "nothing says where its episodes end"),
        (flat(terminals=np.zeros(6), timeouts=np.zeros(6)), "nothing says where its episodes end.* set truncations"),
        (flat(terminals=None, timeouts=None, dones=np.zeros(6)), "nothing says where its episodes end"),
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


FORMS = {
    "integers": [2, 0, 1, 2],
    "a column of integers": [[2], [0], [1], [2]],
    "bytes": np.uint8([2, 0, 1, 2]),
    "whole numbers": [2.0, 0.0, 1.0, 2.0],
    "a column of whole numbers": [[2.0], [0.0], [1.0], [2.0]],
    "one-hot integers": np.eye(3, dtype=int)[[2, 0, 1, 2]],
    "one-hot numbers": np.eye(3)[[2, 0, 1, 2]],
}


@pytest.mark.parametrize("flat_columns", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_one_integer_a_step_is_a_discrete_action_and_what_could_be_one_is_named(
    form: str, flat_columns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    columns = episode(4, actions=np.asarray(FORMS[form]))
    source: Any = columns if flat_columns else [columns]
    if flat_columns:
        columns["truncations"] = np.zeros(4)
    clear = form in ("integers", "a column of integers", "bytes")
    assert load_trajectories(source).action_type == ("discrete" if clear else "continuous")
    assert ("column 'actions': the actions are" in caplog.text) != clear
    assert ("(--action_type discrete)" in caplog.text) != clear
    caplog.clear()
    discrete = load_trajectories(source, action_type="discrete")
    assert (discrete.actions.tolist(), discrete.act_dim) == ([2, 0, 1, 2], 3)
    continuous = load_trajectories(source, action_type="continuous")
    np.testing.assert_array_equal(continuous.actions, np.reshape(FORMS[form], (4, -1)).astype(np.float32))
    assert "action_type" not in caplog.text


def test_true_and_false_are_numbers_until_somebody_says_more(caplog: pytest.LogCaptureFixture) -> None:
    source = [episode(actions=[True, False])]
    assert load_trajectories(source).actions.tolist() == [[1], [0]]
    assert "column 'actions': the actions are true and false" in caplog.text
    assert load_trajectories(source, action_type="discrete").actions.tolist() == [1, 0]


def test_one_hot_actions_say_how_many_there_are() -> None:
    assert load_trajectories([episode(actions=np.eye(5)[[1, 0]])], action_type="discrete").act_dim == 5


@pytest.mark.parametrize(
    ("actions", "found"),
    [
        ([[0.0], [0.5]], "step 1, column 'actions': the action is 0.5, but discrete actions are whole numbers from 0"),
        ([[0.0], [np.nan]], "step 1, column 'actions': the action is nan"),
        ([[0.0], [-1.0]], "step 1, column 'actions': the action is -1, but discrete actions count from 0"),
        ([[0, 1], [1, 1]], r"step 1, column 'actions': the action is \[1.0, 1.0\], but .* one-hot; correct it, or say"),
        ([[0.0, 0.0], [1.0, 0.0]], r"step 0, column 'actions': the action is \[0.0, 0.0\]"),
    ],
)
def test_refuses_to_make_discrete_what_is_not(actions: Any, found: str) -> None:
    episodes = [episode(actions=np.eye(len(actions[0]))[[0, 0]]), episode(actions=actions)]
    with pytest.raises(ValueError, match=f"episode 1, {found}"):
        load_trajectories(episodes, action_type="discrete")


def test_refuses_an_action_type_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="action_type must be continuous or discrete, found 'both'"):
        load_trajectories([episode()], action_type="both")


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
