"""Pickles of arrays are read as data: nothing of them runs, whatever they ask for, and each refusal says why."""

import os
import pickle
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import SAMPLES

from hf_decision_mamba.data import load_trajectories


def episodes(dtype: str = "<f4") -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {
            "observations": random.normal(size=(steps, 3)).astype(dtype),
            "actions": random.uniform(-1, 1, (steps, 2)).astype(dtype),
            "rewards": random.normal(size=steps).astype(dtype),
            "terminals": np.arange(steps) == steps - 1,
        }
        for steps in (4, 1, 3)
    ]


def save(folder: Path, content: bytes) -> Path:
    path = folder / "episodes.pkl"
    path.write_bytes(content)
    return path


def assert_read(path: Path, expected: list[dict[str, Any]]) -> None:
    trajectories = load_trajectories(path)
    for ours, theirs in (("observations",) * 2, ("actions",) * 2, ("rewards",) * 2, ("terminations", "terminals")):
        values = np.concatenate([one[theirs] for one in expected])
        np.testing.assert_array_equal(getattr(trajectories, ours), values.astype(getattr(trajectories, ours).dtype))


def test_the_sample_holds_the_episodes_that_the_d4rl_sample_holds() -> None:
    pickled, flat = load_trajectories(SAMPLES / "dt.pkl"), load_trajectories(SAMPLES / "d4rl.hdf5", split="train[:6]")
    for name in ("observations", "actions", "rewards", "terminations", "truncations", "starts", "lengths"):
        np.testing.assert_array_equal(getattr(pickled, name), getattr(flat, name))


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<f2"])
@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(protocol: int, dtype: str, tmp_path: Path) -> None:
    assert_read(save(tmp_path, pickle.dumps(episodes(dtype), protocol)), episodes(dtype))


@pytest.mark.parametrize("protocol", [2, 3])
def test_names_of_numpy_1(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps(episodes(), protocol)
    assert b"numpy._core" in content
    assert_read(save(tmp_path, content.replace(b"numpy._core", b"numpy.core")), episodes())


@pytest.mark.parametrize("protocol", range(6))
def test_other_ways_to_keep_the_same_arrays(protocol: int, tmp_path: Path) -> None:
    first, second, third = episodes("<f8")
    changed = [
        {**first, "observations": np.asfortranarray(first["observations"]), "note": "not a column", "more": {"a": 1}},
        {**second, "rewards": second["rewards"].tolist(), "terminals": [True]},
        {**third, "rewards": list(third["rewards"]), "observations": list(third["observations"])},
    ]
    assert_read(save(tmp_path, pickle.dumps(changed, protocol)), episodes("<f8"))


def test_flat_columns_in_a_pickle(tmp_path: Path) -> None:
    columns = {name: np.concatenate([one[name] for one in episodes()]) for name in episodes()[0]}
    path = save(tmp_path, pickle.dumps({**columns, "timeouts": np.zeros(8, bool)}))
    assert_read(path, episodes())
    assert load_trajectories(path).lengths.tolist() == [4, 1, 3]


def test_columns_are_mapped_and_facts_are_beside_the_file(tmp_path: Path) -> None:
    path = save(tmp_path, pickle.dumps([{**one, "obs": one["observations"] + 1} for one in episodes()]))
    path.with_suffix(".json").write_text('{"env_id": "Hopper-v5"}')
    trajectories = load_trajectories(path, columns={"observations": "obs"}, split="train[1:]")
    assert (trajectories.num_episodes, trajectories.env_id) == (2, "Hopper-v5")
    np.testing.assert_array_equal(trajectories.observations[:1], episodes()[1]["observations"] + 1)


class Call:
    """Pickles to the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class Evil:
    """Pickles to an object with a state."""

    def __init__(self) -> None:
        self.name = "value"


def array_of(shape: Any, content: Any, code: Any = "f4", state: Any = (3, "<", None, None, None, -1, -1, 0)) -> bytes:
    """The pickle of one episode whose observations are described in this way."""

    def plain(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n" + b"(cnumpy\nndarray\nK\x00\x85U\x01btR"
    dtype = b"cnumpy\ndtype\n" + plain((code, 0, 1)) + b"R" + plain(state) + b"b"
    content = b"B" + struct.pack("<I", len(content)) + content if isinstance(content, bytes) else plain(content)
    return (
        b"\x80\x02]}U\x0cobservations" + reconstruct + b"(K\x01" + plain(shape) + dtype + b"\x89" + content + b"tbsa."
    )


def said(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def from_buffer(content: bytes, code: bytes, shape: bytes = b")", more: bytes = b"") -> bytes:
    """The instructions that make an array of these bytes."""
    dtype = b"cnumpy\ndtype\n(" + code + b"tR"
    return b"cnumpy.core.numeric\n_frombuffer\n(" + content + dtype + shape + said("C") + more + b"tR"


#: A tuple of a tuple twice, forty levels deep: whatever looks into it takes years.
DOUBLED = b"K\x01" + b"q\x00h\x00\x86" * 40
LONG = b"\x8b" + struct.pack("<i", 500_000) + b"\xff" * 499_999 + b"\x7f"  # a number
ENCODE = b"c_codecs\nencode\n" + b"q\x00" + said("a" * 50_000)

ATTACKS = {
    "a type that cannot be shown": b"\x80\x03" + from_buffer(b"C\x00", DOUBLED) + b".",
    "a module that cannot be shown": b"\x80\x04" + DOUBLED + said("x") + b"\x93.",
    "a key that cannot be hashed": b"\x80\x03}" + DOUBLED + b"K\x01s.",
    "a shape that cannot be shown": b"\x80\x03" + from_buffer(b"C\x00", said("f8"), DOUBLED) + b".",
    "axes that cannot be shown": b"\x80\x03" + from_buffer(b"C\x00", said("f8"), b"K\x00\x85", DOUBLED) + b".",
    "an encoding that cannot be shown": b"\x80\x03c_codecs\nencode\n" + said("a") + DOUBLED + b"\x86R.",
    "a byte order that cannot be compared": array_of((1,), b"1234").replace(b"U\x01<", DOUBLED),
    "a type nested deeper than Python calls": b"\x80\x03" + from_buffer(b"C\x00", b"K\x01" + b"\x85" * 20_000) + b".",
    **{
        f"a type in NumPy's small language: {code[:10]}": b"\x80\x03" + from_buffer(b"C\x00", said(code)) + b"."
        for code in ("f8,(,)f8", "f8,(1", "f8," + "(" * 300, "i8," * 5000 + "i8", "f" + "9" * 10_000, "<<f8", "f1")
    },
    "dimensions of a million digits": (
        b"\x80\x03" + from_buffer(b"C\x00", said("u1"), b"(" + LONG + b"q\x09h\x09h\x09t") + b"."
    ),
    "one text encoded over and over": b"\x80\x03](" + ENCODE + b"\x85q\x01" + b"h\x00h\x01R" * 5000 + b"e.",
    "one text made an array over and over": (
        b"\x80\x03]q\x07cnumpy.core.numeric\n_frombuffer\nq\x00("
        + said("a" * 50_000) + b"cnumpy\ndtype\n(" + said("u1") + b"tRM\x50\xc3\x85" + said("C") + b"tq\x01R"
        + b"h\x00h\x01R" * 5000 + b"h\x07."
    ),
    "an empty array of very many rows": (
        b"\x80\x03]}" + said("observations")
        + from_buffer(b"C\x00", said("f8"), b"K\x00\x8a\x08" + b"\xff" * 7 + b"\x7f\x86") + b"sa."
    ),
    "one list under many names": pickle.dumps([dict.fromkeys(map(str, range(3000)), [1] * 3000)]),
    "a command": pickle.dumps([{"rewards": Call(os.system, "touch ran")}]),
    "a command, at the top": pickle.dumps(Call(os.system, "touch ran")),
    "a command in a key": pickle.dumps([{Call(os.system, "touch ran"): 1}]),
    "a command, old opcode": b"(Vtouch ran\niposix\nsystem\n.",
    "a builtin": pickle.dumps([{"rewards": Call(eval, "open('ran', 'w')")}]),
    "getattr": b"c__builtin__\ngetattr\n(cnumpy\ndtype\nV__init__\ntR.",
    "an import": pickle.dumps([{"rewards": Call(__import__, "this")}]),
    "a numpy function that reads files": pickle.dumps([{"rewards": Call(np.fromfile, "episodes.pkl")}]),
    "numpy.load": pickle.dumps([{"rewards": Call(np.load, "episodes.pkl")}]),
    "a memory map": b"cnumpy\nmemmap\n(Vran\nVuint8\nVw+\nK\x00K\x08\x85tR.",
    "another array class": b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nmatrix\nK\x00\x85C\x01btR.",
    "ndarray called": b"cnumpy\nndarray\n(J\xff\xff\xff\x7f\x85tR.",
    "an encoding that is code": b"c_codecs\nencode\n(Vabc\nVzip\ntR.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0bf2py.os.sys\x93.",
    "an object": pickle.dumps([Evil()]),
    "a set": pickle.dumps([{1, 2}]),
    "an ordered dict": pickle.dumps([OrderedDict(a=1)]),
    "a persistent id": b"Pid\n.",
    "an extension": b"\x82\x01.",
    "an out-of-band buffer": b"\x80\x05\x97.",
    "state on a dict": b"}}b.",
    "state on a name": b"cnumpy\ndtype\n}b.",
    "objects": pickle.dumps([{"observations": np.array([[None]], object)}]),
    "text": pickle.dumps([{"observations": np.array([["a"]])}]),
    "dates": pickle.dumps([{"observations": np.array([["2020-01-01"]], "M8[D]")}]),
    "structured values": pickle.dumps([{"observations": np.zeros(2, [("a", "f4"), ("b", "O")])}]),
    "complex numbers": pickle.dumps([{"observations": np.zeros((2, 1), complex)}]),
    "a subarray type": array_of((1,), b"1234", code="(4,)u1"),
    "fields smuggled in": array_of((1,), b"1234", state=(3, "|", None, ("a",), {"a": ()}, 4, 1, 0)),
    "fewer bytes than the shape says": array_of((1000, 1000, 1000), b"1234"),
    "a huge shape": array_of((2**40, 2**40), b""),
    "a negative shape": array_of((-1, -4), b"1234" * 4),
    "a shape of text": array_of(("a",), b"1234"),
    "a list instead of bytes": array_of((1,), []),
    "a number": pickle.dumps(7),
    "a list of numbers": pickle.dumps([1, 2]),
    "tuples for episodes": pickle.dumps([(1, 2)]),
    "keys that are no text": pickle.dumps([{1: np.zeros(2)}]),
    "a deeply nested key": b"]}" + b")" + b"\x85" * 20_000 + b"K\x01sa.",
    "deeply nested lists": b"]" * 20_000 + b"a" * 19_999 + b".",
    "a list that holds itself": b"]q\x00h\x00a.",
    "one array a million times": pickle.dumps([{"rewards": np.zeros(10_000)}] * 100_000),
    "one array a million times in a list": pickle.dumps([{"rewards": [np.zeros(10_000)] * 100_000}]),
    "a huge length": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc.",
    "a huge negative length": b"T\xff\xff\xff\xffabc.",
    "a huge memo": b"]r\xff\xff\xff\x7f.",
    "a huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"].",
    "a memo that is not there": b"h\x07.",
    "an empty stack": b"a.",
    "no stop": pickle.dumps(episodes())[:-1],
    "cut in the middle": pickle.dumps(episodes())[:300],
    "nothing": b"",
    "no pickle at all": b"<html>404</html>" * 10,
    "an unknown instruction": b"\xff.",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_and_damaged_pickles_end_in_one_error(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, ATTACKS[attack])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"episodes\.pkl' (is not read: |cannot be read: |has no |, episode)") as error:
        load_trajectories(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [file.name for file in tmp_path.iterdir()] == ["episodes.pkl"]  # nothing ran
    assert peak < 100e6
    assert len(str(error.value)) < 700
