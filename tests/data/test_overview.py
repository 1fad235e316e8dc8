"""Overview: what is in a source in numbers, what is wrong with it, and what is there when it cannot be read."""

import json
from pathlib import Path

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_decision_mamba.data import load_trajectories
from hf_decision_mamba.data.histograms import draw_histograms
from hf_decision_mamba.data.listing import listing
from hf_decision_mamba.data.overview import overview_of
from hf_decision_mamba.data.statistics import spread

DATA = Path(__file__).parent
SAMPLES = DATA / "samples"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def episode(steps: int = 4, **changes) -> dict:
    generator = np.random.default_rng(steps)
    columns = {
        "observations": generator.normal(size=(steps, 3)),
        "actions": generator.uniform(-1, 1, (steps, 2)),
        "rewards": np.arange(steps, dtype=np.float64),
        "terminations": np.arange(steps) == steps - 1,
    }
    return {**columns, **changes}


def test_the_numbers_are_those_that_training_uses():
    source = DATA / "hopper-tiny-v5.parquet"
    found, trajectories = overview_of(source), load_trajectories(source)
    statistics, summary = trajectories.statistics(), found.summary
    assert found.readable and (summary["episodes"], summary["transitions"]) == (
        statistics.episodes,
        statistics.transitions,
    )
    assert summary["observations"]["mean"] == statistics.state_mean.tolist()
    assert summary["observations"]["std"] == statistics.state_std.tolist()
    assert summary["actions"]["low"] == statistics.action_low.tolist()
    assert summary["returns"]["median"] == np.median(trajectories.returns())
    assert (summary["terminated"], summary["truncated"]) == (statistics.terminated, statistics.truncated)
    text = found.text()
    assert f"{statistics.transitions:,}" in text and "observation 10" in text and "action 2" in text
    assert "fps" not in summary and "steps a second" not in text


def test_the_rate_is_said_where_it_is_known():
    found = overview_of(DATA / "samples" / "lerobot")
    assert found.to_dict()["fps"] == 125 and "rate          125 steps a second\n" in found.text()


def test_frames_and_discrete_actions_are_counted():
    found = overview_of(DATA / "breakout-tiny.parquet")
    assert found.summary["observations"] == {"type": "image", "height": 84, "width": 84}
    assert (
        found.summary["actions"]["number"] == 4
        and sum(found.summary["actions"]["counts"]) == found.summary["transitions"]
    )
    text = found.text()
    assert "grey frames of 84 x 84" in text and "4 discrete ones" in text and "no problems found" in text


@pytest.mark.parametrize(
    ("episodes", "remark"),
    [
        (
            [episode(steps, observations=np.full((steps, 3), [1.0, steps, 2.0])) for steps in (2, 3)],
            "dimensions 0, 2 of the observations never change",
        ),
        ([episode(3), episode(3)], "every episode returns 3: a model cannot learn what a return asks for"),
        ([episode(3)], "there is one episode: none can be held out"),
        ([episode(3), episode(4)], "nothing says which environment it is from"),
        (
            [episode(3, actions=np.array([0, 3, 1])), episode(2, actions=np.array([0, 1]))],
            "of 4 discrete actions, 2 never",
        ),
    ],
)
def test_what_should_be_known_before_training_is_said(episodes, remark):
    found = overview_of(episodes)
    assert found.readable and any(remark in problem for problem in found.problems)
    assert remark in found.text()


def test_small_returns_keep_their_digits_and_a_scale_that_hides_them_is_named():
    episodes = [episode(2, rewards=[0.0, 0.001 * number], actions=np.array([[1.0], [0.0]])) for number in (1, 12)]
    found = overview_of(episodes, action_type="discrete", return_scale=5.0)
    assert found.summary["return_scale"] == 0.012 and found.summary["actions"]["type"] == "discrete"
    lines = [" ".join(line.split()) for line in found.text().splitlines()]
    assert "return 0.0065 0.0055 0.001 0.0016 0.0038 0.0065 0.0093 0.0115 0.012" in lines
    assert "return scale 0.012: what returns-to-go are divided by if no other is given" in lines
    assert "return_scale 5 makes returns-to-go of 0.001 to 0.012 ones of 0.0002 to 0.0024" in found.problems[-1]
    assert overview_of(episodes, action_type="discrete").problems == found.problems[:-1]
    with pytest.raises(ValueError, match="return_scale=0 must be a positive number"):
        overview_of(episodes, return_scale=0)


def test_warnings_of_loading_are_problems_and_not_printed(capsys):
    found = overview_of(SAMPLES / "door-human.parquet")
    assert found.readable and "outside of its space; it is clipped" in found.problems[0]
    assert capsys.readouterr().err.count("clipped") == 0


@pytest.mark.parametrize(
    ("source", "arguments", "problem", "there"),
    [
        (SAMPLES / "lerobot", {"columns": {"observations": "nothing"}}, "no column 'nothing'", "observation.state"),
        (SAMPLES / "d4rl.hdf5", {"columns": {"rewards": "r"}}, "no column 'r'", "infos/qpos"),
        (SAMPLES / "dt.pkl", {"columns": {"rewards": "r"}}, "no column 'r'", "observations"),
        (SAMPLES / "hostile.pkl", {}, "posix.system", "it cannot be opened: ValueError"),
        (SAMPLES / "README.md", {}, "cannot read a file of this kind", "which begins with b'"),
        (SAMPLES / "nothing", {}, "no data set at", "there is no file or folder"),
        (SAMPLES, {}, "cannot be read", "files:"),
        ("org/nothing", {}, "the Hub cannot be reached", "it cannot be opened: OfflineModeIsEnabled"),
        ([episode(3, rewards=np.zeros(2))], {}, "the number of steps differs", "rewards  2 of float64"),
        ({"obs": np.zeros((5, 2))}, {}, "no column 'observations'", "obs  5 x 2 of float64"),
    ],
)
def test_what_cannot_be_read_is_shown_all_the_same(source, arguments, problem, there):
    found = overview_of(source, **arguments)
    assert not found.readable and problem in found.problems[-1]
    assert any(there in line for line in found.listing), found.listing
    text = found.text()
    assert "what is there:" in text and "problems found:" in text and "inspect-data" not in text


def test_the_first_row_shows_types_and_shapes(tmp_path):
    columns = {"obs": [[[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]]], "frames": [b"1234"], "task": ["open the door"]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    lines = [" ".join(line.split()) for line in listing(tmp_path / "rows.parquet")]
    assert "obs list<list<double>> first row: 3 x 2" in lines
    assert "frames binary first row: 4 bytes" in lines and "task string first row: 'open the door'" in lines


def test_a_damaged_file_is_no_traceback(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    found = overview_of(tmp_path / "bad.parquet")
    assert "corrupted" in found.problems[-1] and "cannot be opened" in found.listing[-1]


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (
            "a: &a {x: 1}\n"
            + "\n".join(f"{b}: &{b} {{<<: [{f'*{a}, ' * 9}]}}" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
            "values",
        ),
        ("configs:\n- config_name: default\n  data_files: ../secret.parquet", "which is elsewhere"),
    ],
)
def test_a_folder_shows_itself_alone(card, said, tmp_path):
    for name in ("secret", "made/train"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({name.split("/")[-1]: [1]}), tmp_path / f"{name}.parquet")
    (tmp_path / "made" / "README.md").write_text(f"---\n{card}\n---\n")
    lines = listing(tmp_path / "made")
    assert "table cannot be opened" in lines[-1] and said in lines[-1] and len(lines) == 4


def test_an_hdf5_file_shows_itself_alone(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        layout = h5py.VirtualLayout((5,), "f4", maxshape=(None,))
        layout[:] = h5py.VirtualSource(tmp_path / "other.hdf5", "secret", (5,))
        file.create_virtual_dataset("observations", layout)
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "a")
        file["\x1b[2J" + "long" * 1000] = [1.0]
    lines = listing(tmp_path / "a.hdf5")
    assert "  observations  in other files" in lines and not any("elsewhere" in line for line in lines)
    assert max(map(len, lines)) <= 320 and any(line.startswith("  \\x1b[2Jlong") for line in lines)


def test_files_that_are_saved_say_the_same(tmp_path):
    found = overview_of([episode(3), episode(4), episode(5)])
    written = found.save(tmp_path / "out")
    assert [path.name for path in written] == ["data_overview.json", "returns.png"] and all(map(Path.is_file, written))
    assert json.loads(written[0].read_text()) == json.loads(json.dumps(found.to_dict()))
    unreadable = overview_of({"obs": [1.0]})
    assert [path.name for path in unreadable.save(tmp_path / "other")] == ["data_overview.json"]


def test_the_picture_counts_returns_and_lengths(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    draw_histograms(tmp_path / "returns.png", "made", np.array([1.0, 2.0, 2.0, 9.0]), np.array([4, 4, 4, 4]))
    returns, lengths = drawn[0].axes
    assert drawn[0].get_suptitle() == "made: 4 episodes, 16 steps"
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in returns.patches]
    assert (bars[0][0], bars[-1][1]) == pytest.approx((1, 9)) and sum(height for _, _, height in bars) == 4
    assert [height for low, high, height in bars if low <= 2 < high] == [3]
    assert list(returns.lines[0].get_xdata()) == [2, 2] and list(lengths.lines[0].get_xdata()) == [4, 4]
    assert [(bar.get_x(), bar.get_height()) for bar in lengths.patches if bar.get_height()] == [(3.5, 4)]


def test_the_spread_of_one_number_is_that_number():
    assert spread([3.0]) == {"mean": 3.0, "std": 0.0} | dict.fromkeys(
        ("min", "5%", "25%", "median", "75%", "95%", "max"), 3.0
    )


def test_nothing_is_said_of_returns_that_do_not_exist(tmp_path):
    episodes = [{name: values for name, values in episode(steps).items() if name != "rewards"} for steps in (3, 4)]
    found, whole = overview_of(episodes), overview_of([episode(3), episode(4)])
    assert whole.summary.keys() - found.summary.keys() == {"returns", "return_scale"}
    assert {name for name in found.summary if found.summary[name] != whole.summary[name]} == {"rewards"}
    text = found.text()
    assert "rewards       none" in text and "observation 2" in text and "length" in text
    assert [problem for problem in found.problems if "no rewards: conditioning=none; give --rewards_from" in problem]
    of_the_warning = next(line for line in text.splitlines() if "no rewards" in line)
    assert "return" not in text.replace(of_the_warning, "") and "nan" not in text
    assert [path.name for path in found.save(tmp_path)] == ["data_overview.json", "returns.png"]
    assert "NaN" not in (tmp_path / "data_overview.json").read_text()
    scaled = overview_of(episodes, return_scale=10)
    assert "return_scale 10 does not apply: there are no returns to divide" in scaled.problems
    assert overview_of(episodes, rewards_from="terminations").summary["returns"]["mean"] == 1
