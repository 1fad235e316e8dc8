"""The experiments on the papers' questions: which runs they need, when they are done, and what may be concluded."""

import json

import findings
import paper_questions
import pytest
from findings import Estimate, Question, Results, verdict
from paper_questions import Run

from hf_decision_mamba import DecisionMambaConfig
from hf_decision_mamba.training_arguments import parse_arguments

HOPPER = "hopper-medium-replay"
SETTINGS = {"preset": "dema-b3ld", "context_length": 8}


def question(**conditions) -> Question:
    return Question("q", "Title", "Which?", "The paper.", conditions, [["a", "higher", "b"]])


def entry(arguments: str, seed: int, **scores: float) -> dict:
    found = {mode: {"normalized_score_mean": score} for mode, score in scores.items()}
    known = {"dataset": HOPPER, "seed": seed, "arguments": arguments, "scores": found, "versions": {}}
    return {**known, "num_parameters": 7, "eval_loss": 0.1}


@pytest.mark.parametrize("name", findings.ORDER)
def test_every_condition_is_one_that_train_py_knows(name):
    (asked,) = findings.load_questions([findings.QUESTIONS / f"{name}.yaml"])
    for condition in asked.conditions.values():
        words = findings.train_arguments(findings.SETTINGS, condition).split()
        model, data, _, _ = parse_arguments([*words, "--use_cpu=true"])
        DecisionMambaConfig.from_preset(model.preset, **model.overrides())
        assert data.context_length == condition.get("context_length", 8)


def test_all_question_files_are_on_the_page():
    assert {path.stem for path in findings.QUESTIONS.iterdir()} == {*findings.ORDER}


def test_a_training_that_several_conditions_share_is_run_once_and_scored_in_every_mode():
    questions = [question(a={}, b={"eval_mode": "recurrent"}), question(a={"context_length": 8}, b={"use_gate": False})]
    jobs = paper_questions.wanted(questions, [HOPPER], SETTINGS)
    plain, gateless = "--context_length=8 --preset=dema-b3ld", "--context_length=8 --preset=dema-b3ld --use_gate=False"
    run, other, later = Run(HOPPER, 0, plain), Run(HOPPER, 0, gateless), Run(HOPPER, 1, plain)
    assert jobs[:4] == [(run, "window"), (other, "window"), (run, "recurrent"), (later, "window")]
    assert len(jobs) == 3 * len(findings.SEEDS)


def test_exchanged_parameters_need_both_data_sets_and_come_last():
    asked = [question(a={"hidden_attention": "swap 0"}, b={})]
    assert {how for _, how in paper_questions.wanted(asked, [HOPPER], SETTINGS)} == {"window"}
    jobs = paper_questions.wanted(asked, list(findings.DATASETS), SETTINGS)
    assert [how for _, how in jobs] == ["window"] * 6 + ["swap 0"] * 6


def test_what_the_results_file_holds_is_not_run_again(tmp_path):
    path, report = tmp_path / "results.json", {"settings": SETTINGS, "runs": []}
    first, second = Run(HOPPER, 0, "--x=1"), Run(HOPPER, 1, "--x=1")
    jobs = [(first, "window"), (first, "recurrent"), (second, "window")]
    paper_questions.save(path, report, entry("--x=1", 1, window=3.0))
    paper_questions.save(path, report, entry("--x=1", 0, window=2.0))
    done = json.loads(path.read_text())["runs"]
    assert [run["seed"] for run in done] == [0, 1]
    assert paper_questions.missing(jobs, done) == [(first, "recurrent")]
    paper_questions.save(path, report, entry("--x=1", 0, recurrent=1.0))
    assert paper_questions.missing(jobs, json.loads(path.read_text())["runs"]) == []


@pytest.mark.parametrize(
    ("relation", "first", "second", "label"),
    [
        ("higher", (8, 12), (1, 5), "agrees with the paper"),
        ("higher", (1, 5), (8, 12), "disagrees with the paper"),
        ("higher", (1, 9), (8, 12), "no difference can be told"),
        ("not lower", (8, 12), (1, 5), "agrees with the paper"),
        ("not lower", (1, 5), (8, 12), "disagrees with the paper"),
        ("alike", (1, 9), (8, 12), "no difference can be told"),
        ("alike", (8, 12), (1, 5), "disagrees with the paper"),
        ("against", (8, 12), (1, 5), "a scores higher"),
        ("against", (1, 5), (8, 12), "b scores higher"),
        ("higher", (8, 12), None, "not measured yet"),
    ],
)
def test_nothing_is_claimed_where_intervals_overlap(relation, first, second, label):
    estimates = [pair and Estimate([sum(pair) / 2], *map(float, pair)) for pair in (first, second)]
    found, sentence = verdict(["a", relation, "b"], *estimates)
    assert found == label
    assert label in sentence and (first is None or second is None or f"{sum(first) / 2:.1f}" in sentence)


def test_intervals_use_the_spread_of_all_conditions():
    """Two conditions with spreads of 1 and 3 points: pooled √5 with two degrees of freedom."""
    a, b = (findings.train_arguments(SETTINGS, {"use_gate": gate}) for gate in (True, False))
    spread = 0.5**0.5
    runs = [entry(a, 0, window=10 - spread), entry(a, 1, window=10 + spread)]
    runs += [entry(b, 0, window=20 - 3 * spread), entry(b, 1, window=20 + 3 * spread)]
    results = Results({"settings": SETTINGS, "runs": runs})
    estimate = results.estimate(HOPPER, {"use_gate": True})
    assert results.spreads[HOPPER] == pytest.approx((5**0.5, 2))
    assert (estimate.mean, estimate.high - 10, 10 - estimate.low) == pytest.approx(
        (10, *2 * [4.303 * 2.5**0.5]), rel=0.01
    )
    assert results.estimate(HOPPER, {"use_gate": None}) is None


def test_a_claim_names_conditions_and_a_known_relation(tmp_path):
    path = tmp_path / "q.yaml"
    text = "{title: t, question: q, paper: p, conditions: {a: {}, b: {}}, claims: [[a, %s, %s]]}"
    for relation, other in (("higher", "c"), ("taller", "b")):
        path.write_text(text % (relation, other))
        with pytest.raises(ValueError, match="is none of"):
            findings.load_questions([path])


def test_the_page_of_a_started_experiment_says_what_is_missing():
    arguments = findings.train_arguments(SETTINGS, {})
    settings = {**findings.SETTINGS, **SETTINGS}
    asked = [question(a={}, b={"use_gate": False})]
    runs = [entry(findings.train_arguments(settings, {}), seed, window=50.0 + seed) for seed in (0, 1)]
    page = findings.page({"settings": settings, "runs": runs}, asked)
    assert arguments and "2 of 12 scores are measured" in page and "a against b: not measured yet" in page
    assert "50.0, 51.0" in page
