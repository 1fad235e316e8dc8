"""One run of a study in a process of its own: trained to the end, then scored; what is done already is left alone.

`python -m hf_decision_mamba.study.worker FOLDER THREADS PARENT`: the folder holds the run's plan.json; the last is the
process that starts this one, without which it ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..reporting.console import report_user_errors
from ..reporting.files import TRAINING_FILE, read_json, write_json
from ..training.run import main as train
from .plan import COST_FILE, PLAN_FILE, Evaluation, words_of
from .scoring import is_scored, score_run

PARENT_SECONDS, _COST_SECONDS = 1, 10  # between two looks at the parent, and two notes of the cost


def main(folder: Path, threads: int, parent: int) -> None:
    """Do what the plan in a run's folder says, as far as it is not done."""
    plan = read_json(folder / PLAN_FILE)
    with ending_with(parent), alone_in(folder):
        if not (folder / TRAINING_FILE).is_file():
            words = [*words_of(plan["settings"]), *words_of(plan["of_the_study"])]
            options = {"output_dir": str(folder), "cpu_threads": threads, "resume_from_checkpoint": "last"}
            with keeping_the_cost(folder, threads):
                train([*words, *words_of(options)], plays_later=True)
        for content in plan["evaluations"]:
            evaluation = Evaluation.from_dict(content)
            if not is_scored(folder, evaluation):
                score_run(folder, evaluation, plan["settings"].get("eval_mode", "window"))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait for a process that still ends in this folder, whose parent was killed."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def ending_with(parent: int) -> Iterator[None]:
    """Stop this process, as SIGTERM does, when the one that started it is gone; it may be before it is asked."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PARENT_SECONDS):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def keeping_the_cost(folder: Path, threads: int) -> Iterator[None]:
    """Add this process's CPU time, from its start on and that of its children, to what the run's folder says of it."""
    before = read_json(folder / COST_FILE).get("cpu_seconds", 0.0)
    over = threading.Event()

    def note() -> None:
        write_json(folder / COST_FILE, {"cpu_seconds": before + sum(os.times()[:4]), "cpu_threads": threads})

    def watch() -> None:
        while not over.wait(_COST_SECONDS):
            note()

    note()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        note()


if __name__ == "__main__":
    with report_user_errors():
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
