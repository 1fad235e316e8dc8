"""The documents say what is: snippets run as printed, generated pages are up to date, links lead somewhere."""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest
from factories import HOPPER, SAMPLES
from hub_server import LoopbackHub
from processes import run_commands, run_python

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHECKPOINT = "dema-b3ld-hopper-medium-replay"


def snippets(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder in which the default run has ended (its checkpoint is the one that the repository publishes)."""
    shutil.copytree(ROOT / "model_cards" / CHECKPOINT, tmp_path / "runs" / CHECKPOINT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_snippets_of_the_readme_run_as_printed(clone):
    act, loop, many, quickstart, model, *_ = snippets("python")
    names: dict = {}
    exec(act, names)
    assert names["action"].shape == (3,)
    names["env"] = gymnasium.wrappers.TimeLimit(names["env"], 30)
    exec(loop, names)
    assert names["truncated"]
    many = many.replace("num_envs=4", "num_envs=4, max_episode_steps=10").replace("range(1000)", "range(24)")
    exec(many, names)
    earned = 3600 - names["policy"].returns_to_go  # the third episodes began after twice ten steps and one that resets
    assert (earned > 0).all() and (earned < 5).all()
    short = {
        '"datasets/hopper-medium-replay"': f'"{HOPPER}"',
        "max_steps=5000, eval_episodes=20": 'max_steps=2, eval_episodes=2, env_id="Hopper-v5", disable_tqdm=True',
        "episodes=20)": "episodes=2, max_episode_steps=3)",
    }
    for printed, shorter in short.items():
        assert printed in quickstart
        quickstart = quickstart.replace(printed, shorter)
    exec(quickstart, names)
    assert names["result"].metrics["global_step"] == 2 and len(names["scores"].episodes) == 4
    exec(model, names)
    assert names["output"].action_preds.shape == (2, 20, 3)


def test_the_share_section_of_the_readme_runs_as_printed(clone):
    """Each block is a fresh process that knows nothing but where the Hub is."""
    section = README[README.index("## Share") : README.index("## Look inside")]
    (push,), (with_package, without) = snippets("bash", section), snippets("python", section)
    with LoopbackHub({"hf_me": "your-name"}) as hub:
        environment = hub.client_environment(clone / "home", "hf_me")
        shared = run_commands(push, environment=environment, folder=clone)
        loaded = [run_python(code, environment=environment, folder=clone) for code in (with_package, without)]
        for done in (shared, *loaded):
            assert done.returncode == 0, done.stderr
            assert ("nothing was sent" in done.stdout) == (done is shared)
        repository = hub.model("your-name/dema-hopper")
        assert repository.private and {"model.safetensors", "modeling_decision_mamba.py"} <= {*repository.files()}


def test_from_a_robots_recording_to_a_file_as_printed(clone):
    """LeRobot's layout without rewards, whose numbers have names."""
    shutil.copytree(SAMPLES / "lerobot", clone / "demonstrations")
    (table,) = (clone / "demonstrations").rglob("*.parquet")
    pq.write_table(pq.read_table(table).drop_columns("next.reward"), table)
    info = json.loads((clone / "demonstrations/meta/info.json").read_text())
    del info["features"]["next.reward"]
    info["features"]["observation.state"]["names"] = [f"joint_{number}.pos" for number in range(11)]
    (clone / "demonstrations/meta/info.json").write_text(json.dumps(info))
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    section = text[text.index("**From a recording to a robot.**") : text.index("## Goals")]
    (commands,), (acting, deployed) = snippets("bash", section), snippets("python", section)
    small = "--max_steps 2 --n_layer 1 --hidden_size 8 --embedding_size 8"
    commands = commands.replace("--max_steps 5000", small)
    done = run_commands(commands, environment={**os.environ}, folder=clone)
    assert done.returncode == 0, done.stderr
    assert "no rewards: conditioning=none" in done.stdout and "differs from torch by at most" in done.stdout
    assert "| Control rate | 125 steps a second: " in (clone / "runs/robot/README.md").read_text()
    names: dict = {}
    exec(acting, names)
    assert next(iter(names["seen"])) == "joint_0.pos" and names["action"].shape == (3,)
    first = names["action"]
    exec(deployed.replace("range(3)", "range(1)"), names)
    np.testing.assert_allclose(names["action"][0], first, atol=1e-5)


def program(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "path", [f"docs/make_{name}.py" for name in ("api", "presets", "benchmarks", "memory", "protocol", "results")]
)
def test_generated_pages_are_up_to_date(path):
    module = program(path)
    assert module.PATH.read_text(encoding="utf-8") == module.render(), f"run python {path}"


def test_the_numbers_of_the_readme_stand_in_results_files():
    results = json.loads((ROOT / "model_cards" / CHECKPOINT / "evaluation.json").read_text())["results"][0]
    training = json.loads((ROOT / "model_cards" / CHECKPOINT / "training.json").read_text())
    low, high = results["normalized_score_ci95"]
    assert f"return {results['return_mean']:.1f} ± {results['return_std']:.1f}" in README
    assert f"score {results['normalized_score_mean']:.1f} (95% interval {low:.1f} to {high:.1f})" in README
    assert f"{training['num_parameters']:,} parameters, {training['global_step']:,} steps" in README
    assert f"return is {training['dataset']['return_mean']:.0f}" in README
    now, alike = (
        next(
            entry
            for entry in json.loads((ROOT / f"benchmarks/results/{name}/results.json").read_text())["summary"]
            if entry["evaluation"] == "last checkpoint"
        )
        for name in ("default_run", "default_run_alike")
    )
    low, high = now["ci95"]
    linked = "other seeds](benchmarks/results/default_run/README.md)"
    assert f"[{len(now['scores'])} {linked}" in README and now["seeds"] == [
        *range(len(now["seeds"]))
    ]  # 42 is not among
    assert f"a mean of {now['mean']:.1f} (95% interval over seeds\n{low:.1f} to {high:.1f})" in README
    assert f"the lowest has {min(now['scores']):.1f}." in README
    assert f"training takes {now['cpu_minutes']:.1f} CPU minutes" in README
    assert f"had a mean of {alike['mean']:.1f}, the lowest {min(alike['scores']):.1f}" in README
    training, acting = (
        json.loads((ROOT / f"benchmarks/results/{name}.json").read_text()) for name in ("training_step", "decision")
    )
    steps = [values for values in training["results"].values() if "parameters" in values]
    assert sum(f"| {values['parameters']:,} | {values['median']:.1f} |" in README for values in steps) == 4
    rows = [row for row in acting["results"] if row["threads"] == acting["default_threads"]]
    latencies = {f"| {row['median']:.3f} | " for row in rows if row["rows"] == 1}
    assert {found for found in re.findall(r"\| \d+\.\d{3} \| ", README)} <= latencies
    throughputs = {f" | {row['per_second']:,.0f} |" for row in rows if row["rows"] > 1}
    assert sum(found in README for found in throughputs) >= 3


def test_the_readme_says_of_memory_what_was_measured():
    runs = json.loads((ROOT / "benchmarks/results/memory/results.json").read_text())["runs"]
    reached = {}
    for run in runs:
        reached.setdefault((run["variant"], run["swept_value"]), []).append(run["score"])
    dilated = [reached[model, "100000"] for model in ("DeMa, B3LD, dilated", "DeMa, BL3D, dilated", "DMM, dilated")]
    assert dilated == [[1.0] * 5] * 3
    minutes = [run["cpu_minutes"] for run in runs if run["variant"].endswith(", dilated")]
    assert {round(time) for time in minutes} == {1, 2} and "Trained for one or two minutes on one thread" in README
    assert "know a clue of\nthe first step 100,000 steps later, in every one of five seeds" in README
    for model in ("DeMa, B3LD", "DeMa, BL3D", "DMM", "GRU"):
        assert reached[model, "20"] == [1.0] * 5 and all(not score or score < 0.7 for score in reached[model, "10000"])
    assert reached["DT, windows", "20"] == [1.0] * 5 and max(reached["DT, windows", "100"]) < 0.7
    assert "have lost it after 10,000, and a\nDecision Transformer after 100, in every one of theirs" in README


def test_the_readme_remembers_by_the_commands_that_were_measured():
    page = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
    shown, measured = (
        [*re.sub(r"\\\n\s*", "", block).splitlines()]
        for block in (next(block for block in snippets("bash") if "TMaze" in block), snippets("bash", page)[0])
    )
    assert shown == measured and len(shown) == 3


def test_every_file_that_the_readme_names_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and [link for link in links if not (ROOT / link).exists()] == []
