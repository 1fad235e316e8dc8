"""Files are whole whenever a process ends: killed at every file operation, stopped by an error, out of room."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hf_decision_mamba.evaluation.result import EvaluationResult
from hf_decision_mamba.reporting.files import (
    EVALUATION_FILES,
    command_line,
    replacing,
    replacing_together,
    write_json,
    writing,
)


class Killed(BaseException):
    """Stands for the end of the process: from one file operation on, none is done any more."""


class Killer:
    """Counts what is opened to write, renamed, removed or made in a folder, and ends it all at one of these."""

    events = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "shutil.rmtree")

    def __init__(self) -> None:
        self.folder, self.left = "", -1
        sys.addaudithook(self)  # for as long as the process lives

    def __call__(self, event: str, args: tuple) -> None:
        if not self.folder or not args or not str(args[0]).startswith(self.folder):
            return
        if event in self.events or (event == "open" and set(str(args[1])) & set("wax+")):
            self.left -= 1
            if self.left < 0:
                raise Killed

    @contextmanager
    def at(self, number: int, folder: Path) -> Iterator[None]:
        self.folder, self.left = str(folder), number
        try:
            yield
        finally:
            self.folder = ""


@pytest.fixture(scope="module")
def killer() -> Killer:
    return Killer()


def result(seed: int, targets: tuple[float, ...] = (100.0,)) -> EvaluationResult:
    rows = [
        {"target_return": target, "episode": i, "seed": seed + i, "return": 1.0, "length": 5, "terminated": True}
        for target in targets
        for i in range(2)
    ]
    return EvaluationResult("CartPole-v1", "window", 4, seed, [{**row, "normalized_score": None} for row in rows])


def held(folder: Path) -> tuple[int | None, set[int], set[str]]:
    """Seed of evaluation.json, seeds of evaluation.parquet, and the other results, whatever of these is there."""
    path, table = folder / "evaluation.json", folder / "evaluation.parquet"
    seed = json.loads(path.read_text())["seed"] if path.exists() else None
    seeds = set(pq.read_table(table)["seed"].to_pylist()) if table.exists() else set()
    return seed, seeds, {p.name for pattern in EVALUATION_FILES[2:] for p in folder.glob(pattern)}


def test_an_evaluation_killed_at_any_file_operation_is_the_earlier_one_or_the_new_one(tmp_path, killer, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # draws no picture: the earlier one must go
    earlier = tmp_path / "earlier"
    result(seed=0).save(earlier)
    for name in ("returns.png", "replay.mp4", "replay-target-100.mp4"):
        (earlier / name).write_text("of seed 0")
    pictures = held(earlier)[2]
    found = []
    while not found or found[-1] != (7, {7, 8}, set()):
        folder = Path(shutil.copytree(earlier, tmp_path / str(len(found))))
        try:
            with killer.at(len(found), folder):
                result(seed=7).save(folder)
        except Killed:
            pass
        found.append(held(folder))
    assert len(found) > 6 and found.count((0, {0, 1}, pictures)) >= 2
    for seed, seeds, others in found:
        assert seed in (0, 7, None)
        assert (seed, seeds, others) == (0, {0, 1}, pictures) or seed is None or (seeds, others) == ({7, 8}, set())
    leftover = tmp_path / "0"  # what a kill leaves behind does not stand in the way
    (leftover / ".evaluation.draft").mkdir(exist_ok=True)
    (leftover / ".evaluation.draft" / "returns.png").write_text("half")
    result(seed=7).save(leftover)
    assert held(leftover) == (7, {7, 8}, set()) and not list(leftover.glob(".*"))


@pytest.mark.parametrize("together", [False, True])
def test_an_error_leaves_what_was_there(tmp_path, together):
    (tmp_path / "a.json").write_text("earlier")
    place = replacing_together(tmp_path, "a.json", ["*.png"]) if together else replacing(tmp_path / "a.json")
    with pytest.raises(RuntimeError, match="in the middle"), place as draft:
        (draft / "a.json" if together else draft).write_text("half")
        raise RuntimeError("in the middle")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "earlier"}


def test_what_the_system_says_without_a_name_gets_one(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: .*there"), writing(tmp_path / "there"):
        raise OSError(28, "No space left on device")
    for error in (OSError("it cannot be drawn"), FileNotFoundError(2, "No such file", "other")):
        with pytest.raises(type(error)) as kept, writing(tmp_path / "there"):
            raise error
        assert kept.value is error


def test_a_command_says_what_was_given_as_a_shell_takes_it():
    options = {"target_return": [-900.0, 0.1], "seed": 0, "private": True, "create_pr": False, "revision": None}
    command = command_line("inspect", "my runs/a", **options, lowest=-1e6, most=1e300, env_kwargs={})
    assert command == (
        "hf-decision-mamba inspect 'my runs/a' --target-return -900 0.1 --seed 0 --private "
        "--lowest -1000000 --most 1e+300 --env-kwargs '{}'"
    )


def test_json_is_whole_or_as_it_was(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1], "a": "ä"}, sort_keys=True)
    assert (tmp_path / "a.json").read_bytes() == b'{\n  "a": "\\u00e4",\n  "b": [\n    1\n  ]\n}\n'
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text())["b"] == [1] and len(list(tmp_path.iterdir())) == 1
