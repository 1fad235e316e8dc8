"""A hundred million transitions on the disk: `python benchmarks/big_data.py`; results/big_data.json.

Synthetic transitions (4 states, 1 action) as the cache keeps them, 3 GB that are deleted afterwards: how fast windows
are drawn from them against a million, and by how much the process grows beside the pages of the files, which the system
takes back when it needs them. Then what a second start costs. Linux only.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from measuring import in_a_process, milliseconds, resident, save, spread, target
from numpy.lib.format import open_memmap
from tqdm import tqdm

from hf_decision_mamba.data import Trajectories, WindowDataset, WindowSampler, load_trajectories

ROOT = Path(__file__).parents[1]
SIZES = {"one million": 1_000_000, "a hundred million": 100_000_000}
STATE_DIM, ACT_DIM, EPISODE, BATCH, CONTEXT = 4, 1, 1000, 64, 20
ROWS = 1 << 20  # written at a time
BATCHES, ROUNDS = 100, 15


def write(entry: Path, count: int) -> None:
    """So many random transitions, in episodes of 1000 steps, as the cache keeps them."""
    folder = entry.parent
    generator = np.random.default_rng(0)
    columns: dict[str, Any] = {}
    for name, shape in (("observations", (STATE_DIM,)), ("actions", (ACT_DIM,)), ("rewards", ())):
        columns[name] = open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, *shape))
        for start in range(0, count, ROWS):
            rows = columns[name][start : start + ROWS]
            rows[:] = generator.random(rows.shape, dtype=np.float32)
    ends = np.arange(1, count + 1) % EPISODE == 0
    flags: dict[str, Any] = {"terminations": np.zeros_like(ends), "truncations": ends}
    episodes: dict[str, Any] = {"starts": np.arange(0, count, EPISODE), "lengths": np.full(count // EPISODE, EPISODE)}
    made = Trajectories(**columns, **flags, **episodes)
    made.save(entry)
    for name in columns:
        (folder / f"{name}.npy").unlink()


def drawn_from(entry: Path) -> Callable[[], None]:
    """Draws some batches from the training part of an entry."""
    dataset = WindowDataset(Trajectories.open(entry)[0].split(0.05, seed=0)[0], CONTEXT)
    draws = iter(WindowSampler(len(dataset)))

    def draw() -> None:
        for _ in range(BATCHES):
            dataset.__getitems__(list(islice(draws, BATCH)))

    return draw


def growth(entry: Path) -> int:
    """Bytes of its own by which a process grows that opens an entry, asks for its kept statistics and draws a while."""
    drawn_from(entry.parent.parent / "one million" / "entry")()  # loads what is loaded at first use
    before = resident("RssAnon")
    Trajectories.open(entry)[0].split(0.05, seed=0)[0].statistics()
    draw = drawn_from(entry)
    for _ in range(ROUNDS):
        draw()
    return resident("RssAnon") - before


def starts(source: Path, folder: str) -> dict[str, float]:
    """Seconds from a source to statistics of its training part, the first time and the second."""
    program = "--start_of", str(source)
    first, second = (float(in_a_process(__file__, *program, HF_DATASETS_CACHE=folder)) for _ in range(2))
    return {"first": first, "second": second}


def start(source: str) -> float:
    """Seconds of one start, without the imports."""
    began = time.perf_counter()
    trajectories = load_trajectories(source)
    trajectories.statistics()
    trajectories.split(0.05, seed=0)[0].statistics()
    return time.perf_counter() - began


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where the transitions are written; the default is the temporary folder")
    parser.add_argument("--growth_of", type=Path, metavar="ENTRY", help="print the bytes of one, no more")
    parser.add_argument("--start_of", metavar="SOURCE", help="print the seconds of one, no more")
    arguments = parser.parse_args()
    if arguments.growth_of:
        print(growth(arguments.growth_of))
        return
    if arguments.start_of:
        print(start(arguments.start_of))
        return

    drawing: dict[str, Callable[[], None]] = {}
    grown, opened = {}, {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for size, count in tqdm(SIZES.items(), desc="writing"):
            entry = Path(folder) / size / "entry"
            entry.mkdir(parents=True)
            write(entry, count)
            Trajectories.open(entry)[0].split(0.05, seed=0)[0].statistics()  # from now on kept
            began = time.perf_counter()
            Trajectories.open(entry)[0].split(0.05, seed=0)[0].statistics()
            opened[size] = time.perf_counter() - began
            grown[size] = float(in_a_process(__file__, "--growth_of", str(entry))) / 2**20
            drawing[size] = drawn_from(entry)
        times = milliseconds(drawing, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        hopper = starts(ROOT / "datasets" / "hopper-medium-replay", folder)

    rates = {name: [BATCHES * 1e3 / value for value in values] for name, values in times.items()}
    for name, values in rates.items():
        print(f"{name:40} {statistics.median(values):8.0f} batches/s, {grown[name]:6.0f} MiB more")
    print(f"{'hopper-medium-replay':40} {hopper['first']:.3f} s the first time, {hopper['second']:.3f} s the second")
    small, big = SIZES
    slower = statistics.median(a / b for a, b in zip(rates[big], rates[small], strict=True))
    save(
        "drawing windows from transitions on the disk",
        {
            "batches_per_second": f"of {BATCH} windows of {CONTEXT} steps, sampler and gather, from the page cache",
            "growth_mib": "of the process's own memory, without pages of the files: open, split, statistics, draw",
            "seconds_to_open": "open, split, statistics of the training part, which are kept",
        },
        transitions=SIZES,
        batches_per_second={name: spread(values) for name, values in rates.items()},
        growth_mib=grown,
        seconds_to_open=opened,
        seconds_of_a_start={"hopper-medium-replay": hopper},
        targets=[
            target(f"rate of {big} / of {small}", slower, 0.9, at_least=True),
            target(f"growth while drawing from {big}", grown[big], 200, unit="MiB"),
            target(f"seconds to open {big}", opened[big], 1, unit="s"),
            target("second start / first, hopper-medium-replay", hopper["second"] / hopper["first"], 0.1),
        ],
    )


if __name__ == "__main__":
    main()
