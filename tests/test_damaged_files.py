"""Damaged files: whatever bytes a data set or a checkpoint holds, it loads or ends in one clear error.

Files of each kind are damaged again and again, by fixed seeds and by fresh ones, in a process whose memory is bounded
and whose every load has its time: nothing may hang it, fill it or end it.
"""

import os
import random
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

from factories import BREAKOUT, HOPPER, ROOT, SAMPLES, damaged
from processes import run_file

SOURCES = {
    "one row per episode": HOPPER,
    "frames": BREAKOUT,
    "Minari": SAMPLES / "minari",
    "D4RL": SAMPLES / "d4rl.hdf5",
    "pickle": SAMPLES / "dt.pkl",
    "LeRobot": SAMPLES / "lerobot",
    "DQN replay": SAMPLES / "dqn-replay-Pong",
    "checkpoint": ROOT / "tests" / "checkpoints" / "dema-b3ld",
}
FIXED, FRESH = 30, 10  # trials of each kind
ROOM = 1 << 30  # bytes beyond what reading the undamaged files has taken
SECONDS = 60  # of one load; it takes a fraction of one


def test_damaged_files_load_or_end_in_one_error(tmp_path):
    seed = secrets.randbits(32)
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_DATASETS_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = run_file(__file__, str(seed), environment=environment)
    trials = done.stdout.splitlines()
    assert done.returncode == 0, f"{trials[-1:]} ended its process:\n{done.stderr[-3000:]}"
    refused = {line.partition(":")[0]: int(line.split()[-2]) for line in trials if line.endswith(" refused")}
    assert refused.keys() == SOURCES.keys() and len(trials) == (FIXED + FRESH + 1) * len(SOURCES)
    assert min(refused.values()) > 5, refused


def load(kind: str, place: Path) -> None:
    if kind == "checkpoint":
        DecisionMambaPolicy.from_pretrained(place)
    elif kind == "Minari":
        load_trajectories("minari:hopper/sample-v0")
    else:
        load_trajectories(place)


def try_all(kind: str, fresh: int, folder: Path) -> None:
    """Damage and load, printing each trial before it is made; what is no ValueError or OSError ends the program."""
    source = SOURCES[kind]
    place = folder / source.name
    copy = shutil.copytree if source.is_dir() else shutil.copy
    copy(source, place)
    os.environ["MINARI_DATASETS_PATH"] = str(place)
    load(kind, place)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.RLIM_INFINITY))
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    files = [path for path in files if path.name != "recorded.safetensors"]
    refused = 0
    for number in range(FIXED + FRESH):
        seed = number if number < FIXED else fresh + number
        rng = random.Random(f"{kind} {seed}")
        path = rng.choice(files)
        print(f"{kind}, seed {seed}: {path.name}", flush=True)
        original = path.read_bytes()
        path.write_bytes(damaged(original, rng))
        signal.alarm(SECONDS)
        try:
            load(kind, place)
        except (ValueError, OSError):
            refused += 1
        finally:
            signal.alarm(0)
            path.write_bytes(original)
    print(f"{kind}: {refused} refused", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    from hf_decision_mamba import DecisionMambaPolicy, load_trajectories

    for kind in SOURCES:  # each in a process of its own, which has nothing left to import
        if child := os.fork():
            if status := os.waitpid(child, 0)[1]:
                sys.exit(f"{kind} ended with {os.waitstatus_to_exitcode(status)}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            try_all(kind, int(sys.argv[1]), Path(folder))
        os._exit(0)
