"""The command line: its verbs reach their rooms, and what a user can put right is one line."""

import json
import shutil
import signal
import sys
from pathlib import Path

import gymnasium
import pytest
from factories import BREAKOUT

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel, DecisionMambaProcessor
from hf_decision_mamba.cli import main

TINY = [
    "--hidden_size=8",
    "--embedding_size=8",
    "--n_layer=1",
    "--state_size=4",
    "--context_length=4",
    "--use_cpu=True",
]


PLAYING = ("evaluate", "inspect", "ablate")  # the verbs that play with a checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = DecisionMambaConfig(state_dim=11, act_dim=3, hidden_size=8, n_layer=1, state_size=2)
    DecisionMambaModel(config).save_pretrained(tmp_path)
    processor = DecisionMambaProcessor(
        state_mean=[0.0] * 11, state_std=[1.0] * 11, target_return=3600.0, context_length=4, env_id="Hopper-v5"
    )
    processor.save_pretrained(tmp_path)
    return tmp_path


def test_evaluate_prints_a_table_and_keeps_the_results(checkpoint, capsys):
    arguments = ["--episodes", "2", "--target-return", "1800", "3600", "--mode", "recurrent", "--seed", "5"]
    main(["evaluate", str(checkpoint), *arguments, "--output", str(checkpoint)])
    printed = capsys.readouterr().out
    assert "1800" in printed and "3600" in printed
    results = json.loads((checkpoint / "evaluation.json").read_text())
    assert (results["mode"], results["seed"], results["episodes_per_target"]) == ("recurrent", 5, 2)
    assert "Hopper-v5" in (checkpoint / "README.md").read_text()


def test_inspect_writes_a_page_into_the_checkpoints_folder(checkpoint, capsys):
    options = ["--env-id", "Hopper-v5", "--target-return", "900", "1800", "--timesteps", "0", "3"]
    main(["inspect", str(checkpoint), "--episodes", "2", "--seed", "5", *options])
    folder = checkpoint / "inspection"
    assert str(folder / "inspection.html") in capsys.readouterr().out
    found = json.loads((folder / "inspection.json").read_text())
    assert (
        found["protocol"]["command"]
        == f"hf-decision-mamba inspect {checkpoint.name} {' '.join(options)} --episodes 2 --seed 5"
    )
    assert str(checkpoint.parent) not in (folder / "inspection.html").read_text()
    assert found["attention"]["timesteps"] == [0, 3]


def test_inspect_says_what_is_missing_before_it_measures(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("hf_decision_mamba.cli.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["inspect", str(checkpoint)])
    assert "Pictures need matplotlib" in capsys.readouterr().err


def test_ablate_prints_a_table_and_keeps_the_results(checkpoint, tmp_path, capsys):
    options = ["--changes", "swap", "zero", "--episodes", "1", "--max_episode_steps", "5", "--seed", "2"]
    output = tmp_path / "ablation"
    main(["ablate", str(checkpoint), "--other", str(checkpoint), *options, "--output", str(output)])
    assert "zero, all layers" in capsys.readouterr().out
    found = json.loads((output / "ablation.json").read_text())
    assert [row["condition"] for row in found["conditions"][:3]] == [
        "intact",
        "swapped, layer 1",
        "swapped, all layers",
    ]
    assert found["conditions"][0]["mean"] == found["conditions"][1]["mean"]  # its own parameters
    assert (found["seed"], found["max_episode_steps"]) == (2, 5)
    assert found["checkpoints"] == found["other"] == [checkpoint.name]


def test_collect_passes_its_options_on_in_either_spelling(tmp_path, capsys):
    amount = ["--episodes=3", "--max_episode_steps", "7", "--num-envs", "2", "--seed", "9"]
    main(["collect", "CartPole-v1", *amount, "--output", str(tmp_path / "poles")])
    settings = json.loads((tmp_path / "poles" / "collection.json").read_text())["settings"]
    assert (settings["episodes"], settings["max_episode_steps"], settings["num_envs"], settings["seed"]) == (3, 7, 2, 9)
    assert settings["policy"] == "random" and str(tmp_path / "poles") in capsys.readouterr().out


def test_an_environment_of_the_working_folder_is_found(tmp_path, monkeypatch):
    module = "import gymnasium\nfrom gymnasium.envs.classic_control.cartpole import CartPoleEnv\n"
    (tmp_path / "cart_here.py").write_text(f"{module}gymnasium.register('Cart-v0', CartPoleEnv, max_episode_steps=9)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    try:
        main(["collect", "cart_here:Cart-v0", "--episodes", "2", "--output", "carts"])
        main(["train", "--dataset_name=carts", *TINY, "--max_steps=1", "--eval_episodes=1", "--output_dir=run"])
    finally:
        sys.modules.pop("cart_here", None)
        del gymnasium.registry["Cart-v0"]
    assert json.loads(Path("run/evaluation.json").read_text())["env_id"] == "cart_here:Cart-v0"


def test_interrupted_collecting_ends_as_shells_expect(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_decision_mamba.cli.collect", lambda settings, output: (output, False))
    with pytest.raises(SystemExit) as stop:
        main(["collect", "CartPole-v1", "--output", str(tmp_path), "--push-to-hub", "me/poles"])
    assert stop.value.code == 130 and "nothing was pushed" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["evaluate", "inspect", "ablate", "export", "push"])
def test_ctrl_c_ends_every_verb_with_one_line(verb, tmp_path, monkeypatch, capsys):
    def pressed(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("hf_decision_mamba.cli.DecisionMambaPolicy.from_pretrained", pressed)
    monkeypatch.setattr("hf_decision_mamba.cli.push_to_hub", pressed)
    more = {"export": ["--output", str(tmp_path / "step.onnx")], "push": ["me/policy"]}
    with pytest.raises(SystemExit) as stop:
        main([verb, str(tmp_path), *more.get(verb, [])])
    line = "interrupted: nothing is half written; the same command starts again.\n"
    assert (stop.value.code, capsys.readouterr().err) == (130, line)


def test_inspect_data_speaks_to_people_and_to_machines(capsys):
    main(["inspect-data", str(BREAKOUT)])
    assert "BreakoutNoFrameskip-v4" in capsys.readouterr().out
    main(["inspect-data", str(BREAKOUT), "--split", "train[:2]", "--json"])
    assert json.loads(capsys.readouterr().out)["episodes"] == 2
    main(["inspect-data", str(BREAKOUT), "--action-type", "continuous", "--return-scale", "1e5", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["actions"]["type"] == "continuous" and "return_scale 100000 makes" in found["problems"][-1]


def test_inspect_data_reads_several_sources_and_paths_from_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("one", "two"):
        shutil.copy(BREAKOUT, tmp_path / f"{name}.parquet")
    main(["inspect-data", "~/one.parquet", "~/two.parquet", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["episodes"]) == ("one + two", 10)
    with pytest.raises(SystemExit):
        main(["inspect-data", "~/one.parquet", "~/three.parquet"])
    printed = capsys.readouterr().out
    assert f"there is no file or folder {tmp_path}/three.parquet" in printed and "observations  binary" in printed


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["evaluate", "~/run", "--output", "~/out"], {"checkpoint": "{}/run", "output": Path("{}/out")}),
        (["inspect", "~/run", "--data", "~/d", "--output=~/o"], {"checkpoint": "{}/run", "data": "{}/d"}),
        (["ablate", "~/a", "~/b", "--other", "~/c"], {"checkpoints": ["{}/a", "{}/b"], "other": ["{}/c"]}),
        (["export", "~/run", "--output", "~/run.onnx"], {"checkpoint": "{}/run", "output": Path("{}/run.onnx")}),
        (["push", "~/run", "me/run"], {"folder": Path("{}/run")}),
        (["collect", "CartPole-v1", "--policy=~/run", "--output=~/d"], {"policy": "{}/run", "output": Path("{}/d")}),
    ],
)
def test_every_path_may_begin_at_home(words, values, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = {}
    monkeypatch.setattr(f"hf_decision_mamba.cli._{words[0]}", lambda arguments: seen.update(vars(arguments)))
    main(words)
    for name, value in values.items():
        expected = [item.format(tmp_path) for item in value] if isinstance(value, list) else str(value).format(tmp_path)
        assert seen[name] == (Path(str(expected)) if isinstance(value, Path) else expected)


@pytest.mark.parametrize("verb", [*PLAYING, "export"])
def test_verbs_agree_on_the_options_of_a_checkpoint(verb, monkeypatch):
    """And hand them on to what loads it; the other policies of an ablation are of their main branch."""
    loaded, seen = [], {}

    def load(name, **options):
        loaded.append((name, options.get("revision"), options.get("device")))
        return name

    def see(*positional, **options):
        seen.update(options, positional=positional)
        raise ValueError("seen")

    monkeypatch.setattr("hf_decision_mamba.cli.DecisionMambaPolicy.from_pretrained", load)
    for name in ("evaluate_policy", "inspect_checkpoint", "ablate", "export_policy"):
        monkeypatch.setattr(f"hf_decision_mamba.cli.{name}", see)
    options = ["--env-id", "Walk-v0", "--env-kwargs", '{"wind": 3}', "--target-return", "7"]
    options += ["--episodes", "4", "--seed", "5"]
    extra = {"ablate": ["--other", "org/b"], "export": ["--output", "step.onnx"]}.get(verb, [])
    with pytest.raises(SystemExit):
        main([verb, "org/a", "--revision", "v1", "--device", "meta", *extra, *(options if verb in PLAYING else [])])
    assert loaded == [("org/a", "v1", "meta"), *([("org/b", "main", "meta")] if verb == "ablate" else [])]
    if verb in PLAYING:
        target = seen.get("target_returns", seen.get("target_return"))
        assert target == (7.0 if verb == "ablate" else [7.0]) and "Walk-v0" in seen["positional"]
        assert (seen["episodes"], seen["seed"], seen["env_kwargs"]) == (4, 5, {"wind": 3})


def test_inspect_data_fails_where_training_would(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["inspect-data", str(BREAKOUT), "--columns", '{"rewards": "r"}', "--output", str(tmp_path)])
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert "what is there:" in printed and "no column 'r'" in printed
    assert json.loads((tmp_path / "data_overview.json").read_text())["readable"] is False


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evaluate", "nowhere/at-all"], "nowhere/at-all"),
        (["evaluate", "here", "--video"], "--video needs a folder to put replay.mp4 in: --output FOLDER."),
        (["inspect", "nowhere/at-all"], "nowhere/at-all"),
        (["export", "nowhere/at-all", "--output", "step.onnx"], "nowhere/at-all"),
        (["inspect", "here", "--env-id", "Hopper-v5", "--data", "there"], "not allowed with argument --env-id"),
        *(([verb, "here", "--env", "Hopper-v5"], "unrecognized arguments: --env Hopper-v5") for verb in PLAYING),
        (["evaluate", "here", "--ep", "3"], "unrecognized arguments: --ep 3"),
        (
            ["collect", "CartPole-v1", "--env-id", "CartPole-v1", "--output", "there"],
            "unrecognized arguments: --env-id",
        ),
        (["push", "no-such-folder", "me/policy"], "no-such-folder"),
        (["train", "--presett", "dmm"], "preset"),
        (["collect", "NoSuchThing-v0", "--output", "there"], "No environment 'NoSuchThing-v0'"),
        (["collect", "CartPole-v1", "--output", "there", "--private"], "--private needs --push-to-hub"),
        (["collect", "CartPole-v1", "--output", "there", "--push_to_hub", "a/b/c"], "a/b/c"),
        (["inspect-data", "there", "--columns", "obs"], "--columns 'obs' is not of the form"),
        (["collect", "CartPole-v1", "--output", "there", "--env-kwargs", "3"], "--env-kwargs '3' is not of the form"),
        (["collect", "CartPole-v1", "--output", "there", "--env_kwargs", "{"], "--env-kwargs '{' is not of the form"),
        (
            ["collect", "CartPole-v1", "--output", "there", "--env-kwargs", '{"wind": 3}'],
            "CartPole-v1 cannot be made: ",
        ),
        (["collect", "mine:Cart-v0", "--output", "there"], "No environment 'mine:Cart-v0': no module 'mine' is inst"),
    ],
)
def test_user_errors_are_one_line(argv, message, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_help_names_every_verb(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(
        verb in printed for verb in ("train", "evaluate", "inspect ", "collect", "inspect-data", "export", "push")
    )
