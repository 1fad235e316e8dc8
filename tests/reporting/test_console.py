"""How commands end: one line and an exit code for errors and signals, said last under a launcher too."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hf_decision_mamba.reporting import console
from hf_decision_mamba.reporting.console import StoppedBySignal, on_interrupt, report_user_errors

CONSOLE = Path(console.__file__)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("what", "code", "line"),
    [
        (ValueError("a is wrong:\n  take b"), 2, "error: a is wrong: take b\n"),
        (OSError(28, "No space left on device", "runs"), 2, "error: [Errno 28] No space left on device: 'runs'\n"),
        (KeyboardInterrupt(), 130, "interrupted: nothing is half written; the same command starts again.\n"),
        (StoppedBySignal(signal.SIGTERM, "go on so."), 143, "interrupted: go on so.\n"),
    ],
)
def test_what_ends_a_command_is_one_line_and_an_exit_code(what, code, line, capsys):
    with pytest.raises(SystemExit) as end, report_user_errors():
        raise what
    assert (end.value.code, capsys.readouterr().err) == (code, line)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_and_its_handlers_are_put_back(number, code, capsys):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as end, report_user_errors():
        signal.raise_signal(number)
        raise AssertionError("it went on")
    assert end.value.code == code and capsys.readouterr().err.startswith("interrupted: ")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_noted_signal_lets_work_end_and_the_next_one_does_not():
    noted = []
    with pytest.raises(KeyboardInterrupt), on_interrupt(noted.append):
        signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
    assert noted == [signal.SIGINT]


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with on_interrupt(lambda number: pytest.fail("it was heard")):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_leave_signals_alone():
    done = []

    def work() -> None:
        with report_user_errors():
            done.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.getsignal(signal.SIGTERM)]


def test_a_reader_that_has_enough_ends_a_command_without_a_word():
    code = f"import runpy\nwith runpy.run_path({str(CONSOLE)!r})['report_user_errors']():\n"
    code += "    for number in range(10_000_000):\n        print(number)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_an_error_of_another_process_than_the_main_one_is_said_with_its_number(monkeypatch, capsys):
    monkeypatch.setattr(console, "GRACE", 0.0)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit) as end, report_user_errors():
        raise ValueError("no such file here")
    assert (end.value.code, capsys.readouterr().err) == (2, "process 3: error: no such file here\n")
    with pytest.raises(SystemExit) as end, report_user_errors():
        raise StoppedBySignal(signal.SIGTERM)
    assert (end.value.code, capsys.readouterr().err) == (143, "")  # the main process has said it


# Starts a command and ends as `accelerate launch` does when it fails.
LAUNCHER = """
import subprocess, sys
command = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
if command.wait():
    raise subprocess.CalledProcessError(command.returncode, "train.py")
"""
COMMAND = f"""
import runpy
with runpy.run_path({str(CONSOLE)!r})["report_user_errors"]():
    raise ValueError("no data set at 'there'")
"""


def test_the_line_is_the_last_one_under_a_launcher_that_prints_a_traceback():
    environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": "no"}
    command = [sys.executable, "-c", LAUNCHER, COMMAND]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    lines = done.stderr.splitlines()
    assert lines[0] == lines[-1] == "error: no data set at 'there'"
    assert "returned non-zero exit status 2" in lines[-2] and done.returncode == 1
