"""Running a study: each run in a process of its own, some at a time; what is done is not done again.

Whatever ends a study, the same command goes on: a run from its last checkpoint, an evaluation from its last episodes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..reporting.console import say
from ..reporting.files import TRAINING_FILE, command_line, portable, read_json, write_json
from ..reporting.tables import count_in_words
from ..training.arguments import DecisionMambaTrainingArguments
from .plan import PLAN_FILE, PlannedRun, Study, load_study
from .results import StudyResult, collect_results
from .scoring import is_scored

LOG_FILE = "log.txt"
WORKER = (sys.executable, "-m", "hf_decision_mamba.study.worker")
SECONDS = 0.2  # between two looks at the processes
_OF_TRAINING = 0.9  # of a run's time, as far as the progress bar knows
_RUNS_NAMED = 5
_INTERRUPTIONS = 2  # whose checkpoints are kept beside those that are scored
#: Settings that name a place: where data lie does not tell two runs apart, what they are called does.
_PLACES = ("dataset_name", "model_name_or_path")


def run_study(
    study: str | os.PathLike[str] | Mapping[str, Any],
    *,
    jobs: int = 1,
    output: str | os.PathLike[str] | None = None,
    report: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> StudyResult:
    """Train every model of a study on every data set with every seed, score them, and write tables and pictures.

    Each run is a process of its own, in a folder of its own. What is done is not done again: the same call goes on
    wherever one was interrupted. A run that fails is named, and tried again the next time. docs/studies.md says what
    the file may hold, and what is written.

    Args:
        study: a YAML file, or what such a file holds.
        jobs: runs at a time, which share out the cores.
        output: folder of the study; runs/NAME if not given.
        report: train and score nothing, write the results of what has finished.
        overwrite: delete runs that were trained with other settings than the file's by now.
        progress: whether to show a progress bar.

    Raises:
        FileNotFoundError: there is no such file, or no such data set.
        TypeError: `study` is neither a path nor a mapping.
        ValueError: a key, setting or value that cannot be right, or runs with other settings in the folder.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs} must be at least 1.")
    planned = load_study(study)
    folder = Path("runs", planned.name) if output is None else Path(output).expanduser()
    failed: list[PlannedRun] = []
    if not report:
        planned.check_sources()
        begin(planned, folder, overwrite)
        failed = run_missing(planned, folder, jobs, progress)
    elif not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} of a study that has begun; --output names another one.")
    else:
        _refuse_others(planned, folder)
    result = collect_results(planned, folder, last_line)
    result.failed = [run.folder for run in failed]
    if not isinstance(study, Mapping):
        said = None if output is None else portable(str(output))
        result.command = command_line("study", portable(str(study)), jobs=jobs if jobs > 1 else None, output=said)
    result.save()
    return result


def begin(study: Study, folder: Path, overwrite: bool) -> None:
    """Write the plan of every run into its folder.

    Args:
        folder: of the study.
        overwrite: delete runs that were trained with other settings.

    Raises:
        ValueError: there are such runs, and nobody asked to delete them.
    """
    others = _others(study, folder)
    if not overwrite:
        _refuse_others(study, folder)
    for run in study.runs:
        where = folder / run.folder
        if run.folder in others:
            shutil.rmtree(where)
        where.mkdir(parents=True, exist_ok=True)
        held = read_json(where / PLAN_FILE)
        write_json(
            where / PLAN_FILE,
            {
                **run.to_dict(),
                "of_the_study": {
                    "save_total_limit": max(
                        study.last + _INTERRUPTIONS, held.get("of_the_study", {}).get("save_total_limit", 0)
                    ),
                    "eval_episodes": 0,  # it is scored when it is trained
                    "disable_tqdm": True,
                    "run_name": f"{study.name}/{run.folder}",
                    "project": study.name,
                },
                "evaluations": [asdict(evaluation) for evaluation in study.evaluations],
            },
        )


def _others(study: Study, folder: Path) -> dict[str, str]:
    """Return the folders of runs with other settings than the study's, and which."""
    found = {run.folder: _other_settings(run, folder, study.last) for run in study.runs}
    return {name: other for name, other in found.items() if other}


def _refuse_others(study: Study, folder: Path) -> None:
    others = _others(study, folder)
    if others:
        named = [f"{name} with {other}" for name, other in [*others.items()][:_RUNS_NAMED]]
        more = f" and {len(others) - _RUNS_NAMED} more" if len(others) > _RUNS_NAMED else ""
        raise ValueError(
            f"{folder} holds runs with other settings than the study's: {'; '.join(named)}{more}. Keep them: another "
            "--output; or delete them and train them again: --overwrite"
        )


def _other_settings(run: PlannedRun, folder: Path, last: int) -> str:
    """Return in what the run that a folder holds differs from the one that is planned; nothing where it does not."""
    where = folder / run.folder
    held, trained = read_json(where / PLAN_FILE), (where / TRAINING_FILE).is_file()
    if not held or not (trained or any(where.glob("checkpoint-*"))):
        return ""
    had, asked = _comparable(held["settings"]), _comparable(run.settings)
    names = [name for name in sorted({*had, *asked}) if had.get(name) != asked.get(name)]
    others = [f"{name}={_word(had.get(name))} (the study's: {_word(asked.get(name))})" for name in names]
    kept = held["of_the_study"]["save_total_limit"] - _INTERRUPTIONS
    if kept < last and trained:
        others.append(f"{kept} checkpoints kept (the study scores {last})")
    return ", ".join(others)


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    def names(value: Any) -> Any:
        return [Path(item).name for item in value] if isinstance(value, list) else Path(value).name

    settings = json.loads(json.dumps(settings))
    return {name: names(value) if name in _PLACES else value for name, value in settings.items()}


def _word(value: Any) -> str:
    return "unset" if value is None else str(value)


def is_finished(study: Study, run: PlannedRun, folder: Path) -> bool:
    """Return whether a run has been trained and scored in every way that the study asks for."""
    where = folder / run.folder
    trained = (where / TRAINING_FILE).is_file()
    return trained and all(is_scored(where, evaluation) for evaluation in study.evaluations)


def last_line(folder: Path) -> str:
    """Return the last line of a run's log; nothing where there is none."""
    log = folder / LOG_FILE
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1].strip() if lines else ""


def run_missing(study: Study, folder: Path, jobs: int, progress: bool) -> list[PlannedRun]:
    """Train and score what is not finished, `jobs` at a time; return the runs that failed.

    What stops this process stops the others, which save a checkpoint first.
    """
    missing = deque(run for run in study.runs if not is_finished(study, run, folder))
    threads = max(1, cores() // jobs)
    running: dict[subprocess.Popen[bytes], PlannedRun] = {}
    failed: list[PlannedRun] = []
    done = len(study.runs) - len(missing)
    say(f"study        {study.name}: {count_in_words(len(study.runs), 'run')}, {done} of them finished, in {folder}")
    with _bar(len(study.runs), done, progress and bool(missing)) as bar:
        try:
            while missing or running:
                while missing and len(running) < jobs:
                    run = missing.popleft()
                    running[_start(study, run, folder, threads)] = run
                for process in [process for process in running if process.poll() is not None]:
                    run = running.pop(process)
                    if process.returncode:
                        failed.append(run)
                        tqdm.write(f"failed       {folder / run.folder}: {_why(process.returncode, folder, run)}")
                    done += 1
                bar.set_postfix_str(", ".join(run.folder for run in running.values()), refresh=False)
                bar.update(done + sum(_share(run, folder) for run in running.values()) - bar.n)
                time.sleep(SECONDS if running else 0)
        finally:
            _stop(running)
    return failed


def _bar(total: int, done: int, progress: bool) -> tqdm:
    form = "{percentage:3.0f}%|{bar:20}| {n:.1f}/{total} runs [{elapsed}<{remaining}] {postfix}"
    interval = 0.5 if sys.stderr.isatty() else 30.0  # a log file needs no animation
    return tqdm(total=total, initial=done, bar_format=form, disable=not progress, mininterval=interval, miniters=0)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(study: Study, run: PlannedRun, folder: Path, threads: int) -> subprocess.Popen[bytes]:
    """Start the process of a run; Ctrl-C does not reach it, `_stop` does."""
    where = folder / run.folder
    environment = {"WANDB_RUN_GROUP": study.name, **os.environ, "OMP_NUM_THREADS": str(threads)}
    with (where / LOG_FILE).open("ab") as log:
        return subprocess.Popen(
            [*WORKER, str(where), str(threads), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _why(code: int, folder: Path, run: PlannedRun) -> str:
    return f"ended by signal {-code}" if code < 0 else last_line(folder / run.folder)


def _share(run: PlannedRun, folder: Path) -> float:
    """Return how much of a run is done, by its newest checkpoint."""
    steps = run.settings.get("max_steps", DecisionMambaTrainingArguments.max_steps)
    found = [int(path.name.split("-")[-1]) for path in (folder / run.folder).glob("checkpoint-*")]
    return _OF_TRAINING * min(1.0, max(found, default=0) / steps) if steps > 0 else 0.0


def _stop(running: Mapping[subprocess.Popen[bytes], PlannedRun]) -> None:
    """Tell processes to end, and wait for their checkpoints; interrupted again, wait no longer."""
    for process in running:
        process.terminate()
    try:
        for process in running:
            process.wait()
    except KeyboardInterrupt:
        for process in running:
            process.kill()
        raise
