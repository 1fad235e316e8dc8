"""What a user's environment does wrong gets one line that names it, with the episode's seed and the step."""

import re

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from hf_decision_mamba.evaluation.environments import make_environments

GOALS = spaces.Dict({"place": spaces.Box(-1, 1, (2,)), "goal": spaces.Box(-1, 1, (1,))})


class Faulty(gymnasium.Env):
    """An episode of four steps; `fault` changes what it gives, from a step on."""

    action_space = spaces.Discrete(2)

    def __init__(self, fault=None, at=2, space=None):
        self.fault, self.at = fault, at
        self.observation_space = space or spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.give((self.sample(), {}), seed)

    def step(self, action):
        self.steps += 1
        return self.give((self.sample(), 1.0, self.steps == 4, False, {}))

    def sample(self):
        return {"place": np.zeros(2), "goal": np.zeros(1)} if self.observation_space is GOALS else np.zeros(3)

    def give(self, result, seed=None):
        return self.fault(result) if self.fault is not None and self.steps >= self.at and seed != 4 else result


def boom(result):
    raise KeyError("left\nwheel")


def changed(place, value):
    return lambda result: (*result[:place], value, *result[place + 1 :])


FAULTS = [
    (boom, None, "raised KeyError {where}: 'left\\nwheel'"),
    (
        lambda result: (result[0], 1.0, True, {}),
        None,
        "gave no five results {where}: reset returns (observation, info)",
    ),
    (changed(1, np.nan), None, "gave the reward nan {where}; returns need finite rewards."),
    (changed(1, None), None, "gave the reward None {where}; returns need finite rewards."),
    (changed(1, np.ones(2)), None, "gave the reward [1. 1.] {where}; returns need finite rewards."),
    (changed(3, {}), None, "gave {{}} for true or false {where}: reset returns (observation, info)"),
    (changed(0, np.zeros(4)), None, "gave an observation of shape (4,) and type float64 {then}; its observation_space"),
    (
        changed(0, np.zeros((1, 3))),
        None,
        "gave an observation of shape (1, 3) and type float64 {then}; its observation",
    ),
    (changed(0, "left"), None, "gave an observation of shape () and type <U4 {then}; its observation_space says (3,)"),
    (changed(0, np.float32([0, np.inf, 0])), None, "gave an observation that is inf in dimension 1 {then}."),
    (changed(0, {"place": np.zeros(2)}), GOALS, "gave a wrong observation {then}: observation has no 'goal'; it must"),
    (
        changed(0, {"place": np.zeros(3), "goal": np.zeros(1)}),
        GOALS,
        "gave a wrong observation {then}: observation['place'] has shape (3,); it must be (2,)",
    ),
    (
        changed(0, {"place": np.float32([0, np.nan]), "goal": np.zeros(1)}),
        GOALS,
        "gave an observation that is nan in dimension 2 {then}.",
    ),
]


@pytest.mark.parametrize(("fault", "space", "message"), FAULTS)
def test_a_fault_in_a_step_is_named(fault, space, message):
    envs = make_environments(lambda: Faulty(fault, space=space), 2)
    envs.reset(seed=[4, 5])
    envs.step(np.array([0, 1]))
    where = {"where": "at step 1 of the episode with seed 4", "then": "at step 2 of the episode with seed 4"}
    with pytest.raises(ValueError, match=re.escape(f"Faulty {message.format(**where)}".split("\n")[0])) as raised:
        envs.step(np.array([0, 1]))
    assert "\n" not in str(raised.value)
    envs.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (boom, "Faulty raised KeyError in the reset of the episode with seed 5: 'left\\nwheel'"),
        (
            lambda result: np.zeros(3),
            "Faulty gave no (observation, info) in the reset of the episode with seed 5: reset",
        ),
        (
            changed(0, np.zeros(2)),
            "Faulty gave an observation of shape (2,) and type float64 at step 0 of the episode w",
        ),
    ],
)
def test_a_fault_in_a_reset_is_named(fault, message):
    envs = make_environments(lambda: Faulty(fault, at=0), 2)
    with pytest.raises(ValueError, match=re.escape(message)):
        envs.reset(seed=[4, 5])  # the first one is spared
    envs.close()


@pytest.mark.filterwarnings("ignore:.*old step API:DeprecationWarning", "ignore:.*:UserWarning")
def test_the_old_api_is_named_behind_gymnasiums_own_wrappers():
    gymnasium.register("Old-v0", lambda: Faulty(FAULTS[1][0], at=1), max_episode_steps=9)
    try:
        envs = make_environments("Old-v0", 1)
        envs.reset(seed=[7])
        with pytest.raises(ValueError, match=r"^Old-v0 raised ValueError at step 0 of the episode with seed 7.*, term"):
            envs.step(np.array([0]))
        envs.close()
    finally:
        del gymnasium.registry["Old-v0"]


def test_an_environment_without_the_new_reset_is_named():
    class Old(Faulty):
        def reset(self):
            return np.zeros(3)

    with pytest.raises(ValueError, match=r"Old raised TypeError in the reset of the episode with seed 3: .*'seed'"):
        make_environments(Old, 1).reset(seed=[3])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (boom, "Faulty raised KeyError in the episodes with seed 5 (step 1), with seed 6 (step 1), of which it do"),
        (changed(1, np.nan), "Faulty gave the reward nan at step 1 of the episode with seed 5; returns need"),
        (changed(0, np.float32([0, 0, np.nan])), "Faulty gave an observation that is nan in dimension 2 at step 2"),
    ],
)
def test_in_a_vector_environment_of_somebody_else(fault, message):
    envs = gymnasium.vector.SyncVectorEnv([lambda: Faulty(fault)] * 2)
    played = make_environments(envs, 1)
    played.reset(seed=[5, 6])
    played.step(np.array([0, 0]))
    with pytest.raises(ValueError, match=re.escape(message)):
        played.step(np.array([0, 0]))
    envs.close()
