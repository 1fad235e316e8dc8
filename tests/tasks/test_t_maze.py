"""The T-Maze: only the clue tells what is right at the junction, and its expert is always right."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from hf_decision_mamba.tasks import TMaze


def play(env, choose, seed=0):
    """Observations (T + 1, S), rewards (T,) and the last info of one episode."""
    seen, _ = env.reset(seed=seed)
    observations, rewards, over, info = [seen], [], False, {}
    while not over:
        seen, reward, over, truncated, info = env.step(choose(env, seen))
        assert not truncated
        observations.append(seen)
        rewards.append(reward)
    return np.array(observations), np.array(rewards), info


def expert(env, seen):
    return env.unwrapped.expert_action()


def test_gymnasium_knows_it_and_finds_nothing_wrong():
    env = gymnasium.make("hf_decision_mamba/TMaze-v0", length=(3, 6), told=2, lures=0.2)
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("told", [1, 3])
def test_expert_walks_the_corridor_and_answers_each_junction(told):
    env = TMaze(length=5, clues=4, told=told)
    for seed in range(8):
        observations, rewards, info = play(env, expert, seed)
        assert rewards.sum() == pytest.approx(1) and info == {"junction": True, "correct": True, "success": True}
        assert rewards[:5].tolist() == [0] * 5 and np.allclose(rewards[5:], 1 / told) and len(rewards) == 5 + told
        clues, corridor, junctions = observations[:told], observations[told:5], observations[5 : 5 + told]
        assert (clues[:, -2] == 1).all() and (clues[:, :4].sum(1) == 1).all() and (clues[:, -1] == 0).all()
        assert (corridor == 0).all()
        assert (junctions == [0, 0, 0, 0, 0, 1]).all()


def test_nothing_but_the_clue_tells_branches_apart():
    env = TMaze(length=4)
    by_clue = {}
    for seed in range(20):
        observations, _, _ = play(env, expert, seed)
        by_clue[int(observations[0, :2].argmax())] = observations
    assert set(by_clue) == {0, 1}
    assert (by_clue[0][1:] == by_clue[1][1:]).all() and (by_clue[0][0] != by_clue[1][0]).any()


def test_a_guess_is_right_half_of_the_time_and_standing_still_costs():
    env = TMaze(length=4)
    returns = [play(env, lambda env, seen: int(seen[-1] > 0), seed)[1].sum() for seed in range(200)]
    assert set(returns) == {0, 1} and 0.4 < np.mean(returns) < 0.6
    _, rewards, info = play(env, lambda env, seen: 1 if seen[-1] == 0 else env.unwrapped.expert_action())
    assert rewards.tolist() == [-0.25] * 4 + [1] and not info["success"]


def test_lengths_are_drawn_and_a_seed_repeats_an_episode():
    env = TMaze(length=(3, 6), noise=0.5, lures=0.5)
    episodes = [play(env, expert, seed)[0] for seed in range(60)]
    assert {len(episode) - 2 for episode in episodes} == {3, 4, 5, 6}
    assert (play(env, expert, 7)[0] == episodes[7]).all()


@pytest.mark.parametrize(("clues", "told"), [(16, 1), (256, 1), (16, 4), (256, 16)])
def test_many_clues_are_told_in_their_order_past_lures(clues, told):
    env = TMaze(length=40, clues=clues, told=told, lures=0.5)
    assert env.action_space.n == 1 + clues
    observations, rewards, info = play(env, expert, seed=clues)
    shown = observations[:told, :clues].argmax(1)
    assert info["success"] and rewards[40:].sum() == pytest.approx(1) and len(rewards) == 40 + told
    wanted = iter(shown + 1)
    _, rewards, _ = play(env, lambda env, seen: next(wanted) if seen[-1] else 0, seed=clues)
    assert rewards.sum() == pytest.approx(1)
    alike = observations[told:40][observations[told:40, :clues].any(1)]
    assert len(alike) > 5 and (alike[:, :clues].sum(1) == 1).all() and (alike[:, -2:] == 0).all()
    backwards = iter(shown[::-1] + 1)
    _, rewards, info = play(env, lambda env, seen: next(backwards) if seen[-1] else 0, seed=clues)
    assert info["success"] == (told == 1) and (rewards.sum() > 0.99) == (told == 1)


def test_lures_do_not_count():
    observations, _, info = play(TMaze(length=200, lures=0.3), expert)
    corridor = observations[1:200]
    shown = corridor[:, :2].sum(1)
    assert 30 < shown.sum() < 90 and (corridor[:, 2:] == 0).all() and info["success"]


@pytest.mark.parametrize(
    "arguments",
    [{"length": 0}, {"length": (4, 3)}, {"clues": 1}, {"told": 0}, {"told": 11}, {"noise": -1}, {"lures": 1.5}],
)
def test_what_makes_no_maze_is_refused_by_name(arguments):
    ((name, _),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}="):
        TMaze(**arguments)
