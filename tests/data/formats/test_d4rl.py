"""D4RL files: columns are read, groups left alone, episodes cut where they ended, and damaged files named."""

import json
import logging
import re
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from factories import SAMPLES
from gymnasium.envs.registration import EnvSpec

from hf_decision_mamba.data import load_trajectories

SAMPLE = SAMPLES / "d4rl.hdf5"


def save(path: Path, **columns: Any) -> Path:
    """Write five steps, of which the second terminates an episode; None leaves a column out."""
    steps: dict[str, Any] = {
        "observations": np.arange(15.0).reshape(5, 3),
        "actions": np.zeros((5, 1)),
        "rewards": np.ones(5),
        "terminals": np.arange(5) == 1,
        "timeouts": np.arange(5) == 3,
    }
    with h5py.File(path, "w") as file:
        for name, values in {**steps, **columns}.items():
            if values is not None:
                file[name] = values
    return path


def test_columns_are_those_of_the_file_and_the_last_episode_is_cut_short() -> None:
    trajectories = load_trajectories(SAMPLE)
    with h5py.File(SAMPLE) as file:
        assert "metadata" in file and "infos" in file
        for ours, theirs in {"observations": "observations", "actions": "actions", "rewards": "rewards"}.items():
            np.testing.assert_array_equal(getattr(trajectories, ours), file[theirs][()])
        np.testing.assert_array_equal(trajectories.terminations, file["terminals"][()])
    assert trajectories.lengths.tolist() == [24, 11, 21, 17, 27, 88, 10]
    assert np.flatnonzero(trajectories.truncations).tolist() == [trajectories.num_steps - 1]
    assert trajectories.name == "d4rl"


@pytest.mark.parametrize("name", ["a.hdf5", "a.h5"])
def test_terminations_and_truncations_are_kept_apart(name: str, tmp_path: Path) -> None:
    trajectories = load_trajectories(save(tmp_path / name))
    assert trajectories.lengths.tolist() == [2, 2, 1]
    assert np.flatnonzero(trajectories.terminations).tolist() == [1]
    assert np.flatnonzero(trajectories.truncations).tolist() == [3, 4]


def test_columns_are_mapped_and_facts_are_beside_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "cart.hdf5", obs=np.ones((5, 2)), actions=np.arange(5))
    path.with_suffix(".json").write_text('{"env_id": "CartPole-v1", "num_actions": 7}')
    trajectories = load_trajectories(path, columns={"observations": "obs"}, split="train[:1]")
    assert repr(trajectories) == (
        "Trajectories('cart': 1 episodes, 2 steps, state_dim=2, num_actions=7, env_id='CartPole-v1')"
    )


@pytest.mark.parametrize(
    ("terminals", "lengths", "truncations"),
    [([0, 1, 0, 0, 0], [2, 2, 1], [3, 4]), ([0, 0, 0, 0, 0], [2, 2, 1], [1, 3, 4]), ([0, 0, 1, 0, 1], [2, 1, 2], [1])],
)
def test_without_timeouts_the_time_limit_beside_the_file_cuts(
    terminals: list[int], lengths: list[int], truncations: list[int], tmp_path: Path
) -> None:
    path = save(tmp_path / "a.hdf5", timeouts=None, terminals=np.array(terminals, bool))
    path.with_suffix(".json").write_text(json.dumps({"max_episode_steps": 2}))
    trajectories = load_trajectories(path)
    assert trajectories.lengths.tolist() == lengths
    assert np.flatnonzero(trajectories.truncations).tolist() == truncations


NEVER = np.zeros(5, bool)
LIMITED = {"max_episode_steps": 2}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments of a time limit of two steps, of which the newest version alone can be made."""
    specs = [EnvSpec(f"Walk-v{version}", max_episode_steps=limit) for version, limit in ((2, None), (4, 2), (5, 2))]
    monkeypatch.setattr("gymnasium.registry", {spec.id: spec for spec in specs})


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("beside", "metadata", "limit"),
    [
        (LIMITED, {}, "max_episode_steps in .*a.json"),
        ({}, LIMITED, "max_episode_steps in .*a.json or the metadata of .*a.hdf5"),
        ({"max_episode_steps": 2}, {"max_episode_steps": 3}, "max_episode_steps in .*a.json.*"),
        ({"env_id": "Walk-v5"}, {}, "of Walk-v5 in gymnasium"),
        ({"env_id": "Walk-v2"}, {}, "of Walk-v2 in gymnasium"),
        ({}, {"env_id": b"Walk-v3"}, "of Walk-v3 in gymnasium"),
    ],
    ids=["beside", "metadata", "both", "registry", "an old version", "an older version"],
)
def test_flags_that_are_never_true_are_not_believed_where_a_time_limit_is_known(
    beside: dict[str, Any], metadata: dict[str, Any], limit: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = {f"metadata/{name}": value for name, value in metadata.items()}
    path = save(tmp_path / "a.hdf5", terminals=NEVER, timeouts=NEVER, **said)
    path.with_suffix(".json").write_text(json.dumps(beside))
    trajectories = load_trajectories(path)
    assert trajectories.lengths.tolist() == [2, 2, 1]
    assert not trajectories.terminations.any() and trajectories.truncations.sum() == 3
    place = "step 1: no flag ends the episode, but its time limit of 2 steps"
    assert re.search(rf"{place} \({limit}\) does; episodes that it truncates so: 2", caplog.text)


@pytest.mark.usefixtures("registered")
def test_gymnasiums_time_limit_is_not_believed_against_flags_that_know_truncations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "a.hdf5", terminals=NEVER, timeouts=np.arange(5) == 2)
    path.with_suffix(".json").write_text('{"env_id": "Walk-v5"}')
    assert load_trajectories(path).lengths.tolist() == [3, 2]
    assert "its time limit of 2 steps (of Walk-v5 in gymnasium) would; the flags are believed" in caplog.text
    path.with_suffix(".json").write_text('{"max_episode_steps": 2}')
    assert load_trajectories(path).lengths.tolist() == [2, 1, 2]


def test_flags_that_are_never_true_say_nothing_where_no_time_limit_is_known(tmp_path: Path) -> None:
    path = save(tmp_path / "a.hdf5", terminals=NEVER, timeouts=NEVER)
    nothing = r"nothing says where its episodes end, .* write max_episode_steps"
    with pytest.raises(ValueError, match=f"{nothing}, the environment's time limit, into a JSON file beside"):
        load_trajectories(path)
    path.with_suffix(".json").write_text('{"env_id": "Unknown-v0"}')
    with pytest.raises(ValueError, match=rf"{nothing} into .*a\.json"):
        load_trajectories(path)


def test_what_a_step_led_to_is_read_too(tmp_path: Path) -> None:
    after = np.arange(15.0).reshape(5, 3) + 3
    after[2] = 0
    path = save(tmp_path / "a.hdf5", terminals=NEVER, timeouts=NEVER, next_observations=after)
    assert load_trajectories(path).lengths.tolist() == [3, 2]


def test_refuses_a_time_limit_that_cannot_be(tmp_path: Path) -> None:
    path = save(tmp_path / "a.hdf5", timeouts=None)
    path.with_suffix(".json").write_text('{"max_episode_steps": 2.5}')
    with pytest.raises(ValueError, match=r"a\.json: max_episode_steps must be a positive whole number, found 2\.5"):
        load_trajectories(path)


def test_without_timeouts_and_time_limit_episodes_end_at_terminals(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert load_trajectories(save(tmp_path / "a.hdf5", timeouts=None)).lengths.tolist() == [2, 3]
    assert "write max_episode_steps, the environment's time limit, into a JSON file beside" in caplog.text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"actions": None}, "no column 'actions' for the actions; its columns are observations, rewards, terminals"),
        ({"timeouts": None, "terminals": None}, "nothing says where its episodes end"),
        ({"actions": np.zeros((4, 1))}, "the number of steps differs, 4 in column 'actions' and 5 in the others"),
        ({"actions": [["a"]] * 5}, "column 'actions': expected .* found shape .* of object"),
        ({"rewards": [0, 0, np.nan, 0, 0]}, "episode 1, step 0, column 'rewards': the value is nan"),
        ({"terminals": [0, 5, 0, 0, 0]}, "step 1, column 'terminals': expected true or false .* found 5"),
    ],
)
def test_names_what_is_wrong(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_trajectories(save(tmp_path / "a.hdf5", **columns))
    assert "data set " in str(raised.value)


def test_a_file_of_groups_is_another_format(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        file["episode_0/observations"] = np.zeros((3, 2))
    with pytest.raises(
        ValueError, match=r"only groups: episode_0/; .*a Minari data set is read by its id, minari:NAME"
    ):
        load_trajectories(tmp_path / "main_data.hdf5")


def elsewhere(file: h5py.File, folder: Path, how: str) -> None:
    """Put observations that are in another file, or reached by a link, into the place of the file's own."""
    del file["observations"]
    (folder / "other.bin").write_bytes(np.full((5, 3), 42, np.float32).tobytes())
    with h5py.File(folder / "other.hdf5", "w") as other:
        other["secret"] = np.full((5, 3), 42, np.float32)
    if how == "external":
        file.create_dataset("observations", (5, 3), "f4", external=[(folder / "other.bin", 0, 60)])
    elif how == "virtual":
        layout = h5py.VirtualLayout((5, 3), "f4")
        layout[:] = h5py.VirtualSource(folder / "other.hdf5", "secret", (5, 3))
        file.create_virtual_dataset("observations", layout)
    else:
        to = {"external link": h5py.ExternalLink(folder / "other.hdf5", "secret")}
        file["observations"] = to.get(how, h5py.SoftLink("/observations" if how == "loop" else "/actions"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("external", "column 'observations': its values are in another file, which is not read"),
        ("virtual", "column 'observations': its values are in another file, which is not read"),
        ("external link", "column 'observations' is a link, which is not followed"),
        ("link", "column 'observations' is a link, which is not followed"),
        ("loop", "column 'observations' is a link, which is not followed"),
    ],
)
def test_nothing_but_the_file_itself_is_read(how: str, message: str, tmp_path: Path) -> None:
    with h5py.File(save(tmp_path / "a.hdf5"), "a") as file:
        elsewhere(file, tmp_path, how)
    with pytest.raises(ValueError, match=message):
        load_trajectories(tmp_path / "a.hdf5")


def test_links_and_strange_names_beside_the_columns_are_left_alone(tmp_path: Path) -> None:
    with h5py.File(save(tmp_path / "a.hdf5"), "a") as file:
        file["größe"], file[b"\xff\xfe"] = [1], [2]
        file["nowhere"] = h5py.SoftLink("/gone")
        file["infos/other"] = h5py.ExternalLink("/etc/passwd", "a")
    assert load_trajectories(tmp_path / "a.hdf5").num_steps == 5


def pack(path: Path, **options: Any) -> Path:
    """Store the observations in another way."""
    with h5py.File(save(path), "a") as file:
        values = file["observations"][()]
        del file["observations"]
        file.create_dataset("observations", **{"data": values, **options})
    return path


@pytest.mark.parametrize("packed", ["gzip", "lzf"])
def test_packed_columns_are_read(packed: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "a.hdf5", compression=packed, shuffle=True, fletcher32=True, chunks=(2, 3))
    np.testing.assert_array_equal(load_trajectories(path).observations, np.arange(15.0).reshape(5, 3))


def test_code_that_unpacks_is_not_loaded(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.hdf5", chunks=(5, 3), scaleoffset=2)
    with pytest.raises(
        ValueError, match=r"packed with the filters \[6\]; only gzip, shuffle, fletcher32, szip, lzf are"
    ):
        load_trajectories(path)


HUGE = {
    "rows of which none is stored": {"data": None, "shape": (10**13, 3), "dtype": "f4", "chunks": (1024, 3)},
    "a little less": {"data": None, "shape": (4 * 10**8, 3), "dtype": "f4", "chunks": (1024, 3)},
    "rows that overflow": {"data": None, "shape": (2**62, 3), "dtype": "f4", "chunks": (1024, 3)},
    "a chunk larger than memory": {
        **{"data": None, "shape": (5, 3), "maxshape": (None, 3), "dtype": "f4", "chunks": (10**8, 3)}
    },
}


@pytest.mark.parametrize("options", HUGE.values(), ids=HUGE)
def test_memory_is_not_taken_for_what_is_not_stored(options: dict[str, Any], tmp_path: Path) -> None:
    path = pack(tmp_path / "a.hdf5", **options)
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=r"column 'observations': [\d,]+ values of shape .* as the file holds [\d,]+ bytes"
    ):
        load_trajectories(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_chunk_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.hdf5", chunks=(5, 3), compression="gzip", dtype="f4")
    bomb = zlib.compress(np.random.default_rng(0).bytes(300_000))
    with h5py.File(path, "a") as file:
        file["observations"].id.write_direct_chunk((0, 0), bomb)
    with pytest.raises(ValueError, match=r"column 'observations': the chunk at \(0, 0\) unpacks to more than 60 bytes"):
        load_trajectories(path)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 100, SAMPLE.read_bytes()[:20_000]])
def test_names_the_file_that_cannot_be_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.hdf5").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.hdf5' cannot be read: the file is corrupted, truncated or not what its"):
        load_trajectories(tmp_path / "a.hdf5")


def test_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'HDF5 files need h5py .*pip install "hf_decision_mamba\[hdf5\]"'):
        load_trajectories(SAMPLE)
