"""Model cards and pushing to the Hub.

A card is rendered from the files of a checkpoint folder alone, so that it can be rendered again anywhere, at any time;
its words live in `model_cards/template.md`. Source of the metadata: huggingface_hub's EvalResult and ModelCardData.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from markupsafe import Markup

from ..model.observations_decision_mamba import describe_parts
from ..reporting.checks import wrong_type
from ..reporting.env_ids import registering_module
from ..reporting.figures import number
from ..reporting.files import (
    CARD_FILE,
    CONFIG_FILE,
    CURVE_FILE,
    EVALUATION_FILE,
    EVALUATION_FILES,
    PROCESSOR_FILE,
    RETURNS_FILE,
    SETTINGS_FILE,
    SHARED_FILES,
    TRAINING_FILE,
    files_at_top,
    read_json,
    video_names,
)
from ..reporting.stretches import WITHOUT_WARM_UP, all_of, is_of_one_piece, varying_settings
from ..views import described_views, split_views
from .cards import check_env_id, code, explaining_values, literal, render_card, visible, write_card
from .push import push_folder
from .remote_code import CODE_FILES, write_model_code

logger = logging.getLogger(__name__)

LIBRARY_NAME = "hf_decision_mamba"
LICENSE = "apache-2.0"
TAGS = ("reinforcement-learning", "deep-reinforcement-learning", "offline-rl")

# What a push sends, from the top of the folder only: no optimizer states, no trainer checkpoints, no pickles.
WEIGHT_FILES = ("model.safetensors", "model-?????-of-?????.safetensors")
CHECKPOINT_FILES = (
    *WEIGHT_FILES,
    "model.safetensors.index.json",
    *SHARED_FILES,
    *CODE_FILES,
)

_LARGEST = f"{np.finfo(np.float32).max:.4g}"  # stands for a bound that is none


def render_model_card(folder: str | Path, *, repo_id: str | None = None) -> ModelCard:
    """Render the model card of a checkpoint folder from the files in it.

    Reads config.json, and preprocessor_config.json, training.json and evaluation.json where they exist, and shows
    returns.png, videos, learning_curve.png and how to use train.yaml; what is missing is left out, with its sections.

    Args:
        folder: the checkpoint folder.
        repo_id: the Hub repository that the usage snippet loads from; the folder itself when not given.

    Raises:
        FileNotFoundError: the folder holds no config.json.
        ValueError: one of the files cannot be read, lacks a value that the card needs, or names an environment by what
            is no gymnasium id.
    """
    folder = _folder(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} is not a checkpoint folder: it has no config.json. Give the folder that `save_pretrained` wrote."
        )
    names = (CONFIG_FILE, PROCESSOR_FILE, EVALUATION_FILE, TRAINING_FILE)
    files = [read_json(folder / name) for name in names]
    with explaining_values(folder):
        for name, said in zip(names, [*files[:3], files[3].get("dataset") or {}], strict=True):
            check_env_id(said.get("env_id"), folder / name)
        config, processor, evaluation, training = map(visible, files)
        dataset = training.get("dataset") or {}
        env_id = processor.get("env_id") or evaluation.get("env_id") or dataset.get("env_id")
        env_kwargs = processor.get("env_kwargs") if processor.get("env_id") else evaluation.get("env_kwargs")
        views, made_with = split_views(env_kwargs)
        model_name = visible(repo_id.split("/")[-1] if repo_id else folder.resolve().name)
        sources = [] if dataset.get("in_memory") else str(dataset.get("name")).split(" + ")
        on_hub = [name for name in sources if _is_hub_id(name)]
        varying, stretches = _stretches(training, folder / TRAINING_FILE)
        metadata = ModelCardData(
            library_name=LIBRARY_NAME,
            license=LICENSE,
            pipeline_tag="reinforcement-learning",
            tags=[tag for tag in (*TAGS, str(config.get("model_type")).replace("_", "-"), env_id) if tag],
            datasets=on_hub or None,
            model_name=model_name,
            eval_results=_eval_results(evaluation, folder / EVALUATION_FILE) or None,
        )
        if not metadata.eval_results:
            metadata.pop("model_name")  # part of model-index; on its own it would become a stray metadata field
        text = render_card(
            "template.md",
            metadata,
            model_name=model_name,
            repo_id=repo_id,
            model_id=literal(repo_id or folder.as_posix()),
            settings_path=SETTINGS_FILE if repo_id else (folder / SETTINGS_FILE).as_posix(),
            env_id=env_id,
            env_module=registering_module(env_id),
            env_arguments=_arguments(made_with),
            views=Markup(repr([*views])) if views else "",
            in_view=described_views(views) if views else "",
            is_hub_dataset=on_hub == [dataset.get("name")],
            in_memory=bool(dataset.get("in_memory")),
            config=config,
            processor=processor,
            training=training,
            evaluation=evaluation,
            recipe=_recipe(training, varying),
            stretches=stretches,
            repeats=is_of_one_piece(training),
            best=_best_evaluation(training.get("history") or {}),
            has_plot=(folder / RETURNS_FILE).is_file(),
            videos=_videos(evaluation, folder),
            has_curve=(folder / CURVE_FILE).is_file(),
            has_settings=(folder / SETTINGS_FILE).is_file(),
            versions={**(training.get("versions") or {}), **(evaluation.get("versions") or {})},
            duration=_duration,
            bounds=_bounds,
            describe_parts=describe_parts,
        )
    return ModelCard(text)


def write_model_card(folder: str | Path, *, repo_id: str | None = None) -> Path:
    """Render the model card of a checkpoint folder into its README.md, unless that was edited by hand.

    Args: as `render_model_card`.

    Returns:
        The path of README.md. A README.md that differs from what was rendered is kept as it is; delete it to have the
        card rendered again.
    """
    return write_card(_folder(folder) / CARD_FILE, render_model_card(folder, repo_id=repo_id))


def push_to_hub(
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
    """Upload a checkpoint folder (weights, processor, card, evaluation) to a Hub repository, in one commit.

    The repository is created when it does not exist, and so is the branch `revision`. Files of a checkpoint that the
    repository has and the folder has not are deleted there: an old evaluation never stands beside new weights. What an
    interrupted evaluation left, without evaluation.json, is not sent.

    Args:
        folder: the checkpoint folder; its README.md is rendered first (see `write_model_card`), and the model's code
            comes beside it (see `write_model_code`).
        repo_id: `name` or `owner/name`.
        private: create the repository as a private one.
        revision: branch to push to; `main` when not given.
        create_pr: open a pull request against `main` instead.
        dry_run: render the card, send nothing, and return what a push would send and delete; needs no token and no
            network.
        token: access token; the one of `hf auth login` or HF_TOKEN when not given.
        commit_message: first line of the commit; "Upload checkpoint" when not given.

    Returns:
        The address of the repository (of the branch, if `revision` is given), or of the pull request; of a dry run,
        what a push would do.

    Raises:
        FileNotFoundError, ValueError: the folder is no checkpoint, or `repo_id` is malformed; nothing was sent.
        PushError: the push failed, though it was repeated where that helps (a lost connection, a busy Hub, somebody
            else's push in between). Local files are intact, and the message ends with the command that repeats it.
    """
    folder = _folder(folder)
    validate_repo_id(repo_id)
    render_model_card(folder)  # whatever is wrong with the files shows before the network is touched
    if not files_at_top(folder, WEIGHT_FILES):
        raise FileNotFoundError(
            f"{folder} has no weights (model.safetensors). Give the folder that `save_pretrained` wrote."
        )
    return push_folder(
        folder,
        repo_id,
        "model",
        CHECKPOINT_FILES,
        lambda name: (write_model_code(folder), write_model_card(folder, repo_id=name)),
        private=private,
        revision=revision,
        create_pr=create_pr,
        dry_run=dry_run,
        token=token,
        commit_message=commit_message,
        left_out=() if (folder / EVALUATION_FILE).is_file() else EVALUATION_FILES,  # an interrupted evaluation's
    )


def _eval_results(evaluation: Mapping[str, Any], path: Path) -> list[EvalResult]:
    """Return one `mean_reward`, and as far as known one `normalized_score` and `success_rate`, a target return.

    A model that is asked for nothing has one of each.
    """
    if not evaluation:
        return []
    source = (evaluation.get("score_reference") or {}).get("source")
    results = []
    try:
        for row in evaluation["results"]:
            checkpoint, target = row.get("checkpoint") or evaluation["checkpoint"], row["target_return"]
            made_with = {"env_kwargs": evaluation["env_kwargs"]} if evaluation.get("env_kwargs") else {}
            protocol = {
                **made_with,
                **({} if target is None else {"target_return": target}),
                "episodes": row["episodes"],
                "seed": evaluation["seed"],
                "mode": evaluation["mode"],
                "checkpoint": checkpoint,
            }
            asked = "" if target is None else f"target return {number(target)}, "
            label = f"{asked}{checkpoint} checkpoint"
            mean, std = row["return_mean"], row["return_std"]
            text = f"{number(mean, 2, thousands='')} +/- {number(std, 2, thousands='', beside=[mean])}"
            metrics: dict[str, tuple[str, str | float]] = {"mean_reward": ("Mean return", text)}
            if row.get("normalized_score_mean") is not None:
                name = f"{source}-normalised score" if source else "Normalised score"
                metrics["normalized_score"] = (name, round(row["normalized_score_mean"], 2))
            if row.get("success_rate") is not None:
                metrics["success_rate"] = ("Success rate", round(row["success_rate"], 4))
            results += [
                EvalResult(
                    task_type="reinforcement-learning",
                    task_name="reinforcement learning",
                    dataset_type=evaluation["env_id"],
                    dataset_name=evaluation["env_id"],
                    metric_type=metric,
                    metric_name=f"{name} ({label})",
                    metric_value=value,
                    metric_args=protocol,
                )
                for metric, (name, value) in metrics.items()
            ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} lacks a value that the card needs ({error!r}). Evaluate again, or remove it."
        ) from error
    return results


def _videos(evaluation: Mapping[str, Any], folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the videos that are there, each with the results of its target return."""
    rows = evaluation.get("results") or []
    names = video_names([row["target_return"] for row in rows])
    return {name: row for name, row in zip(names, rows, strict=True) if (folder / name).is_file()}


def _recipe(training: Mapping[str, Any], varying: Sequence[str]) -> list[str]:
    """Return how the weights were learned, in the words of a paper, without what varied or is not known."""
    arguments = training.get("arguments") or {}
    known = {name: value for name, value in arguments.items() if value is not None and name not in varying}
    phrases = []
    if "per_device_train_batch_size" in arguments:  # however it is split, a run keeps its batch
        passes = arguments.get("gradient_accumulation_steps", 1) * arguments.get("world_size", 1)
        steps = f" of {known['context_length']} steps" if "context_length" in known else ""
        phrases.append(f"batches of {arguments['per_device_train_batch_size'] * passes} windows{steps}")
    if "learning_rate" in known:
        kind = known.get("lr_scheduler_type")
        schedule = [kind.replace("_", " ")] if kind else []
        if known.get("warmup_steps") and kind not in WITHOUT_WARM_UP:
            schedule.append(f"warm-up {number(known['warmup_steps'])}")
        how = f" ({', '.join(schedule)})" if schedule else ""
        rate, reached = known["learning_rate"], training.get("highest_learning_rate")
        below = reached is not None and reached < rate
        phrases.append(f"learning rate {f'at most {number(reached)}' if below else number(rate)}{how}")
    for name, words in (("weight_decay", "weight decay"), ("max_grad_norm", "gradient norm at most"), ("seed", "seed")):
        phrases += [f"{words} {number(known[name])}"] if name in known else []
    return phrases


def _stretches(training: Mapping[str, Any], path: Path) -> tuple[list[str], list[list[str]]]:
    """Return what is not the same in all stretches of a run, and a table of them; empty where there is but one."""
    stretches = training.get("stretches") or []
    rows = []
    try:
        varying = varying_settings(stretches)
        for stretch in stretches if len(stretches) > 1 else []:
            values, rate = all_of(stretch), stretch.get("highest_learning_rate")
            shown = ["unset" if values.get(name) is None else str(values[name]) for name in varying]
            rows.append(
                [
                    f"{stretch['from_step']:,} to {stretch['to_step']:,}",
                    *(shown if values else ["not recorded"] * len(varying)),
                    "not recorded" if rate is None else number(rate),
                ]
            )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} has stretches that the card cannot show ({error!r}). Train again, or remove it."
        ) from error
    heads = ["steps", *(code(name) for name in varying), "highest learning rate"]
    return varying, [heads, *rows] if rows else []


def _best_evaluation(history: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the best rollouts during training, and the last; None where there were fewer than two evaluations."""
    for metric, name in (("eval_normalized_score", "normalised score"), ("eval_return_mean", "mean return")):
        scores = {int(step): value for step, value in (history.get(metric) or {}).items()}
        if len(scores) > 1:
            step = max(scores, key=lambda step: scores[step])
            last = scores[max(scores)]
            return {"name": name, "evaluations": len(scores), "step": step, "value": scores[step], "last": last}
    return None


def _folder(folder: Any) -> Path:
    if not isinstance(folder, (str, Path)):
        raise wrong_type("folder", folder, "the folder of a checkpoint, such as TrainingResult.folder")
    return Path(folder)


def _is_hub_id(name: object) -> bool:
    """Return whether a data set's name is `owner/name` on the Hub; `datasets/...` is a folder."""
    return isinstance(name, str) and re.fullmatch(r"(?!datasets/)\w[\w.-]*/\w[\w.-]*", name) is not None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _arguments(env_kwargs: Mapping[str, Any] | None) -> Markup:
    """Return what follows the id in a call of `gymnasium.make`, as Python has it."""
    known = env_kwargs or {}
    if all(name.isidentifier() for name in known):
        return Markup("".join(f", {name}={value!a}" for name, value in known.items()))
    return Markup(f", **{dict(known)!a}")


def _bounds(low: list[float], high: list[float]) -> Markup:
    """Return the range of an action: one interval if all dimensions share it, else one for each."""
    ends = [[f"{end:.4g}".replace(_LARGEST, "∞") for end in pair] for pair in zip(low, high, strict=True)]
    intervals = [f"[{lowest}, {highest}]" for lowest, highest in ends]
    return Markup(f"{intervals[0]} in each dimension" if len(set(intervals)) == 1 else ", ".join(intervals))
