"""Views: MuJoCo without velocities, all reward at the end; where they can be put around, and how they are named."""

import gymnasium
import numpy as np
import pytest

from hf_decision_mamba.views import VIEWS, split_views, views_around, with_agreed_views, with_views


@pytest.mark.parametrize(
    ("env_id", "arguments", "skipped"),
    [
        ("Hopper-v5", {}, 1),
        ("HalfCheetah-v5", {}, 1),
        ("Walker2d-v5", {}, 1),
        ("Swimmer-v5", {}, 2),
        ("InvertedPendulum-v5", {}, 0),
        ("Hopper-v5", {"exclude_current_positions_from_observation": False}, 0),
    ],
)
def test_positions_are_the_models_own(env_id, arguments, skipped):
    env = with_views(gymnasium.make(env_id, **arguments), ["positions_only"])
    whole = gymnasium.make(env_id, **arguments)
    seen, _ = env.reset(seed=3)
    shown, _ = whole.reset(seed=3)
    for _ in range(4):
        assert (seen == env.unwrapped.data.qpos[skipped:]).all() and env.observation_space.contains(seen)
        assert (seen == shown[: len(seen)]).all() and len(shown) == len(seen) + env.unwrapped.model.nv
        action = env.action_space.sample()
        seen, *_ = env.step(action)
        shown, *_ = whole.step(action)


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize(("env_id", "positions"), [("Hopper-v4", 5), ("HalfCheetah-v4", 8), ("Walker2d-v4", 8)])
def test_older_versions_say_it_by_the_sizes_of_their_models(env_id, positions):
    env = with_views(gymnasium.make(env_id), ["positions_only"])
    seen, _ = env.reset(seed=0)
    assert seen.shape == (positions,) and (seen == env.unwrapped.data.qpos[-positions:]).all()


@pytest.mark.parametrize(
    ("env_id", "why"),
    [
        ("Ant-v5", "Ant-v5 observes qpos, qvel, cfrc_ext"),
        ("Reacher-v5", "Reacher-v5 does not observe positions and velocities"),
        ("InvertedDoublePendulum-v5", "InvertedDoublePendulum-v5 does not observe positions"),
        ("Pendulum-v1", "Pendulum-v1 does not observe positions and velocities of a MuJoCo model"),
    ],
)
def test_environments_of_other_observations_are_refused_by_name(env_id, why):
    with pytest.raises(ValueError, match=f"positions_only: {why}"):
        with_views(gymnasium.make(env_id), ["positions_only"])


def test_delayed_reward_is_the_return_at_the_last_step():
    plain = gymnasium.make("Pendulum-v1", max_episode_steps=6)
    env = with_views(gymnasium.make("Pendulum-v1", max_episode_steps=6), ["delayed_reward"])
    for seed in (0, 1):  # nothing is left of the episode before
        rewards, shown = [], []
        plain.reset(seed=seed)
        env.reset(seed=seed)
        for _ in range(6):
            rewards.append(plain.step(np.ones(1, np.float32))[1])
            shown.append(env.step(np.ones(1, np.float32))[1])
        assert shown == [0] * 5 + [pytest.approx(sum(rewards))] and sum(rewards) < -1


def test_views_are_put_around_once_and_in_one_order():
    env = with_views(gymnasium.make("Hopper-v5"), ["delayed_reward", "positions_only"])
    assert views_around(env) == ("positions_only", "delayed_reward")
    assert type(env).__name__ == "DelayedReward"
    assert with_views(env, ["positions_only", "delayed_reward"]) is env
    assert views_around(gymnasium.make("Hopper-v5")) == ()
    with pytest.raises(ValueError, match="'velocities_only' is no view of an environment; there are pos"):
        with_views(env, ["velocities_only"])


def test_views_stand_among_keyword_arguments():
    assert split_views({"positions_only": True, "delayed_reward": False, "a": 1}) == (("positions_only",), {"a": 1})
    assert split_views(None) == ((), {})
    with pytest.raises(ValueError, match="positions_only='yes' must be true or false"):
        split_views({"positions_only": "yes"})


def test_what_was_learned_follows_and_is_not_contradicted():
    learned = {"positions_only": True, "a": 1}
    assert with_agreed_views("they show", learned, None) == {"positions_only": True}
    assert with_agreed_views("they show", learned, {"b": 2}) == {"b": 2, "positions_only": True}
    assert with_agreed_views("they show", learned, {"positions_only": True}) == {"positions_only": True}
    assert with_agreed_views("they show", None, {"delayed_reward": False}) is None
    with pytest.raises(ValueError, match=r"positions_only=false .*, but they show positions_only \(pos"):
        with_agreed_views("they show", learned, {"positions_only": False})
    with pytest.raises(ValueError, match="delayed_reward=true for the environment, but they show all that there is"):
        with_agreed_views("they show", {}, {"delayed_reward": True})


def test_every_view_changes_something_of_data_and_says_what_it_shows():
    assert all((view.columns or view.rewards) and view.meaning for view in VIEWS.values())
