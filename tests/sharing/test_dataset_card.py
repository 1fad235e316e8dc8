"""Cards of collected data sets say what the files say, and a push makes the data set loadable by its name."""

import json
from pathlib import Path

import pytest
from factories import HOSTILE, assert_inert, with_texts
from hub_server import LoopbackHub
from huggingface_hub import DatasetCard
from processes import run_python

from hf_decision_mamba.collecting.collect import collect
from hf_decision_mamba.collecting.settings import CollectSettings
from hf_decision_mamba.sharing.dataset_card import (
    is_dataset_folder,
    push_dataset_to_hub,
    render_dataset_card,
    write_dataset_card,
)

TOKEN = "hf_alice"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    settings = CollectSettings("Pendulum-v1", episodes=3, seed=4, max_episode_steps=20, license="cc-by-4.0")
    collect(settings, tmp_path / "swings", progress=False)
    return tmp_path / "swings"


def test_the_front_matter_is_what_loading_and_the_hub_read(folder: Path) -> None:
    data = DatasetCard.load(folder / "README.md").data.to_dict()
    assert data["license"] == "cc-by-4.0" and data["size_categories"] == ["n<1K"]
    assert data["task_categories"] == ["reinforcement-learning"]
    assert {"offline-rl", "trajectories", "gymnasium", "pendulum"} <= set(data["tags"]) and "mujoco" not in data["tags"]
    assert data["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    environment = data["environment"]
    assert (environment["id"], environment["action_low"], environment["action_high"]) == ("Pendulum-v1", [-2.0], [2.0])
    assert environment["max_episode_steps"] == 20 and isinstance(environment["gymnasium"], str)


def test_the_card_says_how_the_data_were_made(folder: Path) -> None:
    card, facts = (folder / "README.md").read_text(), json.loads((folder / "collection.json").read_text())
    command = "hf-decision-mamba collect Pendulum-v1 --episodes 3 --seed 4 --max-episode-steps 20"
    assert f"{command} --license cc-by-4.0 --output swings" in card
    for words in (
        "3 episodes",
        "60 steps",
        "![Distribution",
        "episode i was reset with seed 4 + i",
        "Nothing was recorded",
    ):
        assert words in card
    assert all(f"{package} {version}" in card for package, version in facts["versions"].items())
    assert f"| return of an episode | {facts['returns']['mean']:,.1f} |" in card
    assert str(folder) in card and "\n\n\n" not in card and "None" not in card


@pytest.mark.parametrize(
    ("changes", "words", "absent"),
    [
        (
            {"policy": "org/dema", "target_return": 3600.0, "mode": "recurrent"},
            "`org/dema`, asked for a return of 3600, in recurrent mode",
            "at random",
        ),
        (
            {"policy": "sb3:sac:a.zip", "noise": 0.25, "sample": True},
            "standard deviation of 0.25 of half its range",
            "window",
        ),
        ({"policy": "org/dema", "epsilon": 0.5}, "with probability 0.5 a random action", "Gaussian"),
    ],
)
def test_policies_and_their_noise_are_described(folder: Path, changes: dict, words: str, absent: str) -> None:
    facts = json.loads((folder / "collection.json").read_text())
    facts["settings"].update(changes)
    (folder / "collection.json").write_text(json.dumps(facts))
    card = render_dataset_card(folder, repo_id="alice/swings").text
    assert words in card and absent not in card and 'load_dataset("alice/swings"' in card


def test_a_card_that_was_edited_is_kept(folder: Path) -> None:
    path = folder / "README.md"
    path.write_text(path.read_text().replace("at random", "without a plan"))
    write_dataset_card(folder, repo_id="alice/swings")
    assert "without a plan" in path.read_text()
    path.unlink()
    write_dataset_card(folder, repo_id="alice/swings")
    assert "alice/swings" in path.read_text()


def test_nothing_that_the_facts_say_is_more_than_text(folder: Path) -> None:
    facts, cards = json.loads((folder / "collection.json").read_text()), []
    for text in ("harmless", *HOSTILE):
        changed = with_texts(facts, text)
        changed["environment"]["id"], changed["settings"]["train"] = "Pendulum-v1", None
        (folder / "collection.json").write_text(json.dumps(changed))
        cards.append(render_dataset_card(folder))
        assert_inert(cards[-1], cards[0])
    for text in HOSTILE:
        changed["environment"]["id"] = text
        (folder / "collection.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=r"collection\.json names the environment .*, which is no gymnasium id"):
            render_dataset_card(folder)


def test_what_is_no_collected_data_set_is_refused_before_anything_is_sent(folder: Path, tmp_path: Path) -> None:
    assert is_dataset_folder(folder) and not is_dataset_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"it has no collection\.json"):
        push_dataset_to_hub(tmp_path, "alice/swings")
    (folder / "collection.json").write_text("{}")
    with pytest.raises(ValueError, match=r"collection\.json lacks a value that the card needs, .* \('environment'\)"):
        push_dataset_to_hub(folder, "alice/swings")


def test_a_collected_data_set_is_one_commit_and_one_name_away(tmp_path: Path) -> None:
    with LoopbackHub({TOKEN: "alice"}) as hub:
        code = (
            "from hf_decision_mamba.cli import main\n"
            "from hf_decision_mamba.data import load_trajectories\n"
            "words = 'Pendulum-v1 --episodes 2 --max_episode_steps 5 --output swings --push_to_hub alice/swings'\n"
            "main(['collect', *words.split()])\n"
            "main(['push', 'swings', 'alice/again', '--private', '--commit-message', 'Again'])\n"
            "t = load_trajectories('alice/swings')\n"
            "print(t.name, t.env_id, t.num_episodes, t.num_steps)\n"
        )
        environment = hub.client_environment(tmp_path / "home", TOKEN)
        result = run_python(code, environment=environment, folder=tmp_path)
        assert result.returncode == 0, result.stderr
        assert f"{hub.endpoint}/datasets/alice/swings" in result.stdout
        assert result.stdout.splitlines()[-1] == "alice/swings Pendulum-v1 2 10"
        repository = hub.dataset("alice/swings")
        assert repository.history() == ["Upload data set", "initial commit"]
        files = repository.files()
        names = {"README.md", "collection.json", "returns.png", "data/train-00000-of-00001.parquet"}
        assert set(files) == names | {".gitattributes"}
        assert b'load_dataset("alice/swings"' in files["README.md"]
        again = hub.dataset("alice/again")
        assert again.private and again.history()[0] == "Again"
