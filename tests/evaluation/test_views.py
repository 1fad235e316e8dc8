"""A policy that learned from a view acts in an environment that shows the same, without being told, or not at all."""

import gymnasium
import numpy as np
import pytest
from factories import make_model
from gymnasium.vector import SyncVectorEnv

from hf_decision_mamba import DecisionMambaPolicy, DecisionMambaProcessor, evaluate_policy
from hf_decision_mamba.evaluation.environments import make_environments
from hf_decision_mamba.evaluation.video import record_videos
from hf_decision_mamba.views import with_views

POLE, BOTH = "InvertedPendulum-v5", ("positions_only", "delayed_reward")
PLAYED = {"episodes": 2, "max_episode_steps": 12, "progress": False}


def policy_of(*views, states=None, **settings):
    states = (2 if "positions_only" in views else 4) if states is None else states
    processor = DecisionMambaProcessor(
        state_mean=[0.0] * states,
        state_std=[0.1] * states,
        return_scale=10.0,
        target_return=100.0,
        context_length=4,
        env_id=POLE,
        action_low=[-3.0],
        action_high=[3.0],
        env_kwargs=dict.fromkeys(views, True) or None,
        **settings,
    )
    return DecisionMambaPolicy(make_model(state_dim=states, act_dim=1), processor)


def made(*views):
    return with_views(gymnasium.make(POLE), views)


def test_the_environment_shows_what_the_policy_was_trained_on():
    policy = policy_of(*BOTH)
    for env, env_kwargs in [
        (None, None),
        (POLE, None),
        (POLE, {"reset_noise_scale": 0.01}),
        (f"gymnasium.envs.mujoco:{POLE}", None),
        (made(), None),
        (made(*BOTH), None),
        (made, None),
        (lambda: made("positions_only"), None),
    ]:
        result = evaluate_policy(policy, env, env_kwargs=env_kwargs, **PLAYED)
        assert result.env_kwargs == {**(env_kwargs or {}), **dict.fromkeys(BOTH, True)}
        assert "positions_only=True, delayed_reward=True" in result.table()
        assert all(row["return"] > 1 for row in result.episodes)


def test_returns_are_those_of_the_whole_environment_when_nothing_depends_on_rewards():
    targets = [evaluate_policy(policy_of(*views, states=4), **PLAYED) for views in ((), ("delayed_reward",))]
    lengths = [[row["length"] for row in result.episodes] for result in targets]
    for result, seen in zip(targets, lengths, strict=True):
        assert [row["return"] for row in result.episodes] == pytest.approx(seen, abs=1)


def test_rewards_do_not_lower_what_is_still_to_come_until_the_end():
    plain, delayed = policy_of(), policy_of("delayed_reward")
    for policy, left in ((plain, 97), (delayed, 100)):
        policy.reset()
        policy.act(np.zeros(4))
        policy.act(np.zeros(4), 3.0)  # of an environment without the view
        assert policy.returns_to_go == [left]
    with pytest.raises(ValueError, match="reward is nan"):
        delayed.act(np.zeros(4), np.nan)


@pytest.mark.parametrize(
    ("views", "env", "env_kwargs", "why"),
    [
        (
            BOTH,
            POLE,
            {"positions_only": False},
            "positions_only=false .*, but the policy was trained on",
        ),
        ((), POLE, {"delayed_reward": True}, "delayed_reward=true .* but the policy was trained on all that there is"),
        ((), lambda: made("delayed_reward"), None, "InvertedPendulum-v5 shows delayed_reward .* trained on all that"),
        (
            ("positions_only",),
            lambda: made(*BOTH),
            None,
            "shows pos.* delayed_reward .* trained on positions_only",
        ),
        (("positions_only",), "Pendulum-v1", None, "positions_only: Pendulum-v1 does not observe positions"),
        (("positions_only",), lambda: gymnasium.make("Pendulum-v1"), None, "positions_only: Pendulum-v1 does not"),
    ],
)
def test_a_mismatch_is_refused_by_name(views, env, env_kwargs, why):
    with pytest.raises(ValueError, match=why):
        evaluate_policy(policy_of(*views), env, env_kwargs=env_kwargs, **PLAYED)


def test_rows_of_a_vector_environment_have_their_own():
    with pytest.raises(ValueError, match="positions_only cannot be put around the rows of InvertedPendulum-v5"):
        evaluate_policy(policy_of(*BOTH), SyncVectorEnv([made, made]), episodes=2, progress=False)
    envs = SyncVectorEnv([lambda: made(*BOTH)] * 2)
    with pytest.raises(ValueError, match="max_episode_steps cannot be put around the rows"):
        evaluate_policy(policy_of(*BOTH), envs, **PLAYED)
    result = evaluate_policy(policy_of(*BOTH), envs, episodes=2, progress=False)
    assert result.env_kwargs == dict.fromkeys(BOTH, True)
    assert [row["return"] for row in result.episodes] == pytest.approx(
        [row["return"] for row in evaluate_policy(policy_of(*BOTH), episodes=2, progress=False).episodes]
    )


def test_act_says_what_it_was_trained_on():
    with pytest.raises(ValueError, match=r"shape \(4,\); this model reads \(2,\) .* trained on positions_only"):
        policy_of("positions_only").act(np.zeros(4))


def test_a_video_is_of_the_episode_that_was_counted(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    result = evaluate_policy(policy_of(*BOTH), **PLAYED)
    ((path, value),) = record_videos(result, tmp_path, progress=False).items()
    assert path.is_file() and value == result.episodes[0]["return"]


def test_environments_are_made_with_views_among_their_arguments():
    envs = make_environments(POLE, 2, 3, env_kwargs={"positions_only": True, "delayed_reward": True})
    observations, _ = envs.reset(seed=[0, 1])
    assert observations.shape == (2, 2)
    rewards = [envs.step(np.zeros((2, 1), np.float32))[1].tolist() for _ in range(3)]
    assert rewards[:2] == [[0, 0], [0, 0]] and min(rewards[2]) == pytest.approx(3)
    envs.close()
