"""What a study tells: rows, intervals over seeds, tables, pictures by their numbers, and files without folders."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from studies import finish, score, small

import hf_decision_mamba as hdm
from hf_decision_mamba import cli
from hf_decision_mamba.evaluation.scores import normalized_score
from hf_decision_mamba.evaluation.statistics import t_interval
from hf_decision_mamba.study import figures
from hf_decision_mamba.study.plan import load_study
from hf_decision_mamba.study.results import collect_results, page
from hf_decision_mamba.study.runner import is_finished, last_line


def returns(run) -> float:
    """On each data set RvS earns more than DeMa, and seed 1 more than seed 0."""
    return 1000.0 + 200 * run.seed + 1000 * (run.model == "RvS") + 100 * (run.data == "other")


def read(study):
    """What its folder holds, without the files and pictures that a report writes."""
    return collect_results(study, Path("runs/small"), last_line)


def scores(*values: float) -> list[float]:
    return [float(normalized_score("Hopper-v5", value)) for value in values]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study that has ended but for one run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    planned = load_study(small())
    for run in planned.runs:
        finish(run, planned, tmp_path / "runs" / "small", returns(run))
    last = tmp_path / "runs" / "small" / "other/RvS/seed1"
    (last / "training.json").unlink()
    (last / "log.txt").write_text(f"begins\nerror: no room in {last}\n\n")
    return planned


def test_summaries_are_over_seeds(study):
    result = read(study)
    assert len(result.rows) == 7 and result.unfinished.keys() == {"other/RvS/seed1"}
    summary = {(row["data"], row["variant"]): row for row in result.summary()}
    assert summary["hopper", "DeMa"]["scores"] == pytest.approx(scores(1000, 1200))
    assert summary["hopper", "DeMa"]["ci95"] == pytest.approx(t_interval(scores(1000, 1200)))
    assert summary["hopper", "DeMa"]["mean"] == pytest.approx(scores(1100)[0])
    assert summary["hopper", "DeMa"]["cpu_minutes"] == pytest.approx(2.0)
    assert summary["other", "RvS"]["scores"] == pytest.approx(scores(2100))
    assert summary["other", "RvS"]["ci95"] == [None, None]


def test_data_sets_are_put_together_where_scores_mean_the_same(study):
    result = read(study)
    assert result.shared_data("window") == ["hopper", "other"]
    dema, rvs = result.aggregate("window")
    assert dema["iqm"] == pytest.approx(np.mean(scores(1100, 1200)))
    assert dema["iqm_ci95"][0] >= min(scores(1000)) and dema["iqm_ci95"][1] <= max(scores(1300))
    assert rvs["iqm"] == pytest.approx(np.mean(scores(2000, 2200, 2100)))
    (pair,) = result.improvement("window")
    assert (pair["variant"], pair["over"], pair["probability"], pair["ci95"]) == ("DeMa", "RvS", 0.0, [0.0, 0.0])
    for row in result.rows:
        row["score_kind"] = "return"
    assert result.shared_data("window") == [] == result.aggregate("window") == result.improvement("window")


def test_a_data_set_that_one_of_the_models_has_not_seen_is_left_out(study, tmp_path):
    (tmp_path / "runs/small/other/RvS/seed0/training.json").unlink()
    result = read(study)
    assert result.shared_data("window") == ["hopper"]
    assert result.aggregate("window")[0]["data"] == ["hopper"]


def test_files_hold_everything_and_no_folder_of_the_machine(study, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(small()))
    (tmp_path / "runs/small/scores-of-before.png").touch()
    cli.main(["study", str(path), "--report"])
    folder = tmp_path / "runs" / "small"
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert len(rows) == 7 and rows[0]["checkpoint_scores"] == pytest.approx(scores(1000, 1000))
    assert (rows[0]["num_parameters"], rows[0]["cpu_minutes"], rows[0]["steps"]) == (100, 1.5, 20)
    results = json.loads((folder / "results.json").read_text())
    assert results["command"] == "hf-decision-mamba study small.yaml"
    assert results["study"]["models"] == small()["models"] and results["machine"]["versions"] == {"torch": "2.13.0"}
    assert results["runs"][0]["score"] == rows[0]["score"]
    assert results["over_data_sets"][0]["data"] == ["hopper", "other"]
    text = (folder / "README.md").read_text()
    low, high = t_interval(scores(1000, 1200))
    cells = f"| DeMa | 100 | 2.0 | {scores(1100)[0]:.1f} | {low:.1f} to {high:.1f} | "
    assert cells + ", ".join(f"{value:.1f}" for value in scores(1000, 1200)) + " |" in text
    assert "other/RvS/seed1: error: no room in runs/small/other/RvS/seed1" in text
    assert "2 checkpoints of 2 episodes each, window mode; the score is the normalised score." in text
    pictures = {path.name for path in folder.glob("*.png")}
    kinds = ("aggregate", "cost", "improvement", "profile", "scores")
    assert pictures == {"learning_curves.png", *(f"{kind}-window.png" for kind in kinds)}
    assert all(f"]({name})" in text for name in pictures)
    for name in ("README.md", "results.json", "results.parquet"):
        assert str(tmp_path).encode() not in (folder / name).read_bytes(), name


def test_before_anything_is_finished_the_report_says_so(tmp_path):
    result = hdm.run_study(small(), output=tmp_path, report=True)
    assert result.rows == [] and len(result.unfinished) == 8
    assert "no run is finished" in result.table() and "hopper/DeMa/seed0: not started" in result.table()
    assert "0 runs with scores, 8 not finished" in (tmp_path / "README.md").read_text()


def test_episodes_that_are_one_trajectory_are_said(study, tmp_path):
    run = study.runs[0]
    alike = {"returns": [1000, 1001], "lengths": [7, 7]}
    score(tmp_path / "runs/small" / run.folder, study.evaluations[0], **alike)
    assert "In 2 of 14 checkpoints the episodes are one trajectory" in page(read(study), [])


def test_scores_are_drawn_seed_by_seed(study):
    result = read(study)
    hopper, other = figures.plot_scores(result, "window").axes
    points = [line for line in hopper.lines if line.get_label() == "one seed"]
    assert [pytest.approx(scores(*values)) for values in ((1000, 1200), (2000, 2200))] == [
        [*line.get_ydata()] for line in points
    ]
    assert [label.get_text() for label in hopper.get_xticklabels()] == ["DeMa", "RvS"]
    assert sum(len(line.get_ydata()) for line in other.lines if line.get_label() == "one seed") == 3
    assert (hopper.get_title("left"), hopper.get_ylabel()) == ("hopper", "normalised score")


def test_what_is_said_over_data_sets_is_drawn(study):
    result = read(study)
    (axes,) = figures.plot_aggregate(result, "window").axes
    values, bars = [line.get_xdata()[0] for line in axes.lines], axes.patches
    for entry, value, bar in zip(result.aggregate("window"), values, bars, strict=True):
        assert value == entry["iqm"]
        assert [bar.get_x(), bar.get_x() + bar.get_width()] == pytest.approx(entry["iqm_ci95"])
    (axes,) = figures.plot_profile(result, "window").axes
    dema, rvs = axes.lines
    between = np.searchsorted(dema.get_xdata(), scores(1150)[0])  # 1000 and 1100 are below, 1200 and 1300 above
    assert (dema.get_ydata()[between], rvs.get_ydata()[between]) == (0.5, 1.0)
    assert dema.get_ydata()[0] == 1 and rvs.get_ydata()[-1] == 0
    (axes,) = figures.plot_improvement(result, "window").axes
    assert axes.lines[0].get_xdata()[0] == 0 and axes.get_yticklabels()[0].get_text() == "DeMa > RvS"


def test_the_score_is_drawn_against_its_costs(study):
    result = read(study)
    parameters, minutes = figures.plot_cost(result, "window").axes
    drawn = [(line.get_xdata()[0], line.get_ydata()[0]) for line in parameters.lines]
    assert drawn == [
        (100, pytest.approx(np.mean(scores(1100, 1200)))),
        (700, pytest.approx(np.mean(scores(2100, 2100)))),
    ]
    assert [line.get_xdata()[0] for line in minutes.lines] == [2.0, pytest.approx((2.0 + 1.5) / 2)]
    for row in result.rows:
        row["score_kind"] = "return"
    assert len(figures.plot_cost(result, "window").axes) == 4  # each data set by itself


def test_learning_curves_have_a_line_a_seed_and_their_mean(study):
    result = read(study)
    axes = figures.plot_learning_curves(result).axes[0]
    first, second, mean = axes.lines[:3]
    assert [[*line.get_ydata()] for line in (first, second, mean)] == [[0.6, 0.5], [0.6, 1.5], [0.6, 1.0]]
    assert [*mean.get_xdata()] == [10, 20] and axes.get_ylabel() == "held-out loss"


def test_a_sweep_has_a_table_and_a_line(tmp_path):
    content = small(evaluations={"far": {"sweep": {"length": [10, 1000]}, "last": 1, "score": "success_rate"}})
    planned = load_study(content)
    for run in planned.runs:
        finish(run, planned, tmp_path)
        score(tmp_path / run.folder, planned.evaluations[0], [0.0, 0.0], successes=[True, run.seed == 1])
    path = tmp_path / planned.runs[0].folder / "scores" / "far.json"
    kept = json.loads(path.read_text())
    kept["conditions"]["length 1000"]["checkpoints"] = []  # its sweep ended before
    path.write_text(json.dumps(kept))
    assert is_finished(planned, planned.runs[0], tmp_path)
    result = collect_results(planned, tmp_path, last_line)
    text = page(result, ["sweep-far.png"])
    assert "| model | length 10 | length 1000 |" in text
    assert "| DeMa | 0.75 (0.50, 1.00) | 1.00 (1.00) |" in text and "![sweep-far](sweep-far.png)" in text
    hopper, _ = figures.plot_sweep(result, "far").axes
    points, means = hopper.lines[:2]
    assert [*zip(points.get_xdata(), points.get_ydata(), strict=True)] == [(10, 0.5), (10, 1.0), (1000, 1.0)]
    assert [*means.get_ydata()] == [0.75, 1.0] and hopper.get_xscale() == "log"
