"""Data in a view: what is left of observations and rewards, and that it is said; what cannot be seen so is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from factories import HOPPER

from hf_decision_mamba import load_trajectories
from hf_decision_mamba.data.overview import overview_of
from hf_decision_mamba.data.views import views_to_add


@pytest.fixture
def hopper(tmp_path):
    """Make the tiny data set one of which a JSON file says the environment."""

    def make(name="hopper", **environment):
        shutil.copy(HOPPER, tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.json").write_text(json.dumps({"env_id": "Hopper-v5", **environment}))
        return tmp_path / f"{name}.parquet"

    return make


def test_velocities_are_left_out_and_the_environment_says_so(hopper):
    whole = load_trajectories(hopper())
    positions = load_trajectories(hopper(), positions_only=True)
    assert (positions.observations == whole.observations[:, :5]).all() and positions.state_dim == 5
    assert positions.env_kwargs == {"positions_only": True} and whole.env_kwargs is None
    assert (positions.rewards == whole.rewards).all() and positions.statistics().state_mean.shape == (5,)
    assert positions.split(0.2, 0)[0].env_kwargs == {"positions_only": True}


def test_reward_comes_at_the_end_and_until_then_the_whole_return_is_still_to_come(hopper):
    whole, delayed = load_trajectories(hopper()), load_trajectories(hopper(), delayed_reward=True)
    assert delayed.env_kwargs == {"delayed_reward": True}
    assert (delayed.observations == whole.observations).all()
    assert delayed.returns() == pytest.approx(whole.returns(), rel=1e-6)
    for start, length, total in zip(delayed.starts, delayed.lengths, delayed.returns(), strict=True):
        rows = slice(start, start + length)
        assert (delayed.rewards[rows][:-1] == 0).all() and delayed.rewards[rows][-1] == np.float32(total)
        assert (delayed.returns_to_go[rows] == np.float32(total)).all()


def test_both_views_go_through_the_cache_and_together(hopper):
    for _ in range(2):  # the second one is mapped
        seen = load_trajectories(hopper(), positions_only=True, delayed_reward=True)
        assert seen.env_kwargs == {"positions_only": True, "delayed_reward": True}
        assert seen.state_dim == 5 and np.count_nonzero(seen.rewards) == seen.num_episodes


def test_a_selection_is_seen_without_its_neighbours(hopper):
    whole = load_trajectories(hopper())
    part = whole.select(np.arange(whole.num_episodes) % 2 == 1)
    seen = views_to_add("they", ["delayed_reward"], None, None).of(part)
    assert seen.returns() == pytest.approx(part.returns(), rel=1e-6)
    assert np.count_nonzero(seen.rewards[seen.starts + seen.lengths - 1]) == seen.num_episodes


def test_names_of_all_numbers_do_not_describe_some(hopper):
    names = [{"path": [f"number {number}"], "shape": [], "size": 1} for number in range(11)]
    assert load_trajectories(hopper(observation_parts=names)).observation_parts == names
    assert load_trajectories(hopper(observation_parts=names), delayed_reward=True).observation_parts == names
    assert load_trajectories(hopper(observation_parts=names), positions_only=True).observation_parts is None


def test_data_that_are_seen_so_already_stay(hopper):
    once = load_trajectories(hopper(), positions_only=True)
    again = views_to_add("they", ["positions_only"], once.env_kwargs, once.env_id).of(once)
    assert again is once


def test_arguments_of_the_environment_decide_what_a_position_is(hopper):
    source = hopper(env_kwargs={"exclude_current_positions_from_observation": False})
    with pytest.raises(ValueError, match=r"positions_only would leave out some of the 12 numbers .* the shape \(11,\)"):
        load_trajectories(source, positions_only=True)


@pytest.mark.parametrize(
    ("env_id", "why"),
    [
        (None, "'hopper': positions_only asks the environment what it shows, and nothing names it: correct"),
        ("Walker2d-v5", r"would leave out some of the 17 numbers that its environment shows, .* shape \(11,\)"),
        ("Pendulum-v1", "positions_only: Pendulum-v1 does not observe positions and velocities"),
        ("Hoper-v5", "positions_only asks Hoper-v5 what it shows, which cannot be made"),
    ],
)
def test_what_cannot_be_seen_so_is_refused_by_name(hopper, env_id, why):
    with pytest.raises(ValueError, match=why):
        load_trajectories(hopper(env_id=env_id), positions_only=True)


def test_views_of_several_sources_have_to_agree(hopper):
    seen = hopper("delayed", env_kwargs={"delayed_reward": True})
    with pytest.raises(ValueError, match="'whole' shows all that there is, and 'delayed' delayed_reward"):
        load_trajectories([hopper("whole"), seen])
    assert load_trajectories([seen, hopper("more", env_kwargs={"delayed_reward": True})]).env_kwargs


def test_inspect_data_shows_what_training_gets(hopper):
    found = overview_of(hopper(), positions_only=True, delayed_reward=True).summary
    assert found["observations"]["dimensions"] == 5 and found["rewards"]["min"] == 0
    assert found["rewards"]["max"] == pytest.approx(found["returns"]["max"])


def test_observations_of_another_shape_are_not_cut(hopper):
    positions = load_trajectories(hopper(), positions_only=True)
    with pytest.raises(ValueError, match=r"they are left out already: then say it in its card"):
        views_to_add("they", ["positions_only"], None, "Hopper-v5").of(replace(positions, env_kwargs=None))
