"""`hf-decision-mamba info`: what a bug report needs, from the functions that decide it, and no secrets."""

import json
import re
from pathlib import Path

import pytest
import torch
from processes import run_python

from hf_decision_mamba import info
from hf_decision_mamba.cli import main
from hf_decision_mamba.info import installation_info
from hf_decision_mamba.model import threads_cpu
from hf_decision_mamba.model.selective_scan import choose_backend


@pytest.fixture(scope="module")
def found() -> dict:
    return installation_info()


def test_versions_name_what_is_there_and_what_is_not(found):
    assert found["versions"]["torch"] == torch.__version__
    assert {"python", "numba", "triton", "mamba-ssm", "gymnasium"} <= set(found["versions"])
    assert info.version_of("no-such-package") is None


def test_the_backend_is_the_one_that_would_run_and_is_tried(found):
    cpu = found["devices"]["cpu"]
    assert cpu["threads"] == torch.get_num_threads()
    for words in (cpu["scan"][0], cpu["convolution"]):
        assert words.startswith(f"{choose_backend(torch.empty(0))}: a small example ran in ")
        assert words.endswith("and agrees with the reference")
    assert Path(found["kernels"]["kept in"]).is_dir()


def test_it_names_the_library_whose_threads_the_kernels_run_on(found, monkeypatch):
    (path,) = re.findall(r"^torch's, of (.*)$", found["kernels"]["threads"])
    assert Path(path).is_file() and Path(path).is_relative_to(Path(torch.__file__).parent)
    monkeypatch.setattr(threads_cpu, "openmp", lambda: None)
    assert threads_cpu.whose_threads() == "a pool of our own: torch's OpenMP has no entry here"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda *inputs, **options: 1 / 0, "numba: FAILS on a small example (ZeroDivisionError: division by zero)"),
        (lambda u, *inputs, backend, **options: (u if backend else u + 0.5, None), "is WRONG by 5.0e-01"),
    ],
    ids=["raises", "computes something else"],
)
def test_a_backend_that_does_not_work_is_reported(broken, words, monkeypatch):
    monkeypatch.setattr(info, "selective_scan", broken)
    assert words in installation_info()["devices"]["cpu"]["scan"][0]


def test_it_says_whether_there_is_a_token_but_never_which(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "somewhere")
    monkeypatch.setattr(info.constants, "ENDPOINT", "https://me:hf_secret@hub.example")
    for option in ([], ["--json"]):
        main(["info", *option])
        printed = capsys.readouterr().out
        assert "hf_secret" not in printed and "https://hub.example" in printed and "somewhere" in printed
    assert json.loads(printed)["hub"]["token"] is True


def test_without_numba_it_says_what_runs_instead_and_why():
    code = "import sys; sys.modules |= {'numba': None, 'llvmlite': None}\nfrom hf_decision_mamba import cli"
    done = run_python(f"{code}; cli.main(['info'])")
    assert done.returncode == 0, done.stderr
    assert "scan         reference: " in done.stdout
    assert "scan_backend='numba' cannot run: numba is not installed (pip install numba)\n" in done.stdout
    assert "acting       the model's forward" in done.stdout
    assert "CPU kernels  none (" in done.stdout
    assert done.stderr == ""
