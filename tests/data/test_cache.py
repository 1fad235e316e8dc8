"""What has been read once is mapped, not read again; and nothing makes an entry that is wrong, broken or stale."""

import errno
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hub_server import Blob, LoopbackHub, Repository
from numpy.lib.format import open_memmap
from processes import run_python

from hf_decision_mamba.data import Trajectories, WindowDataset, cache, load_trajectories, storage
from hf_decision_mamba.data.storage import mapping

DATA = Path(__file__).parent
SAMPLES = DATA / "samples"
COLUMNS = ("observations", "actions", "rewards", "terminations", "truncations", "starts", "lengths", "returns_to_go")


@pytest.fixture
def hopper(tmp_path: Path) -> Path:
    return Path(shutil.copy(DATA / "hopper-tiny-v5.parquet", tmp_path / "hopper.parquet"))


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return Path(shutil.copy(SAMPLES / "d4rl.hdf5", tmp_path / "d4rl.hdf5"))


def entries() -> list[Path]:
    return sorted(cache.cache_folder().glob("*"))


def assert_same(first: Trajectories, second: Trajectories) -> None:
    for name in COLUMNS:
        values, expected = getattr(first, name), getattr(second, name)
        np.testing.assert_array_equal(values, expected, err_msg=name)
        assert values.dtype == expected.dtype
    facts = [(data.name, data.env_id, data.num_actions, data.statistics().to_dict()) for data in (first, second)]
    assert facts[0] == facts[1]


def uncached(source: Any, **options: Any) -> Trajectories:
    datasets.disable_caching()
    try:
        return load_trajectories(source, **options)
    finally:
        datasets.enable_caching()


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, a source that is read is a failure."""

    def forbid() -> None:
        def fail(*_: object) -> None:
            raise AssertionError("the source was read")

        monkeypatch.setattr("hf_decision_mamba.data.sources.read_source", fail)
        kept = storage.kept_statistics
        monkeypatch.setattr(storage, "kept_statistics", lambda folder, episodes, compute: kept(folder, episodes, fail))

    return forbid


@pytest.mark.parametrize(
    "source",
    [
        DATA / "hopper-tiny-v5.parquet",
        DATA / "breakout-tiny.parquet",
        SAMPLES / "d4rl.hdf5",
        SAMPLES / "dt.pkl",
        SAMPLES / "lerobot",
        SAMPLES / "dqn-replay-Pong",
        "minari:hopper/sample-v0",
    ],
    ids=str,
)
def test_the_second_start_reads_nothing(source: Any, monkeypatch: pytest.MonkeyPatch, no_reading: Any) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(SAMPLES / "minari"))
    expected, first = uncached(source), load_trajectories(source)
    assert_same(first, expected)
    parts = first.split(0.3, seed=1)
    statistics = [part.statistics().to_dict() for part in parts]
    no_reading()
    second = load_trajectories(source)
    assert all(mapping(getattr(second, name)) is not None for name in COLUMNS)
    assert_same(second, first)
    assert [part.statistics().to_dict() for part in second.split(0.3, seed=1)] == statistics


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (touch, {}),
        (lambda path: path.with_suffix(".json").write_text('{"env_id": "Hopper-v5"}'), {}),
        (None, {"split": "train[:50%]"}),
        (None, {"columns": {"truncations": "dones"}}),
        (None, {"action_type": "continuous"}),
    ],
    ids=["the file", "the JSON beside it", "the split", "the columns", "the type of the actions"],
)
def test_what_decides_what_is_read_makes_another_entry(
    change: Callable[[Path], object] | None, options: dict[str, Any], hopper: Path
) -> None:
    load_trajectories(hopper)
    if change is not None:
        change(hopper)
    assert_same(load_trajectories(hopper, **options), uncached(hopper, **options))
    assert len(entries()) == 2
    load_trajectories(str(hopper), **options)
    assert len(entries()) == 2


def test_a_folder_is_all_its_files(tmp_path: Path, hopper: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.move(hopper, folder / "a.parquet")
    assert load_trajectories(folder).num_episodes == 20
    shutil.copy(folder / "a.parquet", folder / "b.parquet")
    assert load_trajectories(folder).num_episodes == 40
    (folder / "README.md").write_text("---\nenvironment: {id: Hopper-v5}\n---\n")
    assert load_trajectories(folder).env_id == "Hopper-v5"
    (folder / ".hidden").write_text("nothing")
    load_trajectories(folder)
    assert len(entries()) == 3


def test_several_sources_have_an_entry_of_their_own(hopper: Path, flat: Path, no_reading: Any) -> None:
    first = load_trajectories([hopper, flat])
    assert_same(first, uncached([hopper, flat]))
    assert load_trajectories([flat, hopper]).name == "d4rl + hopper"
    hopper.with_suffix(".json").write_text('{"env_id": "Hopper-v5"}')
    assert load_trajectories([hopper, flat]).env_id == "Hopper-v5"
    hopper.with_suffix(".json").unlink()
    assert len(entries()) == 3
    no_reading()
    assert_same(load_trajectories([str(hopper), flat]), first)


def test_a_source_is_asked_again_with_options_that_it_refuses(hopper: Path) -> None:
    load_trajectories(hopper)
    with pytest.raises(ValueError, match="revision='main' has no meaning for the local file"):
        load_trajectories(hopper, revision="main")


def test_what_is_in_memory_or_not_to_be_cached_is_not(hopper: Path) -> None:
    flat = {"observations": np.zeros((2, 1)), "actions": np.zeros((2, 1)), "rewards": [1, 2], "terminals": [0, 1]}
    load_trajectories(flat)
    load_trajectories(datasets.load_dataset("parquet", data_files=str(hopper), split="train"))
    assert mapping(uncached(hopper).observations) is None
    assert not entries()


def test_warnings_are_given_again(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        load_trajectories(SAMPLES / "door-human.parquet")
        assert [record.getMessage().split(": ")[-1][:10] for record in caplog.records] == ["the action"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", [*(f"{column}.npy" for column in COLUMNS), "trajectories.json"])
@pytest.mark.parametrize(
    "damage",
    [cut, Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"[" * 100_000)],
    ids=["cut", "gone", "empty", "nested"],
)
def test_a_damaged_entry_is_read_again(
    name: str, damage: Callable[[Path], object], hopper: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_trajectories(hopper)
    (entry,) = entries()
    damage(entry / name)
    assert_same(load_trajectories(hopper), uncached(hopper))
    (warning,) = caplog.records
    assert f"data set '{hopper}': its cache {entry} is damaged" in warning.getMessage()
    caplog.clear()
    assert mapping(load_trajectories(hopper).observations) is not None
    assert not caplog.records
    assert entries() == [entry]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-5],
        lambda text: "[" * 100_000,
        lambda text: text.replace('"transitions": 2874', '"transitions": 2875'),
        lambda text: "[]",
    ],
    ids=["cut", "nested", "another digit", "a list"],
)
def test_damaged_statistics_are_computed_again(damage: Callable[[str], str], hopper: Path) -> None:
    expected = load_trajectories(hopper).statistics().to_dict()
    (path,) = cache.cache_folder().glob("*/statistics*.json")
    assert damage(path.read_text()) != path.read_text()
    path.write_text(damage(path.read_text()))
    assert load_trajectories(hopper).statistics().to_dict() == expected
    assert path.read_text().endswith("}")


def test_changed_columns_have_statistics_of_their_own(hopper: Path) -> None:
    cached = load_trajectories(hopper)
    changed = replace(cached, rewards=cached.rewards + 1)
    assert changed.statistics().return_mean == pytest.approx(cached.statistics().return_mean + 2874 / 20)
    assert changed.returns_to_go[0] == changed.returns()[0].astype(np.float32)


def test_a_full_disk_costs_the_cache_only(
    hopper: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def save(folder: Path, *columns: object) -> None:
        (folder / "observations.npy").write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(storage, "save_columns", save)
        trajectories = load_trajectories(hopper)
    assert "is not kept in the cache" in caplog.text and "No space left on device" in caplog.text
    assert not entries()
    assert_same(trajectories, load_trajectories(hopper))


def killed_while_saving(source: Path) -> None:
    blocks = storage.blocks

    def blocks_until_the_actions(values: np.ndarray) -> Iterator[np.ndarray]:
        if list(cache.cache_folder().glob("unfinished-*/actions.npy")):
            os.kill(os.getpid(), signal.SIGKILL)
        return blocks(values)

    storage.blocks = blocks_until_the_actions
    load_trajectories(source)


def loaded_many_times(source: Path) -> None:
    for times in range(100):
        assert load_trajectories(source).num_steps == 198
        if times % 5 == 4:  # and broken now and then, while others read it
            with suppress(StopIteration, OSError):
                touch(source)
                next(cache.cache_folder().glob("[0-9a-f]*/rewards.npy")).unlink()


def exit_codes(target: Callable[[Path], None], source: Path, processes: int) -> list[int | None]:
    """Run it in forked processes, all at the same time."""
    started = [multiprocessing.get_context("fork").Process(target=target, args=(source,)) for _ in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, for quick processes")


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_leaves_no_entry_and_what_it_leaves_is_deleted_a_day_later(flat: Path) -> None:
    assert exit_codes(killed_while_saving, flat, 1) == [-signal.SIGKILL]
    (left,) = entries()
    assert left.name.startswith("unfinished-")
    assert_same(load_trajectories(flat), uncached(flat))
    assert left in entries()
    os.utime(left, (0, time.time() - 2 * 24 * 60 * 60))
    touch(flat)
    load_trajectories(flat)
    assert left not in entries() and len(entries()) == 2


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_do_not_get_in_each_others_way(flat: Path) -> None:
    assert exit_codes(loaded_many_times, flat, 3) == [0, 0, 0]
    assert_same(load_trajectories(flat), uncached(flat))
    assert not list(cache.cache_folder().glob("unfinished-*"))


def test_workers_get_the_folder_and_not_a_copy(hopper: Path) -> None:
    part = load_trajectories(hopper).split(0.3, seed=1)[0]
    windows = WindowDataset(part, 5)
    content = pickle.dumps(part)
    assert len(content) < 1000
    again = WindowDataset(pickle.loads(content), 5)
    assert mapping(again.trajectories.observations) is not None
    chosen = [0, 17, len(windows) - 1]
    batches = windows.__getitems__(chosen), again.__getitems__(chosen)
    assert all((batches[0][name] == batches[1][name]).all() for name in batches[0])


def test_of_the_hub_a_second_start_asks_for_the_commit_alone(tmp_path: Path, hopper: Path) -> None:
    load = "from hf_decision_mamba.data import load_trajectories; print(load_trajectories('alice/hopper').num_episodes)"
    file = Blob(hopper.read_bytes(), lfs=True)
    repository = Repository("datasets", "alice/hopper", private=False)
    repository.add("main", {"a.parquet": file}, "twenty episodes")
    with LoopbackHub({}) as hub:
        hub.repositories["datasets", "alice/hopper"] = repository

        def run(code: str, **more: str) -> tuple[str, list[str]]:
            """Return what it prints, and the paths that it asks for."""
            asked = len(hub.requests)
            environment = hub.client_environment(tmp_path / "home") | more
            done = run_python(code, environment=environment)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip(), [path for _, path, _ in hub.requests[asked:] if "harness" not in path]

        printed, asked = run(load)
        assert printed == "20" and any(path.endswith("/a.parquet") for path in asked)
        assert run(load, HF_HUB_OFFLINE="1") == ("20", [])
        repository.add("main", {"a.parquet": file, "b.parquet": file}, "forty episodes")
        printed, asked = run(f"{load}; {load.split('; ')[1]}")
        assert printed == "40\n40"
        # The first of the two ends with the card, which is not there; the second asks once.
        assert asked[-2:] == ["/datasets/alice/hopper/resolve/main/README.md", "/api/datasets/alice/hopper"]


# Columns on the disk


def on_disk(folder: Path, steps: int, episode: int = 1000) -> Trajectories:
    """So many transitions of which each state is its number, memory-mapped."""
    folder.mkdir()
    numbers = open_memmap(folder / "observations.npy", "w+", np.float32, (steps, 4))
    numbers[:] = np.arange(steps, dtype=np.float32)[:, None]
    columns = {"actions": np.zeros((steps, 1), np.float32), "rewards": np.ones(steps, np.float32)}
    flags = dict.fromkeys(("terminations", "truncations"), np.zeros(steps, bool))
    episodes = {"starts": np.arange(0, steps, episode), "lengths": np.full(steps // episode, episode)}
    made = Trajectories(numbers, **columns, **flags, **episodes)
    (folder / "saved").mkdir()
    made.save(folder / "saved")
    return Trajectories.open(folder / "saved")[0]


def resident_file_bytes() -> int:
    """Pages of files in the memory of this process."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssFile"))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_statistics_do_not_keep_the_columns_in_memory(tmp_path: Path) -> None:
    trajectories = on_disk(tmp_path / "big", steps=2_000_000)
    before = resident_file_bytes()
    trajectories.split(0.1, seed=0)[0].statistics()
    trajectories.statistics()
    assert resident_file_bytes() - before < 2 << 20


def test_caching_says_what_it_does_to_nobody(hopper: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    load_trajectories(hopper)
    load_trajectories(hopper)
    assert not [record for record in caplog.records if record.name.startswith("hf_decision_mamba")]
