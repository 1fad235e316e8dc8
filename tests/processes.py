"""Processes of their own without the seconds that importing torch takes: forked from one that has done nothing else.

What they are forked from has imported what is slow to import, starts no thread, asks for no GPU and reads no variable
of the Hub's clients; all else, with these clients and the package, is imported anew in each of them.
"""

import gc
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

FORKS = multiprocessing.get_context("forkserver")
IMPORTED = ("torch._dynamo.convert_frame", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.export")
FORKS.set_forkserver_preload(["torch", *IMPORTED, "numba", "numpy", "pandas", "pyarrow.parquet"])


def run_python(
    code: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout: float = 300,
) -> "subprocess.CompletedProcess[str]":
    """Run code as `python -c` does, in this folder and with these variables alone; return its status and output."""
    with tempfile.TemporaryDirectory() as place:
        texts = [Path(place) / name for name in ("stdout", "stderr")]
        where = dict(os.environ if environment is None else environment), str(folder or Path.cwd())
        process = FORKS.Process(target=_run, args=(code, arguments, *where, [str(path) for path in texts]))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(code, timeout)
        return subprocess.CompletedProcess(code, process.exitcode, *(path.read_text("utf-8") for path in texts))


def run_file(path: str, *arguments: str, **options) -> "subprocess.CompletedProcess[str]":
    """Run a file as a program, as `run_python` runs code."""
    return run_python(f"import runpy; runpy.run_path({path!r}, run_name='__main__')", *arguments, **options)


def run_commands(script: str, **options) -> "subprocess.CompletedProcess[str]":
    """Run a shell script whose `hf-decision-mamba` notes its arguments; then all that was noted, in one process."""
    noting = 'hf-decision-mamba() { printf "%q " "$@"; echo; }\n'
    noted = subprocess.run(
        ["bash", "-ec", noting + script], cwd=options.get("folder"), stdout=subprocess.PIPE, text=True, check=True
    )
    code = """
import shlex, sys
from importlib.metadata import entry_points

[command] = entry_points(group="console_scripts", name="hf-decision-mamba")
for line in sys.argv[1].splitlines():
    command.load()(shlex.split(line))
"""
    return run_python(code, noted.stdout, **options)


def _run(code: str, arguments: Sequence[str], environment: dict[str, str], folder: str, texts: Sequence[str]) -> None:
    gc.freeze()  # what is imported already need not be looked at whenever garbage is collected
    for number, path in enumerate(texts, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:  # which is read when torch is imported
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    os.chdir(folder)
    sys.path = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
