"""Sharing: the model card says what the files say, and what is pushed loads and acts the same elsewhere.

Pushes and loads run in processes of their own, with the real clients, against a Hub on the loopback interface.
Source: huggingface_hub's card metadata, and the requests in hub_server.py.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from factories import HOSTILE, ROOT, assert_inert, with_texts
from hub_server import LoopbackHub
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from processes import run_commands, run_python

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel, DecisionMambaPolicy, DecisionMambaProcessor
from hf_decision_mamba.evaluation.result import EvaluationResult
from hf_decision_mamba.evaluation.rollouts import evaluate_policy
from hf_decision_mamba.evaluation.scores import normalized_score
from hf_decision_mamba.model import PRESETS
from hf_decision_mamba.sharing.model_card import push_to_hub, render_model_card, write_model_card
from hf_decision_mamba.sharing.remote_code import CODE_FILES, write_model_code

BASELINES = ("decision_transformer", "rvs", "bc")
CARDS = ROOT / "model_cards"
TOKEN = "hf_alice"
ENV_ID = "Pendulum-v1"  # part of gymnasium itself: three observations, one action
PNG = bytes.fromhex("89504e470d0a1a0a") + b"picture"

TRAINING = {
    "preset": "dema-b3ld",
    "architecture": "decision_mamba",
    "num_parameters": 108931,
    "dataset": {
        "name": "pendulum-replay",
        "revision": None,
        "env_id": ENV_ID,
        "episodes": 1120,
        "transitions": 199266,
        "return_mean": -511.25,
        "return_std": 515.5,
        "return_min": -1600.0,
        "return_max": -120.5,
        "return_quantiles": {"min": -1600.0, "25%": -900.0, "median": -480.0, "75%": -200.0, "max": -120.5},
        "held_out_episodes": 56,
    },
    "arguments": {"max_steps": 5000, "learning_rate": 0.001, "seed": 7, "warmup_steps": None, "note": "a|b"}
    | {"per_device_train_batch_size": 64, "context_length": 20, "lr_scheduler_type": "cosine"},
    "command": "accelerate launch train.py --max_steps 5000",
    "train_runtime_seconds": 442.4,
    "hardware": "2 CPU cores",
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "loss": 0.0712345,
    "eval_loss": None,
    "global_step": 5000,
    "history": {"loss": {"50": 0.5, "5000": 0.07}, "eval_normalized_score": {"2500": 95.04, "5000": 91.0}},
}
EVALUATION = {
    "env_id": ENV_ID,
    "checkpoint": "last",
    "mode": "window",
    "context_length": 20,
    "episodes_per_target": 20,
    "seed": 0,
    "results": [
        {
            "target_return": -150.0,
            "episodes": 20,
            "return_mean": -160.123,
            "return_std": 18.4,
            "return_ci95": [-168.0, -152.0],
            "length_mean": 200.0,
            "normalized_score_mean": 92.057,
            "normalized_score_std": 0.6,
            "normalized_score_ci95": [91.8, 92.3],
        },
        {
            "target_return": -600.0,
            "episodes": 20,
            "return_mean": -590.0,
            "return_first": -580.0,
            "return_std": 60.0,
            "return_ci95": [-620.0, -560.0],
            "length_mean": 199.5,
            "normalized_score_mean": 71.0,
            "normalized_score_std": 2.0,
            "normalized_score_ci95": [70.0, 72.0],
        },
    ],
    "score_reference": {"min": -1600.0, "max": -120.0, "source": "D4RL"},
    "versions": {"gymnasium": "1.4.0"},
}
OPTIONAL_FILES = ("preprocessor_config.json", "training.json", "evaluation.json", "returns.png", "learning_curve.png")


def make_checkpoint(folder: Path) -> Path:
    """A tiny trained-looking checkpoint, as training and evaluation leave it, with the files that must stay at home."""
    torch.manual_seed(0)
    config = DecisionMambaConfig.from_preset(
        "dema-b3ld", state_dim=3, act_dim=1, hidden_size=16, embedding_size=8, n_layer=1, state_size=4
    )
    DecisionMambaModel(config).save_pretrained(folder)
    DecisionMambaProcessor(
        state_mean=[0.5, -0.25, 1.0],
        state_std=[1.0, 2.0, 4.0],
        return_scale=1000.0,
        target_return=-150.0,
        context_length=20,
        env_id=ENV_ID,
        action_low=[-2.0],
        action_high=[2.0],
    ).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(TRAINING))
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    (folder / "evaluation.parquet").write_bytes(b"PAR1")
    (folder / "train.yaml").write_text("max_steps: 5000\n")
    (folder / "returns.png").write_bytes(PNG)
    (folder / "learning_curve.png").write_bytes(PNG)
    for private in ("optimizer.pt", "training_args.bin", "checkpoint-5/config.json", "checkpoint-5/model.safetensors"):
        (folder / private).parent.mkdir(exist_ok=True)
        (folder / private).write_bytes(b"stays here")
    return folder


RESULTS = {*OPTIONAL_FILES, "evaluation.parquet", "train.yaml"}
SHARED = {"README.md", "config.json", "model.safetensors", *RESULTS, *CODE_FILES}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "pendulum-dema")


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub({TOKEN: "alice", "hf_bob": "bob"}) as server:
        yield server


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(hub: LoopbackHub, tmp_path: Path) -> Run:
    """Run Python code in a fresh process that knows only this Hub; an empty cache for every call."""
    calls = count()

    def _run(code: str, token: str | None = TOKEN, **environment: str) -> "subprocess.CompletedProcess[str]":
        client = hub.client_environment(tmp_path / f"home{next(calls)}", token) | environment
        return run_python(code, environment=client)

    return _run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The card


def headings(card: ModelCard) -> list[str]:
    return re.findall(r"^## (.+)$", card.text, re.MULTILINE)


def test_card_states_what_the_files_say(checkpoint: Path) -> None:
    text = render_model_card(checkpoint, repo_id="alice/pendulum").text
    for fact in (
        "# pendulum",
        "preset `dema-b3ld`",
        "| Parameters | 108,931 |",
        "https://arxiv.org/abs/2405.12094",
        'DecisionMambaPolicy.from_pretrained("alice/pendulum")',
        "policy.reset(target_return=-150)",
        "| observation (in) | (3,) |",
        "within [-2, 2] in each dimension",
        "divided by 1000 inside",
        "| Episodes | 1,120, of which 56 held out for the evaluation loss |",
        "| Transitions | 199,266 |",
        "-511.2 ± 515.5 |",
        "| min | 25% | median | 75% | max |\n|---:|---:|---:|---:|---:|\n| -1,600.0 | -900.0 | -480.0 |",
        "5,000 steps in 7 min 22 s on 2 CPU cores: batches of 64 windows of 20 steps, learning rate 0.001 (cos",
        "Loss (mean squared error of the actions): 0.07123 in training.",
        "![Loss over the steps of training](learning_curve.png)",
        "hf download alice/pendulum train.yaml --local-dir .\naccelerate launch train.py train.yaml\n",
        "| `learning_rate` | 0.001 |",
        r"| `note` | a\|b |",
        "the **last** checkpoint (not the best of several evaluations),\n20 episodes for each target return",
        "0 is a return of -1,600.0 and 100 one of -120.0 (references of D4RL).",
        "| -150 | -160.1 ± 18.4 | -168.0 to -152.0 | 92.1 ± 0.6 | 91.8 to 92.3 | 200.0 |",
        "2 evaluations on other episodes: a normalised score of 91.0 at the last, 95.0 at the best (step 2,500).",
        "![Return reached against return asked for](returns.png)",
        "they are of one training run (seed 7)",
        "## Licence\n\napache-2.0",
        "torch 2.13.0, transformers 5.23.0, gymnasium 1.4.0",
    ):
        assert fact in text, f"missing from the card: {fact}\n\n{text}"
    assert "warm" not in text  # a setting without a value says nothing


def test_card_says_how_the_environment_is_made_and_what_it_is_made_of(checkpoint: Path) -> None:
    largest = float(np.finfo(np.float32).max)
    DecisionMambaProcessor(
        state_mean=[0.5, -0.25, 1.0],
        state_std=[1.0, 2.0, 4.0],
        env_id="PointMaze_UMaze-v3",
        action_low=[-largest],
        action_high=[2.0],
        observation_parts=[{"path": ["a|b"], "shape": [1, 2], "size": 2}, {"path": ["c"], "shape": [], "size": 1}],
        env_kwargs={"continuing_task": False, "maze_map": [[1, "r"]], "reward type": "sparse"},
    ).save_pretrained(checkpoint)
    evaluation = EVALUATION | {"env_kwargs": {"continuing_task": False}}
    (checkpoint / "evaluation.json").write_text(json.dumps(evaluation))
    card = render_model_card(checkpoint)
    for fact in (
        "import gymnasium as gym\nimport gymnasium_robotics\n\ngym.register_envs(gymnasium_robotics)\nenv = gym.make(",
        "-v3\", **{'continuing_task': False, 'maze_map': [[1, 'r']], 'reward type': 'sparse'})\n",
        r"| observation (in) | a dictionary of a\|b (1, 2), c () | as the environment gives them; concatenated",
        "states.append(processor.flatten_observations(observation))",
        "within [-∞, 2] in each dimension",
        'Protocol: `Pendulum-v1` (`{"continuing_task": false}`), the **last** checkpoint',
    ):
        assert fact in card.text, f"missing from the card: {fact}\n\n{card.text}"
    assert card.data.eval_results[0].metric_args["env_kwargs"] == {"continuing_task": False}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluation.json", "[" * 100_000, r"evaluation\.json cannot be read as JSON"),
        ("training.json", '{"dataset": [1]}', "lacks a value that the card needs"),
        (
            "training.json",
            '{"history": {"eval_return_mean": [[1]]}}',
            "lacks a value that the card needs",
        ),
        (
            "training.json",
            f'{{"arguments": {{"learning_rate": 1{"0" * 400}}}}}',
            "lacks a value that the card needs",
        ),
        (
            "preprocessor_config.json",
            '{"action_low": 1, "action_high": 2}',
            "lacks a value that the card needs",
        ),
    ],
)
def test_card_of_files_that_say_something_strange(name: str, content: str, message: str, checkpoint: Path) -> None:
    (checkpoint / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        render_model_card(checkpoint)
    assert len(str(error.value)) < 2000


def test_card_without_repository_loads_from_the_folder(checkpoint: Path) -> None:
    assert f'from_pretrained("{checkpoint.as_posix()}")' in render_model_card(checkpoint).text


@pytest.mark.parametrize(
    "missing", [names for some in range(6) for names in combinations(OPTIONAL_FILES, some)], ids=" ".join
)
def test_sections_vanish_when_their_facts_are_missing(checkpoint: Path, missing: tuple[str, ...]) -> None:
    for name in missing:
        (checkpoint / name).unlink()
    card = render_model_card(checkpoint)
    assert ("Training data" in headings(card)) == ("training.json" not in missing)
    assert ("Training" in headings(card)) == ("training.json" not in missing)
    assert ("Citation" in headings(card)) == ("training.json" not in missing)
    assert ("Results" in headings(card)) == ("evaluation.json" not in missing)
    assert ("](returns.png)" in card.text) == not_missing(missing, "evaluation.json", "returns.png")
    assert ("](learning_curve.png)" in card.text) == not_missing(missing, "training.json", "learning_curve.png")
    assert (card.data.get("eval_results") is not None) == ("evaluation.json" not in missing)
    assert_well_formed(card)


def test_card_shows_the_videos_that_are_there(checkpoint: Path) -> None:
    (checkpoint / "replay-target--600.mp4").write_bytes(b"a film")
    (checkpoint / "replay.mp4").write_bytes(b"of an evaluation with one target return")
    card = render_model_card(checkpoint)
    assert re.findall(r'<video controls src="(.*)"></video>', card.text) == ["replay-target--600.mp4"]
    assert "shows the first of these episodes (seed 0): asked for -600, it returned -580.0." in card.text
    assert_well_formed(card)
    sent = push_to_hub(checkpoint, "pendulum", dry_run=True)
    assert "  replay-target--600.mp4 " in sent


def not_missing(missing: tuple[str, ...], *names: str) -> bool:
    return not set(names) & set(missing)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "training.json", "evaluation.json"])
def test_values_that_are_null_leave_no_trace(checkpoint: Path, name: str) -> None:
    facts = json.loads((checkpoint / name).read_text())
    kept = ("results", "checkpoint", "seed", "mode", "env_id", "episodes_per_target")
    facts = {key: value if key in kept else None for key, value in facts.items()}
    for row in facts.get("results", []):
        row.update({key: None for key in row if key.startswith(("normalized", "return_ci95"))})
    (checkpoint / name).write_text(json.dumps(facts))
    card = render_model_card(checkpoint)
    assert_well_formed(card)
    assert "n/a" not in card.text


def assert_well_formed(card: ModelCard) -> None:
    """No leftovers of the template, and every table has as many cells in each row as in its head."""
    prose = re.sub(r"```.*?```", "(code)", card.text, flags=re.DOTALL)
    for leftover in ("{{", "{%", "None", "nan", "  \n", "\n\n\n", "` `", " ,", " ."):
        assert leftover not in prose, f"{leftover!r} in the card:\n{card.text}"
    tables = re.findall(r"(?:^\|.*\n?)+", prose, re.MULTILINE)
    assert tables
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table
        assert f"\n\n{table.rstrip()}\n" in card.text + "\n", f"no empty line before the table:\n{table}"
    assert card.text.count("```") % 2 == 0


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_a_file_says_is_more_than_text(checkpoint: Path, text: str) -> None:
    cards = []
    for value in ("harmless", text):
        for name, facts in (("training.json", TRAINING), ("evaluation.json", EVALUATION)):
            facts = (
                {**with_texts(facts, value), "mode": "window"}
                if name == "evaluation.json"
                else with_texts(facts, value)
            )
            (checkpoint / name).write_text(json.dumps(facts))
        (checkpoint / "train.yaml").unlink(missing_ok=True)  # the command is shown in its place
        cards.append(render_model_card(checkpoint))
    assert_inert(cards[1], cards[0])


@pytest.mark.parametrize("name", ["training.json", "evaluation.json", "preprocessor_config.json"])
def test_what_is_no_environment_is_refused(checkpoint: Path, name: str) -> None:
    facts = json.loads((checkpoint / name).read_text())
    (facts["dataset"] if name == "training.json" else facts)["env_id"] = 'Pendulum-v1"); import os  #'
    (checkpoint / name).write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=rf"{name} names the environment 'Pendulum-v1\"\); import os  #', which is no"):
        push_to_hub(checkpoint, "alice/pendulum")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"act_dim": "1); import os"}),
        ("preprocessor_config.json", {"context_length": "20"}),
        ("training.json", {"num_parameters": "many"}),
        ("training.json", {"dataset": "a data set"}),
        ("training.json", {"arguments": {"learning_rate": "fast"}}),
        ("evaluation.json", {"results": [{**EVALUATION["results"][0], "target_return": "much"}]}),
    ],
)
def test_values_of_another_type_are_refused(checkpoint: Path, name: str, changes: dict[str, Any]) -> None:
    facts = json.loads((checkpoint / name).read_text())
    (checkpoint / name).write_text(json.dumps({**facts, **changes}))
    with pytest.raises(ValueError, match=f"{checkpoint}.* lacks a value that the card needs"):
        render_model_card(checkpoint)


def test_metadata_carries_the_measured_results(checkpoint: Path) -> None:
    data = ModelCard.load(write_model_card(checkpoint)).data
    assert (data.library_name, data.license, data.pipeline_tag) == (
        "hf_decision_mamba",
        "apache-2.0",
        "reinforcement-learning",
    )
    assert data.tags == [
        "reinforcement-learning",
        "deep-reinforcement-learning",
        "offline-rl",
        "decision-mamba",
        ENV_ID,
    ]
    assert [(r.metric_type, r.metric_value) for r in data.eval_results or []] == [
        ("mean_reward", "-160.12 +/- 18.40"),
        ("normalized_score", 92.06),
        ("mean_reward", "-590.00 +/- 60.00"),
        ("normalized_score", 71.0),
    ]
    first = (data.eval_results or [])[0]
    assert (first.task_type, first.dataset_name, first.dataset_type) == ("reinforcement-learning", ENV_ID, ENV_ID)
    assert first.metric_name == "Mean return (target return -150, last checkpoint)"
    assert first.metric_args == {
        "target_return": -150.0,
        "episodes": 20,
        "seed": 0,
        "mode": "window",
        "checkpoint": "last",
    }
    name, again = model_index_to_eval_results(eval_results_to_model_index("pendulum-dema", data.eval_results or []))
    assert (name, again) == ("pendulum-dema", data.eval_results)


def test_success_is_shown_where_the_environment_speaks_of_it(checkpoint: Path) -> None:
    first, second = EVALUATION["results"]
    told = first | {"success_rate": 0.85, "success_ci95": [0.6396, 0.9476]}
    untold = second | {"success_rate": None, "success_ci95": [None, None]}
    (checkpoint / "evaluation.json").write_text(json.dumps(EVALUATION | {"results": [told, untold]}))
    card = render_model_card(checkpoint)
    assert_well_formed(card)
    assert (
        "| success | 95% interval | steps |" in card.text and ", and **85.0%** of them were a success ([" in card.text
    )
    assert " | 85.0 % | 64.0 to 94.8 % | 200.0 |" in card.text and " | 70.0 to 72.0 |  |  | 199.5 |" in card.text
    metrics = [(result.metric_type, result.metric_value) for result in card.data.get("eval_results")]
    assert ("success_rate", 0.85) in metrics and len(metrics) == 5
    (checkpoint / "evaluation.json").write_text(json.dumps(EVALUATION))
    assert "| success |" not in render_model_card(checkpoint).text


def test_rows_of_other_checkpoints_are_labelled(checkpoint: Path) -> None:
    last, other = EVALUATION["results"]
    (checkpoint / "evaluation.json").write_text(
        json.dumps(EVALUATION | {"results": [last, other | {"checkpoint": "best"}]})
    )
    card = render_model_card(checkpoint)
    assert_well_formed(card)
    assert "| -150 | last | -160.1 ± 18.4 |" in card.text and "| -600 | best | -590.0 ± 60.0 |" in card.text
    assert [result.metric_args["checkpoint"] for result in card.data.get("eval_results")] == [
        *["last"] * 2,
        *["best"] * 2,
    ]


def test_a_card_of_a_model_without_a_return_asks_for_none(checkpoint: Path) -> None:
    config = {"model_type": "decision_mlp", "conditioning": "none", "state_dim": 3, "act_dim": 1}
    (checkpoint / "config.json").write_text(json.dumps(config))
    card = render_model_card(checkpoint)
    assert_well_formed(card)
    assert "Asked for a return" not in card.text and "Given the return that is wanted" not in card.text
    assert "target return" not in card.text.lower() and "reward (in)" not in card.text
    assert "policy.reset()\naction = policy.act(observation)\n" in card.text
    assert "conditioned on a return" not in card.text and "| return | 95% interval |" in card.text
    evaluation = json.loads((checkpoint / "evaluation.json").read_text())
    evaluation["results"] = [{**evaluation["results"][0], "target_return": None}]
    (checkpoint / "evaluation.json").write_text(json.dumps(evaluation))
    asked_for_nothing = render_model_card(checkpoint)
    assert_well_formed(asked_for_nothing)
    assert all("target_return" not in result.metric_args for result in asked_for_nothing.data.get("eval_results"))
    assert "n/a" not in asked_for_nothing.text and "None" not in asked_for_nothing.text
    assert "without it, the checkpoint does not load" in card.text


@pytest.mark.parametrize(
    ("facts", "paper", "authors"),
    [
        *(({"preset": name}, "2405.12094", "Dai, Yang") for name in PRESETS if name.startswith("dema")),
        *(({"preset": name}, "2602.19805", "Kim, Wall") for name in PRESETS if name.startswith("dmm")),
        ({"preset": "decision-mamba"}, "2403.19925", "Ota, Toshihiro"),
        *(
            (dict(preset=None, architecture=name), "2106.01345", "Chen, Lili")
            for name in ("decision_transformer", "bc")
        ),
        ({"preset": None, "architecture": "rvs"}, "2112.10751", "Emmons, Scott"),
        ({"preset": "gru", "architecture": "gru"}, "1406.1078", "Cho, Kyunghyun"),
    ],
    ids=lambda value: " ".join(filter(None, value.values())) if isinstance(value, dict) else "",
)
def test_every_preset_and_baseline_cites_its_paper(
    checkpoint: Path, facts: dict[str, Any], paper: str, authors: str
) -> None:
    (checkpoint / "training.json").write_text(json.dumps(TRAINING | facts))
    card = render_model_card(checkpoint)
    assert_well_formed(card)
    row = next(line for line in card.text.splitlines() if line.startswith("| Paper |"))
    assert f"](https://arxiv.org/abs/{paper})" in row
    bibtex = card.text.split("```bibtex\n")[1].split("```")[0]
    assert f"arXiv:{paper}" in bibtex and authors in bibtex
    assert bibtex.count("{") == bibtex.count("}")


def test_hub_accepts_the_card(run: Run, checkpoint: Path) -> None:
    """huggingface_hub's own validation, which asks the Hub."""
    write_model_card(checkpoint)
    code = "from huggingface_hub import ModelCard; card = ModelCard.load({!r}); card.validate()"
    accepted = run(code.format(str(checkpoint / "README.md")))
    assert accepted.returncode == 0, accepted.stderr
    spoilt = run(code.format(str(checkpoint / "README.md")) + "; card.data.tags = [1]; card.validate()")
    assert '"tags" must be a list of strings' in spoilt.stderr


@pytest.mark.parametrize("env_id", [ENV_ID, "Hopper-v5"], ids=["without reference", "with reference"])
@pytest.mark.parametrize("episodes", [1, 3])
def test_card_takes_what_evaluation_saves(checkpoint: Path, env_id: str, episodes: int) -> None:
    rows: list[dict[str, Any]] = [
        {
            "target_return": 100.0,
            "episode": i,
            "seed": 3 + i,
            "return": 90.0 + i,
            "length": 10 + i,
            "terminated": False,
            "normalized_score": normalized_score(env_id, 90.0 + i),
        }
        for i in range(episodes)
    ]
    EvaluationResult(env_id=env_id, mode="recurrent", context_length=None, seed=3, episodes=rows).save(checkpoint)
    card = render_model_card(checkpoint)
    assert_well_formed(card)
    assert "n/a" not in card.text
    assert f"{episodes} episodes for each target return, episode i reset with seed 3 + i" in card.text
    assert "recurrent mode" in card.text
    types = [result.metric_type for result in card.data.get("eval_results")]
    assert types == (["mean_reward"] if env_id == ENV_ID else ["mean_reward", "normalized_score"])


def test_best_checkpoint_is_labelled_so(checkpoint: Path) -> None:
    (checkpoint / "evaluation.json").write_text(json.dumps(EVALUATION | {"checkpoint": "best"}))
    card = render_model_card(checkpoint)
    assert "the **best** checkpoint,\n" in card.text
    assert all("best checkpoint" in (result.metric_name or "") for result in card.data.get("eval_results"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alice/pendulum-replay", ["alice/pendulum-replay"]),
        ("pendulum-replay", None),
        ("datasets/pendulum", None),
        ("alice/medium + mine + alice/expert", ["alice/medium", "alice/expert"]),
    ],
)
def test_only_data_sets_of_the_hub_are_linked(checkpoint: Path, name: str, expected: list[str] | None) -> None:
    facts = TRAINING | {"dataset": {"name": name, "revision": "abc123"}}
    (checkpoint / "training.json").write_text(json.dumps(facts))
    card = render_model_card(checkpoint)
    assert card.data.get("datasets") == expected
    assert (f"https://huggingface.co/datasets/{name}" in card.text) == (expected == [name])
    assert "`abc123`" in card.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {},
            "States are normalised by their mean and deviation (`mean_std`). Actions are not normalised (`none`).",
        ),
        (
            {"state_normalization": "min_max", "action_normalization": "quantile"},
            "States are normalised by their smallest and largest value, which become -1 and 1 (`min_max`). Actions are "
            "normalised by their 1st and 99th percentile, which become -1 and 1 (`quantile`). The normalisation",
        ),
        ({"model_name_or_path": "runs/another"}, "environments at once. The normalisation"),  # which is that one's
        ({"state_normalization": "<b>"}, "States are . Actions"),
    ],
)
def test_card_says_how_states_and_actions_are_normalised(checkpoint: Path, arguments: dict, said: str) -> None:
    training = json.loads((checkpoint / "training.json").read_text())
    training["arguments"] = {**training["arguments"], **arguments}
    (checkpoint / "training.json").write_text(json.dumps(training))
    assert said in str(render_model_card(checkpoint))


def test_card_says_how_fast_the_steps_were(checkpoint: Path) -> None:
    assert "Control rate" not in str(render_model_card(checkpoint))
    training = json.loads((checkpoint / "training.json").read_text())
    training["dataset"]["fps"] = 29.97
    (checkpoint / "training.json").write_text(json.dumps(training))
    window = "the first of the 20 steps of a window is 0.634 s before the last"
    assert f"| Control rate | 29.97 steps a second: {window} |\n" in str(render_model_card(checkpoint))


def test_card_is_rendered_again_unless_it_was_edited(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    readme = write_model_card(checkpoint)
    (checkpoint / "evaluation.json").unlink()
    write_model_card(checkpoint)
    assert "## Results" not in readme.read_text()
    edited = readme.read_text().replace("## Licence", "## Licence and more")
    readme.write_text(edited)
    write_model_card(checkpoint)
    assert readme.read_text() == edited
    assert "was edited by hand and is kept" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("config.json", None, FileNotFoundError, "is not a checkpoint folder: it has no config.json"),
        ("training.json", '{"preset": ', ValueError, "training.json cannot be read as JSON"),
        ("evaluation.json", "[1]", ValueError, "evaluation.json holds a list, not an object"),
        ("evaluation.json", '{"env_id": "x"}', ValueError, "lacks a value that the card needs .*'results'"),
        ("model.safetensors", None, FileNotFoundError, "has no weights"),
    ],
)
def test_unfit_folder_is_refused_before_anything_is_sent(
    checkpoint: Path, name: str, content: str | None, error: type[Exception], message: str
) -> None:
    (checkpoint / name).unlink() if content is None else (checkpoint / name).write_text(content)
    with pytest.raises(error, match=message):
        push_to_hub(checkpoint, "alice/pendulum")
    assert not (checkpoint / "README.md").exists()


def test_snippets_of_the_card_run(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = re.findall(r"```python\n(.*?)```", render_model_card(checkpoint).text, re.DOTALL)
    assert len(snippets) == 3
    names: dict[str, object] = {"observation": np.zeros(3, np.float32)}
    exec("\n".join(snippets), names)
    action = names["action"]
    assert isinstance(action, np.ndarray) and action.shape == (1,)
    assert float(capsys.readouterr().out) == names["episode_return"]


# Pushing and loading

PUSH = "from hf_decision_mamba.sharing.model_card import push_to_hub; print(push_to_hub({arguments}))"

# Acts for 25 steps (more than the context) on observations that are a function of the step, and prints every action.
ACT = """
import numpy as np
from hf_decision_mamba import DecisionMambaPolicy
policy = DecisionMambaPolicy.from_pretrained({arguments})
policy.reset()
for step in range(25):
    observation = np.cos(np.arange(3) + step).astype(np.float32)
    print(policy.act(observation, None if step == 0 else -1.0).tobytes().hex())
"""


def local_actions(folder: Path) -> list[str]:
    policy = DecisionMambaPolicy.from_pretrained(folder)
    policy.reset()
    observations = [np.cos(np.arange(3) + step).astype(np.float32) for step in range(25)]
    return [policy.act(seen, -1.0 if step else None).tobytes().hex() for step, seen in enumerate(observations)]


def pushed(hub: LoopbackHub, run: Run, folder: Path, **options: object) -> str:
    arguments = ", ".join([repr(str(folder)), "'alice/pendulum'", *(f"{k}={v!r}" for k, v in options.items())])
    result = run(PUSH.format(arguments=arguments))
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    return result.stdout.strip()


def test_one_command_publishes_every_folder_of_the_repository(hub: LoopbackHub, tmp_path: Path) -> None:
    """The command of model_cards/README.md, as it stands there."""
    folders = tmp_path / "clone" / "model_cards"
    shutil.copytree(CARDS, folders)
    client = hub.client_environment(tmp_path / "home", TOKEN)
    [command] = re.findall(r"```bash\n(.*?)```", (folders / "README.md").read_text(), re.DOTALL)
    command = command.replace("your-name", "alice")
    done = run_commands(command, environment=client, folder=folders.parent)
    assert done.returncode == 0, done.stderr
    names = [path.name for path in folders.iterdir() if path.is_dir()]
    assert names
    for name in names:
        files = hub.model(f"alice/{name}").files()
        assert files["model.safetensors"] == (folders / name / "model.safetensors").read_bytes()
        assert f'from_pretrained("alice/{name}")' in files["README.md"].decode()
        assert {"train.yaml", "training.json", "evaluation.json", "evaluation.parquet", "returns.png"} <= set(files)


@pytest.mark.parametrize("folder", [path for path in CARDS.iterdir() if path.is_dir()], ids=lambda folder: folder.name)
def test_cards_of_the_repository_are_up_to_date(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rendered = str(render_model_card(folder.relative_to(ROOT))).rstrip()
    assert (folder / "README.md").read_text(encoding="utf-8").startswith(rendered), "render it again: write_model_card"
    assert (folder / "model.safetensors").stat().st_size < 1 << 20


def test_pushed_policy_acts_identically_in_a_fresh_process(hub: LoopbackHub, run: Run, checkpoint: Path) -> None:
    write_model_code(checkpoint)
    before = contents(checkpoint)
    assert pushed(hub, run, checkpoint) == f"{hub.endpoint}/alice/pendulum"
    repository = hub.model("alice/pendulum")
    assert repository.history() == ["Upload checkpoint", "initial commit"]
    assert set(repository.files()) == {*SHARED, ".gitattributes"}
    assert 'from_pretrained("alice/pendulum")' in repository.files()["README.md"].decode()
    after = contents(checkpoint)
    assert after.pop("README.md") == repository.files()["README.md"]
    assert after == before
    ModelCard.load(checkpoint / "README.md")  # what arrived is a card whose metadata can be read
    result = run(ACT.format(arguments="'alice/pendulum'"), token=None)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == local_actions(checkpoint)


def test_data_set_of_the_hub_is_one_name_away(hub: LoopbackHub, run: Run) -> None:
    made = run(
        "import datasets\n"
        "def episode(e, steps):\n"
        "    ends = [False] * (steps - 1) + [True]\n"
        "    columns = {'observations': [[float(e), 0.5]], 'actions': [[0.25]], 'rewards': [1.0]}\n"
        "    return {name: values * steps for name, values in columns.items()} | {'dones': ends}\n"
        "rows = [episode(e, e + 2) for e in range(3)]\n"
        "datasets.Dataset.from_list(rows).push_to_hub('alice/steps', private=True)\n"
    )
    assert made.returncode == 0, made.stderr
    sha = hub.dataset("alice/steps").branches["main"]
    loaded = run(
        "from hf_decision_mamba.data import load_trajectories\n"
        f"t = load_trajectories('alice/steps', revision='{sha}')\n"
        "print(t.name, t.num_episodes, t.num_steps, t.lengths.tolist(), t.observations[:, 0].tolist())\n"
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip() == "alice/steps 3 9 [2, 3, 4] [0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]"


def test_a_card_of_goals_says_how_to_name_one(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "conditioning": "goal", "goal_dim": 2}))
    processor = json.loads((checkpoint / "preprocessor_config.json").read_text())
    goals = {"goal_mean": [0.0, 1.0], "goal_std": [1.0, 2.0], "target_return": None}
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({**processor, **goals}))
    evaluation = json.loads((checkpoint / "evaluation.json").read_text())
    evaluation["results"] = [{**evaluation["results"][0], "target_return": None, "success_rate": 0.9}]
    (checkpoint / "evaluation.json").write_text(json.dumps(evaluation))
    training = json.loads((checkpoint / "training.json").read_text())
    training["arguments"] |= {"conditioning": "goal", "goals": "uniform"}
    (checkpoint / "training.json").write_text(json.dumps(training))
    card = render_model_card(checkpoint)
    assert_well_formed(card)
    assert "Given a goal of 2 numbers to go to and" in card.text and "policy.reset(goal=[0.0] * 2)" in card.text
    assert "| goal (in) | (2,) |" in card.text and "achieved later in the episode, drawn uniformly" in card.text
    assert '"goals": [goal] * k,' in card.text and "returns_to_go" not in card.text
    assert "target return" not in card.text.lower() and "n/a" not in card.text
    assert "policy.reset()  # the goal is the observation's desired_goal" in card.text
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({**processor, **goals, "env_id": "cube-single-v0"}))
    told = 'observation, info = env.reset(seed=0)\npolicy.reset(goal=info["goal"])\n'  # OGBench shows it there alone
    assert told in render_model_card(checkpoint).text


@pytest.mark.parametrize("folder", [path for path in CARDS.iterdir() if path.is_dir()], ids=lambda folder: folder.name)
def test_checkpoints_of_the_repository_repeat_an_episode_and_stand_in_the_table(folder: Path) -> None:
    said = json.loads((folder / "evaluation.json").read_text())
    recorded = pq.read_table(folder / "evaluation.parquet").to_pylist()[0]
    policy = DecisionMambaPolicy.from_pretrained(folder, said["mode"])
    again = evaluate_policy(
        policy, said["env_id"], episodes=1, seed=said["seed"], env_kwargs=said.get("env_kwargs"), progress=False
    )
    assert again.episodes[0]["return"] == pytest.approx(recorded["return"], rel=1e-3)
    [result] = said["results"]
    parameters = json.loads((folder / "training.json").read_text())["num_parameters"]
    score = f"{result['return_mean']:,.1f} ± {result['return_std']:,.1f}"
    row = f"| [{folder.name}]({folder.name}/README.md) | `{said['env_id']}` | {parameters:,} | {score} |"
    assert row in (CARDS / "README.md").read_text(encoding="utf-8")
