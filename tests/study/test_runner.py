"""Running a study: nothing twice, failures named and gone around, stopped and resumed, other settings refused."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from factories import HOPPER
from studies import small

import hf_decision_mamba as hdm
from hf_decision_mamba import cli
from hf_decision_mamba.study import runner, worker
from hf_decision_mamba.study.plan import load_study

#: A worker that trains nothing: it fails where a file says so, waits where another does, and else leaves a run.
WORKER = """
import json, os, signal, sys, time
from pathlib import Path
folder, threads = Path(sys.argv[1]), sys.argv[2]
print(f"{folder.parent.name} begins with {threads} threads", os.environ["OMP_NUM_THREADS"], flush=True)
if (folder / "fails").exists():
    sys.exit("error: no such luck")
def stop(*_):
    (folder / "stopped").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(folder / "began").touch()
while (folder / "waits").exists():
    time.sleep(0.01)
(folder / "training.json").write_text("{}")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where runs end at once, and count as scored when they are trained."""
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(runner, "WORKER", (sys.executable, str(tmp_path / "worker.py")))
    monkeypatch.setattr(runner, "SECONDS", 0.01)
    monkeypatch.setattr(runner, "is_scored", lambda where, evaluation: True)
    monkeypatch.setattr(runner, "collect_results", lambda study, folder, line: hdm.StudyResult(study.name, folder, []))
    return tmp_path / "runs"


def started(folder: Path) -> dict[str, int]:
    """How often each run was begun."""
    logs = {path.parent: path.read_text() for path in folder.rglob("log.txt")}
    return {path.relative_to(folder).as_posix(): text.count("begins") for path, text in logs.items()}


def test_every_run_has_a_process_a_folder_and_its_share_of_the_cores(folder, capsys, monkeypatch):
    monkeypatch.setattr(runner, "cores", lambda: 7)
    result = hdm.run_study(small(), jobs=2, output=folder, progress=False)
    assert result.failed == [] and len(started(folder)) == 8
    assert {*started(folder)} == {
        f"{d}/{m}/seed{s}" for d in ("hopper", "other") for m in ("DeMa", "RvS") for s in (0, 1)
    }
    assert (folder / "hopper/RvS/seed1/log.txt").read_text() == "RvS begins with 3 threads 3\n"
    plan = json.loads((folder / "other/RvS/seed1/plan.json").read_text())
    assert plan["settings"]["architecture"] == "rvs" and plan["settings"]["seed"] == 1
    assert plan["of_the_study"] == {
        "save_total_limit": 4,
        "eval_episodes": 0,
        "disable_tqdm": True,
        "run_name": "small/other/RvS/seed1",
        "project": "small",
    }
    hdm.run_study(small(), output=folder, progress=False)
    assert {*started(folder).values()} == {1}
    assert "8 runs, 8 of them finished" in capsys.readouterr().out


def test_a_failure_is_named_gone_around_and_tried_again(folder, capsys, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(small()))
    bad = folder / "hopper/DeMa/seed1"
    bad.mkdir(parents=True)
    (bad / "fails").touch()
    with pytest.raises(SystemExit) as stop:
        cli.main(["study", str(path), "--output", str(folder), "--jobs", "3"])
    assert stop.value.code == 1
    assert f"failed       {bad}: error: no such luck" in "".join(capsys.readouterr())
    assert len([*folder.rglob("training.json")]) == 7
    (bad / "fails").unlink()
    cli.main(["study", str(path), "--output", str(folder)])
    assert started(folder) == {name: 1 + (name == "hopper/DeMa/seed1") for name in started(folder)}


def test_what_stops_the_study_stops_its_runs_and_the_next_start_goes_on(folder, monkeypatch):
    study = load_study(small())
    for run in study.runs:
        (folder / run.folder).mkdir(parents=True)
    waiting = [folder / "hopper/RvS/seed0", folder / "other/DeMa/seed0"]
    for where in waiting:
        (where / "waits").touch()
    sleep = runner.time.sleep

    def interrupted(seconds: float) -> None:
        if all((where / "began").exists() for where in waiting):
            raise KeyboardInterrupt
        sleep(seconds)

    monkeypatch.setattr(runner.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hdm.run_study(small(), jobs=2, output=folder, progress=False)
    monkeypatch.setattr(runner.time, "sleep", sleep)
    assert all((where / "stopped").exists() for where in waiting)
    for where in waiting:
        (where / "waits").unlink()
    done = len([*folder.rglob("training.json")])
    assert done == 1  # the first run of all
    hdm.run_study(small(), jobs=2, output=folder, progress=False)
    assert len([*folder.rglob("training.json")]) == 8
    assert started(folder)["hopper/DeMa/seed0"] == 1 and started(folder)["hopper/RvS/seed0"] == 2


def test_runs_with_other_settings_are_refused_by_name_or_trained_again(folder):
    hdm.run_study(small(), jobs=4, output=folder, progress=False)
    other = small(models={"DeMa": {"preset": "dema-b3ld", "state_size": 8}, "RvS": {"architecture": "rvs"}})
    message = (
        r"other settings than the study's: hopper/DeMa/seed0 with state_size=unset \(the study's: 8\); .*--overwrite"
    )
    for report in (False, True):
        with pytest.raises(ValueError, match=message):
            hdm.run_study(other, output=folder, report=report, progress=False)
    assert {*started(folder).values()} == {1}
    hdm.run_study(other, output=folder, jobs=4, overwrite=True, progress=False)
    assert json.loads((folder / "hopper/DeMa/seed1/plan.json").read_text())["settings"]["state_size"] == 8
    assert {*started(folder).values()} == {1}  # begun anew, in new folders, and RvS not at all


def test_data_may_have_moved_and_more_checkpoints_than_were_kept_are_refused(folder, tmp_path):
    hdm.run_study(small(), jobs=4, output=folder, progress=False)
    moved = tmp_path / HOPPER.name
    moved.write_bytes(HOPPER.read_bytes())
    data = {name: {**settings, "dataset_name": str(moved)} for name, settings in small()["data"].items()}
    hdm.run_study(small(data=data, evaluations={"one": {"last": 1}}), output=folder, progress=False)
    assert json.loads((folder / "hopper/DeMa/seed0/plan.json").read_text())["of_the_study"]["save_total_limit"] == 4
    with pytest.raises(ValueError, match=r"2 checkpoints kept \(the study scores 5\)"):
        hdm.run_study(small(evaluations=None), output=folder, progress=False)


def test_a_run_that_was_never_begun_may_be_planned_otherwise(folder):
    runner.begin(load_study(small()), folder, overwrite=False)
    runner.begin(load_study(small(base={"max_steps": 30})), folder, overwrite=False)
    assert json.loads((folder / "hopper/DeMa/seed0/plan.json").read_text())["settings"]["max_steps"] == 30


def test_numbers_and_folders_that_make_no_sense_are_refused(folder):
    with pytest.raises(ValueError, match="jobs=0 must be at least 1"):
        hdm.run_study(small(), jobs=0, output=folder)
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*; --output names another one"):
        hdm.run_study(small(), output=folder, report=True)


def test_a_worker_ends_with_its_parent(monkeypatch):
    killed = worker.threading.Event()
    signals = []
    monkeypatch.setattr(worker, "PARENT_SECONDS", 0.01)
    monkeypatch.setattr(worker.os, "kill", lambda *sent: (signals.append(sent), killed.set()))
    with worker.ending_with(os.getppid()):
        assert not killed.wait(0.05)
        monkeypatch.setattr(worker.os, "getppid", lambda: 1)
        assert killed.wait(5)
    assert signals == [(os.getpid(), signal.SIGTERM)]


def test_the_cost_of_a_run_grows_over_its_interruptions(tmp_path, monkeypatch):
    for seconds in (30.0, 12.0):
        monkeypatch.setattr(worker.os, "times", lambda seconds=seconds: (seconds - 3, 1.0, 1.5, 0.5, 99.0))
        with pytest.raises(KeyboardInterrupt), worker.keeping_the_cost(tmp_path, 2):
            raise KeyboardInterrupt
    assert json.loads((tmp_path / "cost.json").read_text()) == {"cpu_seconds": 42.0, "cpu_threads": 2}


def test_a_study_from_end_to_end(tmp_path, monkeypatch):
    """A real run in a real process: trained, scored, told, and left alone when asked for again."""
    monkeypatch.chdir(tmp_path)
    content = small(
        name="one",
        base={"max_steps": 4, "warmup_steps": 1, "per_device_train_batch_size": 4, "context_length": 2},
        data={"hopper": {"dataset_name": str(HOPPER), "env_id": "Hopper-v5", "target_return": 900}},
        models={"RvS": {"architecture": "rvs", "hidden_size": 8}},
        seeds=[3],
        evaluations={"short": {"last": 2, "episodes": 2, "max_episode_steps": 5}},
    )
    result = hdm.run_study(content, progress=False)
    assert result.failed == [] and result.unfinished == {}
    (row,) = result.rows
    assert (row["checkpoint_steps"], row["episodes"], row["target_return"], row["seed"]) == ([3, 4], 4, 900.0, 3)
    assert row["folder"] == "hopper/RvS/seed3" and row["score_kind"] == "normalized_score" and row["cpu_minutes"] > 0
    record = json.loads((tmp_path / "runs/one/hopper/RvS/seed3/training.json").read_text())
    assert record["arguments"]["seed"] == 3 and record["num_parameters"] == row["num_parameters"]
    assert "| RvS |" in (tmp_path / "runs/one/README.md").read_text()

    monkeypatch.setattr(runner.subprocess, "Popen", None)  # nothing is started again
    assert hdm.run_study(content, progress=False).rows == result.rows
    (tmp_path / "runs/one/hopper/RvS/seed3/training.json").unlink()
    assert hdm.run_study(content, report=True).rows == []
