"""How a command talks and ends: what the main process prints, errors of one line, Ctrl-C and SIGTERM."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Timer
from typing import Any

#: What tells a process to stop: Ctrl-C; a scheduler, a container's end or `kill`.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Seconds in which the launcher ends the other processes, if the main one has the same error and says it.
GRACE = 10.0
_NOBODY_READS = 141  # a shell's exit code of what SIGPIPE ends, which Windows has not
PAUSE = 5.0  # seconds; kernels that are compiled one after the other are said once
#: A program that says a line when its launcher has ended.
_REPEAT = """
import sys, time, psutil
def runs(number):
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
line, tries = sys.stdin.read(), 1200
while tries and runs(int(sys.argv[1])):
    time.sleep(0.05)
    tries -= 1
if tries:
    print(line, file=sys.stderr)
"""


class StoppedBySignal(KeyboardInterrupt):
    """A signal told the process to stop.

    Args:
        number: the signal's.
        message: what is left, and what to do.
    """

    def __init__(
        self, number: int = signal.SIGINT, message: str = "nothing is half written; the same command starts again."
    ):
        super().__init__(message)
        self.number = number


@contextmanager
def on_interrupt(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the number of the first SIGINT or SIGTERM; the next one does what it did before.

    A signal that is ignored (as under nohup) stays ignored; in another thread than the main one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _: object) -> None:
        restore()
        act(number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


@contextmanager
def report_user_errors() -> Iterator[None]:
    """End a script with one line instead of a traceback, on what its user can put right and on SIGINT and SIGTERM.

    The exit codes are 2, and 130, 141 and 143 as of shells; 141, where nobody reads the output any more (`| head`), has
    no line. Under `accelerate launch` and torchrun, which print a traceback
    of their own when a process fails, the line is said again after it.
    """
    launcher = os.getppid()

    def interrupt(number: int) -> None:
        raise StoppedBySignal(number)

    try:
        with on_interrupt(interrupt):
            yield
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise SystemExit(_NOBODY_READS) from None
        code, line = 2, f"error: {error}"
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, StoppedBySignal) else StoppedBySignal()
        code, line = 128 + stopped.number, f"interrupted: {stopped}"
    else:
        return
    line = " ".join(line.split())
    if not is_main_process():
        if code == 2:
            time.sleep(GRACE)
            print(f"process {os.environ['RANK']}: {line}", file=sys.stderr, flush=True)
        raise SystemExit(code)
    print(line, file=sys.stderr, flush=True)
    launched = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & set(os.environ)
    if launched and os.getppid() == launcher:
        _say_after(launcher, line)
    raise SystemExit(code)


def _nobody_reads() -> bool:
    """Return whether what the output was piped to has ended; the rest of the output then goes nowhere."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _say_after(launcher: int, line: str) -> None:
    """Leave a process behind that says a line once the launcher has ended."""
    command = [sys.executable, "-c", _REPEAT, str(launcher)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(line)


def is_main_process() -> bool:
    """Return whether this process is the one that prints."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """Print, on the main process only."""
    if is_main_process():
        print(text, flush=True)


@contextmanager
def waiting(for_what: str, seconds: float = 1.0) -> Iterator[None]:
    """Say what is waited for, if it takes longer than that."""
    patience = Timer(seconds, say, [for_what])
    patience.start()
    try:
        yield
    finally:
        patience.cancel()


@cache
def say_when_kernels_compile() -> None:
    """Say it from now on whenever numba begins to compile kernels, which its cache has the next time."""
    try:
        from numba.core import event
    except ImportError:
        return

    class Listener(event.Listener):
        running, last = 0, -math.inf

        def on_start(self, event: Any) -> None:
            if self.running == 0 and time.monotonic() - self.last > PAUSE:
                say("kernels      compiling them for this machine; the next run finds them")
            self.running += 1

        def on_end(self, event: Any) -> None:
            self.running -= 1
            self.last = time.monotonic()

    event.register("numba:compile", Listener())
