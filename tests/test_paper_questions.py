"""The experiments on the papers' questions: which runs they need, when they are done, and what may be concluded."""

import json
import re

import findings
import paper_questions
import pytest
from findings import Comparison, Estimate, Question, Results, verdict
from matplotlib.text import Text
from paper_questions import Run

from hf_decision_mamba import DecisionMambaConfig
from hf_decision_mamba.training.arguments import parse_arguments

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
    assert [how for _, how in jobs] == (["window"] * 2 + ["swap 0"] * 2) * len(findings.SEEDS)
    assert [run.seed for run, _ in jobs] == sorted(4 * findings.SEEDS)


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
    found, sentence = verdict(["a", relation, "b"], Comparison(*estimates))
    assert found == label
    assert label in sentence and (first is None or second is None or f"{sum(first) / 2:.1f}" in sentence)


def test_intervals_are_those_of_the_t_distribution():
    """Three seeds with a standard deviation of 2: two degrees of freedom, whose 97.5% quantile is 4.303."""
    arguments = findings.train_arguments(SETTINGS, {"use_gate": True})
    runs = [entry(arguments, seed, window=10 + 2 * (seed - 1)) for seed in range(3)]
    results = Results({"settings": SETTINGS, "runs": runs})
    estimate = results.estimate(HOPPER, {"use_gate": True})
    half = 4.303 * 2 / 3**0.5
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((10, 10 - half, 10 + half), rel=0.01)
    assert findings.shown(estimate) == "10.0 (5.0 to 15.0, 3 of 5 seeds)"
    assert results.estimate(HOPPER, {"use_gate": None}) is None
    assert Estimate.of([1.0]).low is None


def test_ways_to_score_the_same_model_are_compared_within_it():
    """The models differ by far more than the two ways do."""
    arguments = findings.train_arguments(SETTINGS, {})
    scores = [(10.0, 8.0), (50.0, 48.5), (90.0, 87.5)]
    runs = [entry(arguments, seed, window=a, recurrent=b) for seed, (a, b) in enumerate(scores)]
    found = Results({"settings": SETTINGS, "runs": runs}).compare(HOPPER, {}, {"eval_mode": "recurrent"})
    assert found.first.overlaps(found.second) and found.loss is None
    label, sentence = verdict(["window", "not lower", "recurrent"], found)
    half = 4.303 * 0.5 / 3**0.5
    assert (found.difference.mean, found.difference.half) == pytest.approx((2.0, half), rel=0.01)
    assert label == "agrees with the paper" and "a difference of 2.0 (0.8 to 3.2, 3 of 5 seeds) in the same" in sentence


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((1.1, 1.1, 1.12), r"that of a is 10\.7% \(7\.8 to 13\.5\) higher than that of b"),
        ((0.9, 0.9, 0.88), r"that of a is 10\.7% \(7\.8 to 13\.5\) lower than that of b"),
        ((0.9, 1.1, 1.0), r"no difference can be told \(-24\.8% to \+24\.8%\)"),
    ],
)
def test_losses_are_compared_on_the_same_episodes(losses, expected):
    """The episodes held out differ between seeds, and with them the loss, by far more than the conditions do."""
    a, b = (findings.train_arguments(SETTINGS, {"use_gate": gate}) for gate in (True, False))
    runs = [{**entry(b, seed, window=1.0), "eval_loss": 10.0**seed} for seed in range(3)]
    runs += [{**entry(a, seed, window=1.0), "eval_loss": loss * 10.0**seed} for seed, loss in enumerate(losses)]
    found = Results({"settings": SETTINGS, "runs": runs}).compare(HOPPER, {"use_gate": True}, {"use_gate": False})
    assert found.difference is None
    assert re.search(expected, findings.loss_sentence(["a", "higher", "b"], found))


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
    assert arguments and "2 of 20 scores are measured" in page and "a against b: not measured yet" in page
    assert "50.5 (44.1 to 56.9, 2 of 5 seeds)" in page


@pytest.mark.parametrize("name", ["acting_mode", "sequence_layout"])
def test_titles_of_panels_beside_each_other_do_not_meet(name):
    (asked,) = findings.load_questions([findings.QUESTIONS / f"{name}.yaml"])
    picture = findings.figure(asked, Results(json.loads(paper_questions.RESULTS.read_text())))
    picture.draw_without_rendering()
    left, right = (
        next(text.get_window_extent() for text in axes.findobj(Text) if text.get_text() == axes.get_title(loc="left"))
        for axes in picture.axes
    )
    assert left.x1 < right.x0 and right.x1 <= picture.bbox.x1
