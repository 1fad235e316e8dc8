"""Scores of runs: of which checkpoints, kept while they are played, and where a sweep ends."""

import json

import pytest
from factories import pendulum_policy
from studies import score

from hf_decision_mamba import EvaluationResult
from hf_decision_mamba.baselines.mlp import DecisionMLPConfig, DecisionMLPModel
from hf_decision_mamba.study import scoring
from hf_decision_mamba.study.plan import Evaluation
from hf_decision_mamba.study.scoring import is_scored, last_checkpoints, score_run, scores_of, summarize


@pytest.fixture
def run(tmp_path):
    """The folder of a run with four checkpoints."""
    policy = pendulum_policy()
    for step in (8, 9, 10, 11):
        for part in (policy.model, policy.processor):
            part.save_pretrained(tmp_path / f"checkpoint-{step}")
    return tmp_path


def test_a_run_is_scored_by_its_last_checkpoints_each_from_starts_of_its_own(run):
    evaluation = Evaluation("all", episodes=2, last=3, max_episode_steps=5)
    score_run(run, evaluation, "recurrent")
    (entry,) = scores_of(run, evaluation)["conditions"].values()
    assert [(part["step"], part["seed"], len(part["returns"])) for part in entry["checkpoints"]] == [
        (9, 0, 2),
        (10, 2, 2),
        (11, 4, 2),
    ]
    assert (entry["mode"], entry["env_id"], entry["target_return"]) == ("recurrent", "Pendulum-v1", -400.0)
    every = [value for part in entry["checkpoints"] for value in part["returns"]]
    assert len({*every}) == 6
    found = summarize(entry, evaluation)
    assert found["score"] == found["return_mean"] == pytest.approx(sum(every) / 6) and found["episodes"] == 6
    assert (found["score_kind"], found["normalized_score"], found["success_rate"]) == ("return", None, None)


def test_a_checkpoint_of_an_interruption_is_no_regular_one(tmp_path):
    for step in (80, 100, 120, 133, 140, 150):  # every 20, the end, and where it was interrupted
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-150" / "trainer_state.json").write_text('{"save_steps": 20}')
    assert [path.name for path in last_checkpoints(tmp_path, 3)] == [
        "checkpoint-120",
        "checkpoint-140",
        "checkpoint-150",
    ]
    assert len(last_checkpoints(tmp_path, 6)) == 6


def test_too_few_checkpoints_and_scores_that_there_are_not_are_refused(run):
    with pytest.raises(ValueError, match="has 4 checkpoints, and 5 are to be scored"):
        score_run(run, Evaluation("a"), "window")
    for kind, why in (("success_rate", "Pendulum-v1 does not say"), ("normalized_score", "there are no reference")):
        with pytest.raises(ValueError, match=f"score: {kind}: {why}"):
            score_run(run, Evaluation("a", last=1, episodes=1, max_episode_steps=2, score=kind), "window")


@pytest.fixture
def mazes(run, monkeypatch):
    """What was asked of an environment in which a model is right up to a length of 100."""
    asked = []

    def play(policy, env_id, *, episodes, seed, env_kwargs, **more):
        asked.append((env_kwargs["length"], seed))
        rows = [
            {"target_return": 1.0, "return": 1.0, "length": 5, "normalized_score": None, "success": good}
            for good in [env_kwargs["length"] <= 100] * episodes
        ]
        return EvaluationResult("Maze-v0", "window", 4, seed, rows, env_kwargs=env_kwargs)

    monkeypatch.setattr(scoring, "evaluate_policy", play)
    return asked


def far(*lengths: int, **more) -> Evaluation:
    settings = {"stop_below": 0.7, "score": "success_rate", "last": 2, "episodes": 3, **more}
    return Evaluation("far", sweep={"length": [*lengths]}, **settings)


def test_a_sweep_ends_where_the_score_is_too_low(run, mazes):
    evaluation = far(10, 100, 1000, 10_000, 100_000)
    score_run(run, evaluation, "window")
    assert mazes == [(10, 0), (10, 3), (100, 0), (100, 3), (1000, 0), (1000, 3)]
    kept = scores_of(run, evaluation)["conditions"]
    assert [summarize(kept[f"length {n}"], evaluation)["score"] for n in (10, 100, 1000, 10_000, 100_000)] == [
        *(1.0, 1.0, 0.0),
        *(None, None),
    ]
    assert kept["length 100"]["env_kwargs"] == {"length": 100} and is_scored(run, evaluation)


def test_what_carries_no_state_is_left_out_of_recurrent_evaluations(run, mazes, capsys):
    DecisionMLPModel(DecisionMLPConfig(state_dim=3, act_dim=1)).save_pretrained(run / "checkpoint-12")
    evaluation = far(10, 100, mode="recurrent")
    score_run(run, evaluation, "window")
    assert mazes == [] and is_scored(run, evaluation)
    kept = scores_of(run, evaluation)["conditions"]
    assert [summarize(kept[f"length {n}"], evaluation) for n in (10, 100)] == [{"score": None}] * 2
    assert "far: left out, as the model carries no state" in capsys.readouterr().out


def test_without_a_rule_all_values_are_played(run, mazes):
    score_run(run, far(10, 1000, 10_000, stop_below=None, last=1), "window")
    assert [length for length, _ in mazes] == [10, 1000, 10_000]


def test_an_interrupted_evaluation_goes_on_and_longer_sweeps_play_what_is_new(run, mazes, monkeypatch):
    play = scoring.evaluate_policy

    def stopped(*words, **more):
        if len(mazes) == 3:
            raise KeyboardInterrupt
        return play(*words, **more)

    monkeypatch.setattr(scoring, "evaluate_policy", stopped)
    with pytest.raises(KeyboardInterrupt):
        score_run(run, far(10, 100), "window")
    assert not is_scored(run, far(10, 100))
    monkeypatch.setattr(scoring, "evaluate_policy", play)
    score_run(run, far(10, 100), "window")
    assert mazes == [(10, 0), (10, 3), (100, 0), (100, 3)]
    assert is_scored(run, far(10)) and not is_scored(run, far(10, 100, 1000))
    score_run(run, far(10, 100, 1000), "window")
    assert mazes[4:] == [(1000, 0), (1000, 3)]


def test_another_evaluation_of_the_same_name_is_played_again(run, mazes):
    score_run(run, far(10), "window")
    assert not is_scored(run, far(10, episodes=4))
    score_run(run, far(10, episodes=4), "window")
    assert mazes == [(10, 0), (10, 3), (10, 0), (10, 4)] and not is_scored(run, far(10))


def test_scores_are_normalised_where_there_is_a_reference_and_alike_episodes_are_counted(tmp_path):
    evaluation = Evaluation("a", last=2)
    score(tmp_path, evaluation, [1300.0, 700.0])
    (entry,) = scores_of(tmp_path, evaluation)["conditions"].values()
    found = summarize(entry, evaluation)
    assert found["score"] == found["normalized_score"] == pytest.approx(100 * (1000 + 20.272305) / (3234.3 + 20.272305))
    assert (found["return_mean"], found["one_trajectory"]) == (1000, 0)
    entry["checkpoints"][1] |= {"returns": [1000, 1005], "lengths": [30, 30]}
    assert summarize(entry, evaluation)["one_trajectory"] == 1
    assert summarize(entry, Evaluation("a", last=2, score="return"))["score_kind"] == "return"
    assert summarize({"checkpoints": []}, evaluation) == {"score": None}
    json.dumps(found)
