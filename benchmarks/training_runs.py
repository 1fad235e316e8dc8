"""Runs of train.py, each in a process of its own on one thread: what the experiments share."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def train(output_dir: Path, arguments: Sequence[str], scored: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train and score one model, unless that was done; what its training.json and evaluation.json hold.

    An interrupted run goes on from its last checkpoint. One that is not `scored` has no evaluation.json.

    Raises:
        RuntimeError: the run failed; with the end of its log.
    """
    if not (output_dir / ("evaluation.json" if scored else "training.json")).is_file():
        options = ["--cpu_threads=1", "--disable_tqdm=true", f"--output_dir={output_dir}"]
        run_logged(["train.py", *arguments, *options, "--resume_from_checkpoint=last"], output_dir)
    return read(output_dir / "training.json"), read(output_dir / "evaluation.json") if scored else {}


def run_logged(arguments: Sequence[str], folder: Path) -> None:
    """Run Python with these arguments on one thread; what it prints is added to log.txt in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    with log.open("a", encoding="utf-8") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *arguments]
        child = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = folder / "processor_seconds.txt"  # of an interrupted run also those before
    before = float(seconds.read_text()) if seconds.is_file() else 0.0
    seconds.write_text(f"{before + used.ru_utime + used.ru_stime:.1f}\n")
    if child.returncode:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise RuntimeError(f"{log} ends with: {' '.join(last)}")


def read(path: Path) -> dict[str, Any]:
    """One JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
