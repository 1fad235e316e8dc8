"""Rollouts whose returns are known in advance, the statistics over them, and the files that record them."""

import copy
import itertools
import json
import logging
import sys
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from factories import Reach

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel, DecisionMambaProcessor
from hf_decision_mamba.acting.policy import DecisionMambaPolicy
from hf_decision_mamba.data.metadata import describe_actions, describe_observations
from hf_decision_mamba.evaluation.environments import action_bounds, make_environments
from hf_decision_mamba.evaluation.result import EvaluationResult
from hf_decision_mamba.evaluation.rollouts import Job, Recorder, evaluate_policy, play
from hf_decision_mamba.evaluation.scores import normalized_score
from hf_decision_mamba.evaluation.statistics import t_interval, wilson_interval

gymnasium = pytest.importorskip("gymnasium")
AutoresetMode = gymnasium.vector.AutoresetMode

LIMIT = 6


class Countdown(gymnasium.Env):
    """An episode of seed s lasts 2 + s mod 7 steps (the time limit is 6) and earns step + s/100 at each of them.

    Observes (steps done, seed / 10, sum of actions so far).
    """

    def __init__(self, observation_space=None, action_space=None, reward=None):
        self.observation_space = observation_space or gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = action_space or gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.reward = reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.step_count, self.drift = seed, 0, 0.0
        return self.observe(), {}

    def step(self, action):
        assert self.step_count < self.length, "stepped beyond its end"
        self.step_count += 1
        self.drift += float(np.sum(action))
        reward = self.step_count + self.seed / 100 if self.reward is None else self.reward(self)
        return self.observe(), reward, self.step_count == self.length, False, {}

    def observe(self):
        if not isinstance(self.observation_space, gymnasium.spaces.Box):
            return self.observation_space.sample()
        observation = np.zeros(self.observation_space.shape)
        observation.flat[:3] = self.step_count, self.seed / 10, self.drift
        return observation

    @property
    def length(self):
        return 2 + self.seed % 7


def known_episode(seed: int) -> tuple[int, float, bool]:
    """Length, return and whether it terminated (at the time limit it is cut off) of a Countdown episode."""
    length = min(2 + seed % 7, LIMIT)
    return length, sum(step + seed / 100 for step in range(1, length + 1)), 2 + seed % 7 <= LIMIT


@pytest.fixture(autouse=True)
def environments():
    """Register Countdown and variants of it for the length of a test."""
    box, discrete = gymnasium.spaces.Box, gymnasium.spaces.Discrete(3)
    goal = gymnasium.spaces.Dict({"observation": box(-1, 1, (3,)), "desired_goal": box(-1, 1, (2,))})
    variants = {
        "Countdown-v1": {},
        "Drift-v0": {"reward": lambda env: env.drift},
        "NotANumber-v0": {"reward": lambda env: np.nan if env.step_count == 2 else 1.0},
        "Wide-v0": {"observation_space": box(-1, 1, (5,), np.float64)},
        "Image-v0": {"observation_space": box(0, 255, (8, 8, 3), np.uint8)},
        "Goal-v0": {"observation_space": goal},
        "Frame-v0": {"observation_space": box(0, 255, (84, 84), np.uint8)},
        "Buttons-v0": {"action_space": discrete},
        "Presses-v0": {"action_space": discrete, "reward": lambda env: env.drift},
        "OneBased-v0": {"action_space": gymnasium.spaces.Discrete(2, start=1)},
        "Strong-v0": {"action_space": box(-1, 1, (4,), np.float32)},
    }
    for env_id, kwargs in variants.items():
        gymnasium.register(env_id, Countdown, max_episode_steps=LIMIT, kwargs=kwargs, disable_env_checker=True)
    yield
    for env_id in variants:
        del gymnasium.registry[env_id]


SIZES = {"hidden_size": 16, "embedding_size": 8, "state_size": 4, "n_layer": 1}


def make_policy(
    state_dim=3, act_dim=2, mode="window", action_type="continuous", sample=False, **overrides
) -> DecisionMambaPolicy:
    torch.manual_seed(0)
    dimensions = {"state_dim": state_dim, "act_dim": act_dim, "action_type": action_type}
    config = DecisionMambaConfig.from_preset("dema-b3ld", **dimensions, **SIZES)
    settings = {"target_return": 20.0, "return_scale": 10.0, "context_length": 4, "env_id": "Countdown-v1"}
    settings.update(state_mean=[0.0] * state_dim, state_std=[1.0] * state_dim, **overrides)
    return DecisionMambaPolicy(DecisionMambaModel(config), DecisionMambaProcessor(**settings), mode, sample=sample)


def make_player(mode="window", act_dim=4, **options) -> DecisionMambaPolicy:
    """An untrained player of Atari, by default of Breakout with its four actions."""
    torch.manual_seed(0)
    config = DecisionMambaConfig.from_preset("dema-atari", act_dim=act_dim, **{**SIZES, "embedding_size": 16})
    settings = {"target_return": 90.0, "return_scale": 1.0, "context_length": 5, "env_id": "BreakoutNoFrameskip-v4"}
    return DecisionMambaPolicy(DecisionMambaModel(config), DecisionMambaProcessor(**settings), mode, **options)


def evaluate(policy=None, *arguments, **options) -> EvaluationResult:
    return evaluate_policy(policy or make_policy(), *arguments, **{"progress": False, **options})


class TestRollouts:
    @pytest.mark.parametrize("num_envs", [1, 3, 100, None])
    def test_every_episode_is_run_once_from_its_seed_and_measured_exactly(self, num_envs):
        result = evaluate(episodes=8, target_returns=[20, 5], seed=3, num_envs=num_envs)
        assert [(row["target_return"], row["episode"]) for row in result.episodes] == [
            (target, episode) for target in (20, 5) for episode in range(8)
        ]
        for row in result.episodes:
            length, total, terminated = known_episode(row["seed"])
            assert row["seed"] == 3 + row["episode"]
            assert (row["length"], row["terminated"]) == (length, terminated)
            assert row["return"] == pytest.approx(total, abs=1e-12)
            assert row["normalized_score"] is None
        assert {row["terminated"] for row in result.episodes} == {True, False}

    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    def test_returns_do_not_depend_on_how_many_run_at_once(self, mode):
        """In Drift the reward is made of the actions, so a row that saw another's history would earn other returns."""
        policy = make_policy(mode=mode)
        alone, together, all_at_once = (
            [
                row["return"]
                for row in evaluate(policy, "Drift-v0", episodes=9, target_returns=[4, 40], num_envs=n).episodes
            ]
            for n in (1, 4, 18)
        )
        np.testing.assert_allclose(together, alone, atol=1e-5)
        np.testing.assert_allclose(all_at_once, alone, atol=1e-5)
        assert np.abs(np.subtract(alone[:9], alone[9:])).min() > 1e-3  # the target return was heard

    def test_the_policy_is_told_what_it_earned(self, monkeypatch):
        policy, seen = make_policy(), []
        act = policy.act

        def recorded(*arguments):
            actions = act(*arguments)
            seen.append(policy.returns_to_go.item())
            return actions

        monkeypatch.setattr(policy, "act", recorded)
        evaluate(policy, target_returns=50, episodes=2, num_envs=1)  # of 2 and 3 steps, seeds 0 and 1
        np.testing.assert_allclose(seen, [50, 50 - 1, 50, 50 - 1.01, 50 - 1.01 - 2.01])

    def test_the_same_call_gives_the_same_returns(self):
        first, second = (evaluate(None, "Drift-v0", episodes=5).episodes for _ in range(2))
        assert first == second

    @pytest.mark.parametrize("limit", [3, LIMIT - 1, 100])
    def test_episodes_can_be_ended_earlier_but_not_later(self, limit):
        result = evaluate(episodes=8, max_episode_steps=limit)
        assert {row["terminated"] for row in result.episodes} == {True, False}
        for row in result.episodes:
            length, _, terminated = known_episode(row["seed"])
            assert row["length"] == min(length, limit)
            assert row["terminated"] == (terminated and length <= limit)
        assert result.to_dict()["max_episode_steps"] == limit
        assert result.table().splitlines()[0].endswith(f"window mode, context 4, cut at {limit} steps")

    def test_defaults_come_from_the_processor(self):
        result = evaluate(episodes=2)
        assert (result.env_id, result.mode, result.context_length) == ("Countdown-v1", "window", 4)
        assert {row["target_return"] for row in result.episodes} == {20.0}
        assert evaluate(make_policy(mode="recurrent"), episodes=2).context_length is None

    def test_progress_is_shown(self, capsys):
        evaluate(episodes=3, progress=True)
        shown = capsys.readouterr().err
        assert "Countdown-v1: 100%" in shown and "mean return=" in shown and "steps/s=" in shown

    def test_a_real_hopper(self):
        pytest.importorskip("mujoco")
        policy = make_policy(11, 3, env_id="Hopper-v5", target_return=3600.0, return_scale=1000.0)
        result = evaluate(policy, episodes=2)
        for row in result.episodes:
            assert 1 <= row["length"] < 1000 and row["terminated"]  # untrained, it falls
            assert row["normalized_score"] == pytest.approx(100 * (row["return"] + 20.272305) / 3254.572305)


class Still:
    """An actor that does nothing, and keeps the jobs that it is given."""

    def __init__(self, act_dim=2):
        self.act_dim, self.jobs = act_dim, []

    def reset(self, jobs):
        self.jobs += jobs

    def reset_rows(self, rows, jobs):
        assert np.count_nonzero(rows) == len(jobs)
        self.jobs += jobs

    def act(self, observations, rewards):
        return np.zeros((len(observations), self.act_dim), np.float32)


def played(jobs, rows=3, observe=lambda step: False, actor=None):
    envs = make_environments("Countdown-v1", rows)
    try:
        yield from play(envs, actor or Still(), jobs, observe)
    finally:
        envs.close()


class TestPlaying:
    def test_jobs_end_in_their_order_and_are_taken_in_it(self):
        actor, seeds = Still(), [4, 0, 2, 5, 1, 3]  # lengths 6, 2, 4, 6, 3, 5
        episodes = list(played([Job(seed, float(seed)) for seed in seeds], actor=actor))
        assert [(episode.number, episode.seed) for episode in episodes] == list(enumerate(seeds))
        for episode in episodes:
            length, total, terminated = known_episode(episode.seed)
            assert (episode.length, episode.terminated, episode.success) == (length, terminated, None)
            assert episode.total == pytest.approx(total)
        assert [job.target_return for job in actor.jobs[:6]] == seeds

    def test_an_observer_sees_every_step_that_counts(self):
        steps = []

        def observe(step):
            steps.extend((job, *step.observations[row][:2], step.rewards[row]) for row, job in step.running())

        list(played([Job(0), Job(3), Job(1), Job(2)], rows=3, observe=observe))
        assert sorted(steps) == [
            (job, step, seed / 10, step + 1 + seed / 100)
            for job, seed in enumerate([0, 3, 1, 2])
            for step in range(2 + seed)
        ]

    def test_where_it_stops_what_has_ended_is_yielded(self):
        jobs = (Job(seed) for seed in itertools.cycle([4, 0]))  # six steps and two
        count = itertools.count(1)
        episodes = list(played(jobs, rows=2, observe=lambda step: next(count) == 5))
        assert [(episode.number, episode.seed) for episode in episodes] == [(1, 0)]  # job 2 has the seed 4 again
        assert list(played([])) == []

    def test_a_recorder_gives_episodes_as_data_sets_have_them(self):
        recorder = Recorder(np.array([1, 0]))
        episodes = [recorder.take(episode) for episode in played([Job(3), Job(0)], observe=recorder)]
        assert [(episode.seed, len(episode), episode.terminated) for episode in episodes] == [
            (3, 5, True),
            (0, 2, True),
        ]
        np.testing.assert_allclose(episodes[0].observations, [[0.3, step] for step in range(5)], rtol=1e-6)
        np.testing.assert_allclose(episodes[0].rewards, np.arange(1, 6) + 0.03, rtol=1e-6)


class Goal(Countdown):
    """Succeeds, as its info says under some name, where the seed is even; an episode of seed 6 says nothing."""

    def __init__(self, name="is_success", kind=bool):
        super().__init__()
        self.name, self.kind = name, kind

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=1 if seed is None else seed, options=options)  # a row that resets itself gives none

    def step(self, action):
        observation, reward, terminated, truncated, _ = super().step(action)
        info = {} if self.seed == 6 else {self.name: self.kind(terminated and self.seed % 2 == 0)}
        return observation, reward, terminated, truncated, info


class TestSuccess:
    @pytest.mark.parametrize("name", ["success", "is_success"])
    @pytest.mark.parametrize("kind", [bool, float, np.float32, np.bool_, lambda value: np.array([value])])
    @pytest.mark.parametrize("mode", AutoresetMode)
    def test_it_is_what_info_says_at_the_end(self, name, kind, mode):
        make = partial(Goal, name, kind)
        envs = gymnasium.vector.SyncVectorEnv([make] * 2, autoreset_mode=mode)
        result = evaluate(None, envs, episodes=7)
        assert [row["success"] for row in result.episodes] == [True, False, True, False, True, False, None]

    def test_the_rate_has_its_interval_everywhere(self, tmp_path):
        result = evaluate(None, Goal, episodes=7, target_returns=[20, 5])
        for row in result.to_dict()["results"]:
            assert row["success_rate"] == 0.5
            assert row["success_ci95"] == pytest.approx([0.1876, 0.8124], abs=1e-4)
        head, _, *lines = result.table().splitlines()[2:]
        assert "success" in head and all("50.0%" in line and "18.8% to 81.2%" in line for line in lines)
        assert len({len(line) for line in (head, *lines)}) == 1
        result.save(tmp_path)
        assert pq.read_table(tmp_path / "evaluation.parquet").to_pylist() == result.episodes

    def test_where_nobody_speaks_of_it_nothing_changes(self, tmp_path):
        result = evaluate(episodes=2)
        assert "success" not in result.table() and "success" not in json.dumps(result.to_dict())
        assert not {"success"} & {*result.episodes[0]}
        result.save(tmp_path)
        assert "success" not in pq.read_schema(tmp_path / "evaluation.parquet").names

    @pytest.mark.parametrize(
        ("successes", "count", "interval"),
        [(0, 10, [0.0, 0.2775]), (10, 10, [0.7225, 1.0]), (7, 20, [0.1812, 0.5671]), (1, 1, [0.2065, 1.0])],
    )
    def test_wilsons_interval(self, successes, count, interval):
        assert wilson_interval(successes, count) == pytest.approx(interval, abs=1e-4)


class TestDiscreteActions:
    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    def test_cart_pole(self, mode):
        policy = make_policy(4, 2, mode, "discrete", env_id="CartPole-v1")
        result = evaluate(policy, episodes=5, num_envs=2)
        for row in result.episodes:
            assert 5 < row["length"] == row["return"] < 500 and row["terminated"]  # untrained, it falls
        assert result.temperature is None
        assert evaluate(policy, episodes=5, num_envs=2).episodes == result.episodes

    def test_draws_do_not_depend_on_how_many_run_at_once(self):
        """In Presses the reward is made of the actions."""
        policy = make_policy(3, 3, action_type="discrete", sample=True)
        options = {"env_id": "Presses-v0", "episodes": 9, "target_returns": [4, 40]}
        alone, together, all_at_once, other = (
            [row["return"] for row in evaluate(policy, num_envs=n, seed=seed, **options).episodes]
            for n, seed in ((1, 0), (4, 0), (18, 0), (4, 7))
        )
        assert alone == together == all_at_once
        assert other != alone  # other draws for episodes of the same lengths
        assert alone[:9] != alone[9:]

    def test_a_result_says_that_actions_were_drawn(self):
        result = evaluate(make_policy(3, 3, action_type="discrete", sample=True), "Buttons-v0", episodes=2)
        assert result.to_dict()["temperature"] == 1
        assert "window mode, context 4, actions drawn at temperature 1" in result.table()


SPACES, BOX = gymnasium.spaces, gymnasium.spaces.Box
ACTIONS = BOX(-1, 1, (2,))
#: What is observed, and what is done.
KINDS = {
    "one of n": (SPACES.Discrete(5), SPACES.Discrete(3)),
    "bits": (SPACES.MultiBinary(4), ACTIONS),
    "a matrix": (BOX(-1, 1, (3, 2)), SPACES.Discrete(3)),
    "a matrix of one row": (BOX(-1, 1, (1, 3)), ACTIONS),
    "a number": (BOX(-1, 1, ()), ACTIONS),
    "bytes": (BOX(0, 255, (6,), np.uint8), ACTIONS),
    "whole numbers": (BOX(0, 9, (2, 2), np.int64), ACTIONS),
    "a tuple": (SPACES.Tuple((SPACES.Discrete(3, start=1), BOX(-1, 1, (2,)))), ACTIONS),
    "a dictionary": (
        SPACES.Dict(
            {"goal": BOX(-1, 1, (2,)), "body": SPACES.Dict({"on": SPACES.MultiBinary(2), "at": BOX(-1, 1, ())})}
        ),
        ACTIONS,
    ),
    "actions from 3 on": (BOX(-1, 1, (3,)), SPACES.Discrete(4, start=3)),
    "float64": (BOX(-1, 1, (3,), np.float64), BOX(np.array([-0.1, 0.3]), np.array([0.1, 0.4]), dtype=np.float64)),
    "half bounded": (BOX(-1, 1, (3,)), BOX(np.float32([-np.inf, -0.1]), np.float32([0.1, np.inf]))),
    "unbounded": (BOX(-1, 1, (3,)), BOX(-np.inf, np.inf, (2,))),
}


class Particular(gymnasium.Env):
    """Six steps, each earning what its action sums to; insists on actions of its space."""

    def __init__(self, kind, step=0.25):
        (self.observation_space, self.action_space), self.step_size = copy.deepcopy(KINDS[kind]), step

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        return self.observation_space.sample(), self.step_size * float(np.sum(action)), self.steps == 6, False, {}


@pytest.fixture
def particular():
    """Register it with every kind."""
    for kind in KINDS:
        gymnasium.register(f"{kind.replace(' ', '')}-v0", Particular, kwargs={"kind": kind}, disable_env_checker=True)
    yield
    for kind in KINDS:
        del gymnasium.registry[f"{kind.replace(' ', '')}-v0"]


def make_particular_policy(kind, mode="window", **overrides) -> DecisionMambaPolicy:
    """A policy as training in such an environment would leave it."""
    observed, done = KINDS[kind]
    size, actions = SPACES.flatdim(observed), describe_actions("here", done)
    settings = {"env_id": f"{kind.replace(' ', '')}-v0", "observation_parts": describe_observations("here", observed)}
    if "num_actions" in actions:
        settings["action_start"] = actions["action_start"]
        return make_policy(size, actions["num_actions"], mode, "discrete", **{**settings, **overrides})
    settings["action_low"], settings["action_high"] = action_bounds(done)
    return make_policy(size, len(settings["action_low"]), mode, **{**settings, **overrides})


class TestSpaces:
    @pytest.mark.parametrize(
        ("kind", "mode"),
        [*((kind, "window") for kind in KINDS), ("a dictionary", "recurrent"), ("actions from 3 on", "recurrent")],
    )
    def test_evaluation_earns_what_acting_on_raw_observations_earns(self, kind, mode, particular):
        policy = make_particular_policy(kind, mode)
        result = evaluate(policy, episodes=3, num_envs=2)
        for row in result.episodes:
            env, earned, reward, over = gymnasium.make(result.env_id), 0.0, None, False
            observation, _ = env.reset(seed=row["seed"])
            policy.reset(target_return=row["target_return"])
            while not over:
                observation, reward, over, _, _ = env.step(policy.act(observation, reward))
                earned += reward
            assert row["return"] == pytest.approx(earned, abs=1e-5)

    def test_one_environment_whose_observation_looks_like_a_row(self, particular):
        """A batch of one vector has the shape of this matrix."""
        policy = make_particular_policy("a matrix of one row")
        alone, together = (evaluate(policy, episodes=4, num_envs=rows).episodes for rows in (1, 4))
        np.testing.assert_allclose(*([row["return"] for row in rows] for rows in (alone, together)), atol=1e-5)

    def test_parts_are_read_by_name_in_the_order_that_the_policy_knows(self, particular):
        """The order of a space that gymnasium does not sort is not that of its data, which Minari sorts."""

        class Turned(Particular):
            def __init__(self):
                super().__init__("a dictionary")
                spaces = self.observation_space.spaces
                self.observation_space = SPACES.Dict([(name, spaces[name]) for name in ("goal", "body")])

        policy = make_particular_policy("a dictionary")
        for row in evaluate(policy, Turned, episodes=3).episodes:
            env, earned, reward, over = Turned(), 0.0, None, False
            observation, _ = env.reset(seed=row["seed"])
            policy.reset()
            while not over:
                observation, reward, over, _, _ = env.step(policy.act(observation, reward))
                earned += reward
            assert row["return"] == pytest.approx(earned, abs=1e-5)

    @pytest.mark.parametrize(
        ("kind", "env_id", "message"),
        [
            ("a dictionary", "atuple-v0", r"^atuple-v0 observes a tuple of 0 \(one of 3\), 1 \(2,\), but the policy "
             r"was trained on a dictionary of body\.at \(\), body\.on \(2,\), goal \(2,\); its checkpoint names"),
            ("a dictionary", "amatrix-v0", r"amatrix-v0 observes Box.*\(3, 2\).*, 6 dimensions, but .* 5 dimensions"),
            ("one of n", "actionsfrom3on-v0", "observes 3 dimensions, but the policy was trained on 5 dimensions"),
            ("float64", "actionsfrom3on-v0", r"takes actions from Discrete\(4, start=3\), but the policy gives act"),
            ("actions from 3 on", "float64-v0", r"takes actions of shape \(2,\), but .* from Discrete\(4, start=3\)"),
        ],
    )  # fmt: skip
    def test_other_spaces_are_refused_by_name(self, kind, env_id, message, particular):
        with pytest.raises(ValueError, match=message) as raised:
            evaluate(make_particular_policy(kind), env_id)
        assert "\n" not in str(raised.value)

    def test_a_policy_without_parts_is_played_as_before(self, particular):
        """Checkpoints from before know no parts: what is observed is flattened for them."""
        knows, knows_not = make_particular_policy("a tuple"), make_particular_policy("a tuple", observation_parts=None)
        assert evaluate(knows).episodes == evaluate(knows_not).episodes


class TestGivenEnvironments:
    @pytest.mark.parametrize(
        "given",
        [
            lambda: gymnasium.make("Countdown-v1"),
            lambda: partial(gymnasium.make, "Countdown-v1"),
            lambda: gymnasium.make_vec("Countdown-v1", num_envs=3, vectorization_mode="sync"),
            lambda: gymnasium.make_vec("Countdown-v1", num_envs=30, vectorization_mode="sync"),
            lambda: partial(gymnasium.make_vec, "Countdown-v1", num_envs=2, vectorization_mode="sync"),
        ],
        ids=["environment", "function", "rows", "more rows than episodes", "function of rows"],
    )
    def test_it_is_played_as_its_id_is(self, given):
        env = given()
        result = evaluate(make_policy(env_id=None), env, episodes=8, target_returns=[20, 5], seed=3)
        by_id = evaluate(episodes=8, target_returns=[20, 5], seed=3)
        assert result.episodes == by_id.episodes
        assert (result.env_id, result.env_kwargs) == ("Countdown-v1", None)
        if not callable(env):
            env.reset(seed=5 if isinstance(env, gymnasium.Env) else [5] * env.num_envs)  # it is still open
            env.close()

    @pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # later versions of Python
    @pytest.mark.parametrize(
        ("kind", "mode"),
        [
            (gymnasium.vector.SyncVectorEnv, AutoresetMode.NEXT_STEP),
            (gymnasium.vector.SyncVectorEnv, AutoresetMode.SAME_STEP),
            (gymnasium.vector.AsyncVectorEnv, AutoresetMode.NEXT_STEP),
        ],
    )
    def test_rows_may_reset_themselves(self, kind, mode):
        envs = kind([partial(gymnasium.make, "CartPole-v1")] * 2, autoreset_mode=mode)
        policy = make_policy(4, 2, action_type="discrete", env_id="CartPole-v1")
        result = evaluate(policy, envs, episodes=5)
        envs.close()
        assert result.episodes == evaluate(policy, episodes=5, num_envs=2).episodes

    def test_rows_that_cannot_be_reset_alone_begin_together(self):
        """gymnasium's own vector environment of CartPole draws all of its rows from one seed."""
        envs = gymnasium.make_vec("CartPole-v1", num_envs=3)
        policy = make_policy(4, 2, action_type="discrete", target_return=1.0, env_id=None)
        first, second = (evaluate(policy, envs, episodes=5, seed=4) for _ in range(2))
        assert first.episodes == second.episodes and first.env_id == "CartPole-v1"
        assert [row["seed"] for row in first.episodes] == [4, 4, 4, 7, 7]
        assert all(5 < row["length"] == row["return"] < 500 and row["terminated"] for row in first.episodes)

    def test_rows_are_cut_at_the_limit(self):
        envs = gymnasium.make_vec("Countdown-v1", num_envs=3, vectorization_mode="sync")
        cut = evaluate(None, envs, episodes=8, max_episode_steps=3)
        assert cut.episodes == evaluate(episodes=8, max_episode_steps=3).episodes
        assert max(row["length"] for row in cut.episodes) == 3

    def test_one_without_an_id_is_recorded_by_its_class(self):
        assert evaluate(None, Countdown, episodes=1).env_id == "Countdown"

    def test_rows_of_dictionaries(self, particular):
        envs = gymnasium.make_vec("adictionary-v0", num_envs=2, vectorization_mode="sync")
        policy = make_particular_policy("a dictionary")
        np.testing.assert_allclose(
            [row["return"] for row in evaluate(policy, envs, episodes=5).episodes],
            [row["return"] for row in evaluate(policy, episodes=5).episodes],
            atol=1e-5,
        )

    def test_another_number_of_rows_is_refused(self):
        for env, rows in ((Countdown(), 1), (gymnasium.vector.SyncVectorEnv([Countdown] * 2), 2)):
            with pytest.raises(ValueError, match=f"num_envs=5, but Countdown is given with {rows}; leave it out"):
                evaluate(None, env, num_envs=5)


class TestArguments:
    def test_they_are_recorded_and_stored_ones_are_the_default(self, particular):
        policy = make_particular_policy("bytes")
        usual, twice = evaluate(policy, episodes=2), evaluate(policy, episodes=2, env_kwargs={"step": 0.5})
        assert (usual.to_dict()["env_kwargs"], twice.to_dict()["env_kwargs"]) == (None, {"step": 0.5})
        assert usual.episodes != twice.episodes
        assert twice.table().startswith("bytes-v0, step=0.5: 2 episodes")
        policy.processor.env_kwargs = {"step": 0.5}
        for env_id in (None, "bytes-v0"):
            assert evaluate(policy, env_id, episodes=2).episodes == twice.episodes
        assert evaluate(policy, episodes=2, env_kwargs={}).episodes == usual.episodes

    def test_those_of_an_environment_that_is_given_are_found(self, particular):
        env = gymnasium.make("bytes-v0", step=0.5)
        result = evaluate(make_particular_policy("bytes"), env, episodes=1)
        assert (result.env_id, result.env_kwargs) == ("bytes-v0", {"step": 0.5})


class TestAtari:
    @pytest.fixture(autouse=True)
    def games(self):
        pytest.importorskip("ale_py")
        pytest.importorskip("cv2")

    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    def test_breakout(self, mode):
        options = {"episodes": 3, "num_envs": 2, "max_episode_steps": 20, "seed": 4}
        policy = make_player(mode, sample=True)
        result = evaluate(policy, **options)
        assert [(row["seed"], row["length"], row["terminated"]) for row in result.episodes] == [
            (seed, 20, False) for seed in (4, 5, 6)
        ]
        for row in result.episodes:
            assert row["normalized_score"] == pytest.approx(100 * (row["return"] - 1.7) / 28.8)
        assert result.to_dict()["score_reference"] == {"min": 1.7, "max": 30.5, "source": "random/human"}
        assert "ale-py" in result.versions
        assert evaluate(policy, "ALE/Breakout-v5", **options).episodes == result.episodes

    def test_points_come_off_the_return_to_go(self, monkeypatch):
        """As they are, not clipped: invaders are worth 5 to 30."""
        policy, earned = make_player("recurrent", act_dim=6, sample=True), []
        act = policy.act

        def recorded(observations, rewards):
            earned.append(0.0 if rewards is None else rewards.item())
            actions = act(observations, rewards)
            assert policy.returns_to_go.item() == 90 - sum(earned)
            return actions

        monkeypatch.setattr(policy, "act", recorded)
        (row,) = evaluate(policy, "ALE/SpaceInvaders-v5", episodes=1, max_episode_steps=120).episodes
        assert max(earned) >= 5 and row["return"] >= sum(earned)

    @pytest.mark.parametrize(
        ("env_id", "message"),
        [
            (
                "ALE/Pong-v5",
                r"ALE/Pong-v5 takes 6 discrete actions, but the policy gives 4 discrete actions; .*Breakout",
            ),
            ("Countdown-v1", "observes 3 dimensions, but the policy was trained on grey frames of 84 x 84 pixels"),
            ("Image-v0", r"observes Box.*\(8, 8, 3\).*, but the policy was trained on grey frames of 84 x 84 pixels"),
        ],
    )
    def test_other_environments_are_refused(self, env_id, message):
        with pytest.raises(ValueError, match=message):
            evaluate(make_player(), env_id)


def made_result(returns=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0), env_id="Hopper-v5", targets=(3600.0,), **settings):
    rows = [
        {
            "target_return": target,
            "episode": episode,
            "seed": episode,
            "return": value,
            "length": 10 + episode,
            "terminated": True,
            "normalized_score": normalized_score(env_id, value),
        }
        for target in targets
        for episode, value in enumerate(returns)
    ]
    return EvaluationResult(env_id, **{"mode": "window", "context_length": 20, "seed": 0, **settings}, episodes=rows)


class TestStatistics:
    def test_summary(self):
        (summary,) = made_result().summary()
        assert (summary["target_return"], summary["episodes"], summary["length_mean"]) == (3600, 8, 13.5)
        values = np.array([0, 1, 2, 3, 4, 5, 6, 100])
        assert summary["return_mean"] == values.mean() and summary["return_std"] == values.std()
        assert summary["return_iqm"] == 3.5  # of 2, 3, 4, 5
        assert summary["normalized_score_mean"] == pytest.approx(normalized_score("Hopper-v5", values.mean()))
        low, high = summary["return_ci95"]
        scores = summary["normalized_score_ci95"]
        np.testing.assert_allclose(scores, [normalized_score("Hopper-v5", bound) for bound in (low, high)])

    def test_the_interval_is_that_of_the_mean(self):
        values = np.random.default_rng(0).normal(50, 10, 400)
        (summary,) = made_result(values).summary()
        half = 1.96 * values.std() / np.sqrt(400)
        np.testing.assert_allclose(summary["return_ci95"], [values.mean() - half, values.mean() + half], atol=0.05)

    def test_quantiles_of_the_t_distribution(self):
        """Of [-1, 1] and zeros, whose deviation is known: the quantiles of published tables, and of its limit."""
        for count, quantile in ((2, 12.7062), (3, 4.30265), (11, 2.22814), (31, 2.04227), (32, 2.03951), (61, 2.0003)):
            values = [-1.0, 1.0, *[0.0] * (count - 2)]
            error = (2 / (count - 1) / count) ** 0.5
            assert t_interval(values) == pytest.approx([-quantile * error, quantile * error], rel=5e-6)
        assert t_interval([3.0]) == [None, None]
        assert t_interval([-1.0, 1.0] * 50_000)[1] == pytest.approx(1.959964 / 100_000**0.5, rel=1e-4)

    def test_one_episode_has_no_interval_and_unknown_environments_no_score(self):
        (summary,) = made_result([7.0], env_id="Countdown-v1").summary()
        assert summary["return_ci95"] == [None, None]
        assert summary["normalized_score_mean"] is None and summary["normalized_score_ci95"] == [None, None]
        assert "1 episode, window" in made_result([7.0]).table()

    def test_table(self):
        title, _, head, rule, *lines = made_result([10.0, 20.0], targets=(3600.0, 7200.0)).table().splitlines()
        assert title == "Hopper-v5: 2 episodes per target return, window mode, context 20"
        assert "target return  return mean ± std" in head and set(rule) == {"-", " "}
        assert [line.split()[0] for line in lines] == ["3600", "7200"]
        assert "15.0 ± 5.0" in lines[0] and "10.0 to 20.0" in lines[0] and "1.1 ± 0.2" in lines[0]
        assert lines[0].split()[-1] == "10.5" and len({len(line) for line in (head, rule, *lines)}) == 1
        *_, line = made_result([0.01, 0.02]).table().splitlines()
        assert "0.015 ± 0.005  " in line and "0.01 to 0.02" in line

    def test_episodes_that_are_one_trajectory_are_said_to_be_one(self):
        result = made_result([2000.0, 2010.0, 1995.0], targets=(3600.0, 7200.0))
        assert "these are one" not in result.table()  # their lengths differ
        for row in result.episodes:
            row["length"] = 300 + row["episode"]
        *_, first, second = result.table().splitlines()
        assert first.startswith("3 episodes of target return 3600 within 1%: these are one, and their interval says")
        assert "target return 7200" in second
        result.episodes[0]["return"] = 2100.0
        assert "target return 7200" in result.table() and "return 3600 within" not in result.table()
        for row in result.episodes:
            row["success"] = True  # whose returns are all 1 for another reason
        assert "these are one" not in result.table()
        assert "these are one" not in made_result([7.0]).table()


class TestFiles:
    def test_episodes_come_back_from_parquet(self, tmp_path):
        result = made_result(targets=(3600.0, 7200.0))
        result.save(tmp_path)
        assert pq.read_table(tmp_path / "evaluation.parquet").to_pylist() == result.episodes

    def test_json_states_the_protocol_and_the_results(self, tmp_path):
        result = evaluate(episodes=3, seed=5)
        result.save(tmp_path / "new" / "folder")
        saved = json.loads((tmp_path / "new" / "folder" / "evaluation.json").read_text())
        assert saved.pop("results") == result.summary()
        versions = saved.pop("versions")
        assert versions["gymnasium"] == gymnasium.__version__
        assert {"hf_decision_mamba", "torch", "transformers"} <= set(versions)
        assert saved == {
            "env_id": "Countdown-v1",
            "env_kwargs": None,
            "checkpoint": "last",
            "mode": "window",
            "episodes_per_target": 3,
            "seed": 5,
            "context_length": 4,
            "max_episode_steps": None,
            "temperature": None,
            "score_reference": None,
        }

    def test_json_names_the_reference(self):
        assert made_result().to_dict()["score_reference"] == {"min": -20.272305, "max": 3234.3, "source": "D4RL"}

    @pytest.mark.parametrize(
        ("returns", "targets"),
        [
            ((2.0, 3.0), (3600.0,)),
            ((2.0,), (3600.0,)),
            ((2.0, 3.0), (1.0, 3600.0)),
            ((2.0,), (-1.0, 5.0)),
        ],
    )
    def test_the_picture_shows_every_episode_and_the_means(self, returns, targets, drawn, tmp_path):
        result = made_result(returns, targets=targets)
        written = result.save(tmp_path, dataset_return_mean=1.5, dataset_return_max=4.0)
        assert [path.name for path in written] == ["evaluation.parquet", "evaluation.json", "returns.png"]
        axes, *_ = drawn["returns.png"].axes
        lines = {line.get_label(): np.asarray(line.get_ydata(), np.float64) for line in axes.lines}
        np.testing.assert_array_equal(lines["one episode"], [row["return"] for row in result.episodes])
        means, heights = [row["return_mean"] for row in result.summary()], [set(line) for line in lines.values()]
        assert {1.5} in heights and {4.0} in heights  # of the data set
        if len(targets) == 1:
            assert {means[0]} in heights and {targets[0]} in heights
        else:
            bars = axes.containers[0]
            np.testing.assert_array_equal(bars[0].get_ydata(), means)
            assert [text.get_text() for text in axes.get_xticklabels()] == [f"{target:,g}" for target in targets]
        assert bool(axes.patches) == (len(targets) == 1 and len(returns) > 1)  # the interval

    def test_videos_of_an_earlier_evaluation_go(self, tmp_path):
        for name in ("replay.mp4", "replay-target-5.mp4", "video-of-us.mp4"):
            (tmp_path / name).touch()
        made_result().save(tmp_path)
        assert [path.name for path in tmp_path.glob("*.mp4")] == ["video-of-us.mp4"]

    def test_without_matplotlib_the_numbers_are_saved(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with caplog.at_level(logging.WARNING):
            written = made_result().save(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
        assert len(written) == 2 and "returns.png was not drawn: matplotlib is not installed" in caplog.text


class TestRefusals:
    @pytest.mark.parametrize(
        ("env_id", "message"),
        [
            ("Countdown-v2", "No environment 'Countdown-v2': use 'Countdown-v1'"),
            ("Cuntdown-v1", "No environment 'Cuntdown-v1': check the spelling, or import the .*mean 'Countdown-v1'"),
            ("no_such_module:Countdown-v1", "No environment 'no_such_module:Countdown-v1'"),
            ("Wide-v0", "observes 5 dimensions, but the policy was trained on 3 dimensions; .* 'Countdown-v1'"),
            ("Image-v0", "Image-v0 observes Box.*, but the policy was trained on 3 dimensions"),
            ("Frame-v0", "observes grey frames of 84 x 84 pixels, but the policy was trained on 3 dimensions"),
            ("Buttons-v0", r"takes 3 discrete actions, but the policy gives actions of shape \(2,\)"),
            ("Strong-v0", r"Strong-v0 takes actions of shape \(4,\), but the policy gives actions of shape \(2,\)"),
            ("NotANumber-v0", "NotANumber-v0 gave the reward nan at step 1 of the episode with seed 10"),
        ],
    )
    def test_environment(self, env_id, message):
        with pytest.raises(ValueError, match=message):
            evaluate(None, env_id, seed=10, episodes=2)

    @pytest.mark.parametrize(
        ("env_id", "message"),
        [
            ("Countdown-v1", r"takes actions of shape \(2,\), but the policy gives 2 discrete actions"),
            ("Buttons-v0", "takes 3 discrete actions, but the policy gives 2 discrete actions"),
            ("OneBased-v0", r"takes actions from Discrete\(2, start=1\), but the policy gives 2 discrete actions"),
            ("Wide-v0", "observes 5 dimensions, but the policy was trained on 3 dimensions"),
            ("Frame-v0", "observes grey frames of 84 x 84 pixels, but the policy was trained on 3 dimensions"),
        ],
    )
    def test_environment_of_discrete_actions(self, env_id, message):
        with pytest.raises(ValueError, match=message):
            evaluate(make_policy(action_type="discrete"), env_id)

    @pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
    @pytest.mark.parametrize("env_id", ["Hopper-v2", "Hopper-v3"])
    def test_environments_that_left_gymnasium(self, env_id):
        with pytest.raises(ValueError, match=f"No environment '{env_id}': use 'Hopper-v5'"):
            evaluate(make_policy(11, 3), env_id)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"episodes": 0}, "episodes=0 must be at least 1"),
            ({"num_envs": 0}, "num_envs=0 must be at least 1"),
            ({"max_episode_steps": 0}, "max_episode_steps=0 must be at least 1"),
            ({"seed": -1}, "seed=-1 must be at least 0"),
            ({"target_returns": []}, r"target_returns=\[\] must be one finite number or more"),
            ({"target_returns": [1.0, float("inf")]}, "must be one finite number or more"),
        ],
    )
    def test_numbers(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            evaluate(**arguments)

    def test_checkpoints_that_store_no_environment_or_target_return(self):
        with pytest.raises(ValueError, match="No environment: this checkpoint stores none"):
            evaluate(make_policy(env_id=None))
        with pytest.raises(ValueError, match="No target return: this checkpoint stores none"):
            evaluate(make_policy(target_return=None))

    def test_gymnasium_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "gymnasium", None)
        with pytest.raises(ImportError, match=r'Rollouts need gymnasium.*pip install "hf_decision_mamba\[mujoco\]"'):
            evaluate()

    def test_a_package_of_the_environment_is_missing(self):
        def needs_mujoco(**kwargs):
            raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")

        gymnasium.register("NeedsMuJoCo-v0", needs_mujoco)
        try:
            with pytest.raises(ImportError, match=r'NeedsMuJoCo-v0 needs .* pip install "hf_decision_mamba\[mujoco\]"'):
                evaluate(None, "NeedsMuJoCo-v0")
        finally:
            del gymnasium.registry["NeedsMuJoCo-v0"]


class TestGoals:
    """Environments of goals are played with their own goals; what is asked for is no return."""

    @pytest.fixture(autouse=True)
    def reach(self):
        gymnasium.register("Reach-v0", Reach, max_episode_steps=12, disable_env_checker=True)
        yield
        del gymnasium.registry["Reach-v0"]

    def policy(self, mode="window", goal_dim=2, **overrides) -> DecisionMambaPolicy:
        torch.manual_seed(0)
        sizes = {**SIZES, "state_dim": 3, "act_dim": 2, "conditioning": "goal", "goal_dim": goal_dim}
        model = DecisionMambaModel(DecisionMambaConfig.from_preset("dema-b3ld", **sizes))
        with torch.no_grad():
            model.predict_action.weight *= 10
        scaling = {"state_mean": [0.0] * 3, "state_std": [1.0] * 3, "goal_mean": [0.1] * goal_dim}
        settings = {"goal_std": [0.5] * goal_dim, "context_length": 4, "env_id": "Reach-v0", **scaling, **overrides}
        return DecisionMambaPolicy(model, DecisionMambaProcessor(**settings), mode)

    @pytest.mark.parametrize("mode", ["window", "recurrent"])
    @pytest.mark.parametrize("given", ["by id", "rows that reset themselves"])
    def test_each_episode_goes_to_its_own_goal(self, mode, given):
        policy = self.policy(mode)
        envs = "Reach-v0"
        if given != "by id":
            envs = gymnasium.make_vec(
                "Reach-v0", num_envs=3, vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
            )
        result = evaluate(policy, envs, episodes=7)
        for row in result.episodes if given == "by id" else result.episodes[:1]:
            env = gymnasium.make("Reach-v0")
            observation, total, over = env.reset(seed=row["seed"])[0], 0.0, False
            policy.reset(goal=observation["desired_goal"])
            while not over:
                observation, reward, terminated, truncated, info = env.step(policy.act(observation["observation"]))
                total, over = total + reward, terminated or truncated
            assert (row["return"], row["success"], row["target_return"]) == (total, info["success"], None)
        summary = result.summary()[0]
        assert summary["target_return"] is None and 0 <= summary["success_ci95"][0] <= summary["success_rate"]
        assert result.table().count("success") == 1

    @pytest.mark.parametrize(
        ("options", "policy", "message"),
        [
            ({"target_returns": 3.0}, {}, r"target_returns=3.0 cannot be asked for: this policy is asked for goals"),
            (
                {},
                {"goal_dim": 3},
                "Reach-v0 observes a desired_goal of 2 numbers, but the policy is asked for goals of 3",
            ),
            (
                {"env_id": "Countdown-v1"},
                {},
                "Countdown-v1 observes no desired_goal, but the policy is asked for goals of",
            ),
            (
                {},
                {"observation_parts": [{"path": ["place"], "shape": [3], "size": 3}]},
                r"observes a dictionary of observation \(3,\), but the policy was trained on a dictionary of place",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(self, options, policy, message):
        with pytest.raises(ValueError, match=message):
            evaluate(self.policy(**policy), **options)
