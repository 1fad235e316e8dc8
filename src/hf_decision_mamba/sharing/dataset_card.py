"""Cards of data sets that were collected, and pushing them to the Hub.

A card is rendered from collection.json, which `collect` writes beside the data; its words live in
`model_cards/dataset_template.md`. Source of the metadata: huggingface_hub's DatasetCardData.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData
from huggingface_hub.utils import validate_repo_id

from ..model.observations_decision_mamba import describe_parts
from ..reporting.files import CARD_FILE, RETURNS_FILE, read_json
from ..views import described_views, split_views
from .cards import check_env_id, explaining_values, literal, render_card, visible, write_card
from .push import push_folder

DATA_FILE = "data/train-00000-of-00001.parquet"
SUMMARY_FILE = "collection.json"
PICTURE = RETURNS_FILE
TAGS = ("offline-rl", "decision-transformer", "trajectories", "gymnasium")

_FILES = ("data/*.parquet", SUMMARY_FILE, PICTURE, CARD_FILE)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def is_dataset_folder(folder: str | Path) -> bool:
    """Return whether a folder is a data set that `collect` wrote."""
    return (Path(folder) / SUMMARY_FILE).is_file()


def render_dataset_card(folder: str | Path, *, repo_id: str | None = None) -> DatasetCard:
    """Render the card of a collected data set from its collection.json.

    Args:
        folder: the data set.
        repo_id: the Hub repository that the snippets load from; the folder itself when not given.

    Raises:
        FileNotFoundError: the folder is no such data set.
        ValueError: collection.json cannot be read, lacks a value that the card needs, or names an environment by what
            is no gymnasium id.
    """
    folder = Path(folder)
    if not is_dataset_folder(folder):
        raise FileNotFoundError(
            f"{folder} is not a collected data set: it has no {SUMMARY_FILE}. Give the folder that `collect` wrote."
        )
    summary = read_json(folder / SUMMARY_FILE)
    with explaining_values(folder / SUMMARY_FILE):
        check_env_id(summary["environment"]["id"], folder / SUMMARY_FILE)
        summary = visible(summary)
        environment, settings = summary["environment"], summary["settings"]
        views = split_views(environment.get("env_kwargs"))[0]
        family = re.sub(r"-v\d+$", "", environment["id"].rsplit("/")[-1].rsplit(":")[-1])
        agent = f"the training of {settings['train'].upper()}" if settings["train"] else _short(settings["policy"])
        title = f"{environment['id']}, {agent}"
        metadata = DatasetCardData(
            pretty_name=title,
            license=settings["license"],
            task_categories=["reinforcement-learning"],
            tags=[*TAGS, *(["mujoco"] if "mujoco" in environment else []), family.lower()],
            size_categories=[next((name for most, name in _SIZES if summary["episodes"] < most), "1M<n<10M")],
            configs=[
                {
                    "config_name": "default",
                    "default": True,
                    "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
                }
            ],
            environment=environment,
        )
        text = render_card(
            "dataset_template.md",
            metadata,
            title=title,
            source=literal(repo_id or folder.as_posix()),
            facts=summary,
            settings=settings,
            environment=environment,
            has_plot=(folder / PICTURE).is_file(),
            describe_parts=describe_parts,
            in_view=described_views(views) if views else "",
        )
        return DatasetCard(text)


def write_dataset_card(folder: str | Path, *, repo_id: str | None = None) -> Path:
    """Render the card of a collected data set into its README.md, unless that was edited by hand; return its path.

    Args: as `render_dataset_card`.
    """
    return write_card(Path(folder) / CARD_FILE, render_dataset_card(folder, repo_id=repo_id))


def push_dataset_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a collected data set with its card to a data set repository of the Hub, in one commit.

    Args: as `push_to_hub`, but the commit message is "Upload data set" when not given. A README.md that was edited
        by hand goes as it is.

    Returns:
        As `push_to_hub`.

    Raises:
        FileNotFoundError, ValueError: the folder is no such data set, or `repo_id` is malformed; nothing was sent.
        PushError: the push failed, as in `push_to_hub`.
    """
    folder = Path(folder)
    validate_repo_id(repo_id)
    render_dataset_card(folder)  # whatever is wrong with the files shows before the network is touched
    if not any(folder.glob(_FILES[0])):
        raise FileNotFoundError(f"{folder} holds no data ({_FILES[0]}). Give the folder that `collect` wrote.")
    return push_folder(
        folder,
        repo_id,
        "dataset",
        _FILES,
        lambda name: write_dataset_card(folder, repo_id=name),
        private=private,
        revision=revision,
        create_pr=create_pr,
        dry_run=dry_run,
        token=token,
        commit_message=commit_message,
    )


def _short(policy: str) -> str:
    return "a random policy" if policy == "random" else f"the policy {policy.rsplit('/')[-1]}"
