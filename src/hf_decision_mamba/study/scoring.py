"""Scores of a trained model: the mean over its last checkpoints, each of which plays a few episodes.

What has been played is kept after every checkpoint, so that an interrupted study repeats the episodes of one at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..acting.loading import load_model
from ..acting.policy import DecisionMambaPolicy
from ..acting.shapes import carries_state
from ..evaluation.rollouts import evaluate_policy
from ..evaluation.scores import normalized_score
from ..evaluation.statistics import are_one_trajectory
from ..reporting.console import say
from ..reporting.files import read_json, write_json
from .plan import SCORES, Condition, Evaluation, slug

SCORES_FOLDER = "scores"
_NORMALIZED, _RETURN, _SUCCESS = SCORES


def scores_of(folder: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Return what has been played of an evaluation: `conditions` by label, and whether it is `complete`.

    Nothing where nothing has, or where the evaluation is another one by now.
    """
    kept = read_json(_path(folder, evaluation))
    if kept.get("evaluation") != _spec(evaluation):
        return {"evaluation": _spec(evaluation), "complete": False, "conditions": {}}
    return kept


def _path(folder: Path, evaluation: Evaluation) -> Path:
    return folder / SCORES_FOLDER / f"{slug(evaluation.name)}.json"


def _spec(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as its file holds it; how long a sweep is does not matter, its values are kept apart."""
    kept = {name: value for name, value in asdict(evaluation).items() if value is not None}
    if evaluation.sweep:
        kept["sweep"] = [*evaluation.sweep]
    return kept


def is_scored(folder: Path, evaluation: Evaluation) -> bool:
    """Return whether every condition of an evaluation has been played, or is one that a sweep ended before."""
    kept = scores_of(folder, evaluation)
    return kept["complete"] and _labels(evaluation) <= {*kept["conditions"]}


def _labels(evaluation: Evaluation) -> set[str]:
    return {condition.label for row in evaluation.conditions() for condition in row}


def last_checkpoints(folder: Path, count: int) -> list[Path]:
    """Return the last checkpoints of a run, the end of its training being the last of them.

    Those that were saved on an interruption, between two others, are left out where there are enough without them.

    Raises:
        ValueError: the run has fewer.
    """
    found = sorted(folder.glob("checkpoint-*"), key=_step)
    if len(found) < count:
        raise ValueError(
            f"{folder} has {len(found)} checkpoints, and {count} are to be scored: that takes a smaller `last` or "
            "`save_steps`, or a longer training."
        )
    between = read_json(found[-1] / "trainer_state.json").get("save_steps") or 1
    regular = [path for path in found if _step(path) % between == 0 or path == found[-1]]
    return (regular if len(regular) >= count else found)[-count:]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[-1])


def score_run(folder: Path, evaluation: Evaluation, default_mode: str) -> None:
    """Play what is missing of an evaluation, and keep it in the run's folder.

    An evaluation that asks for the recurrent mode leaves out what carries no state: there is nothing to play.

    Args:
        folder: of a run that has been trained.
        evaluation: what to play.
        default_mode: of the policy, where the evaluation says none.

    Raises:
        ValueError: the run has too few checkpoints, or no environment or score of this kind.
    """
    kept = scores_of(folder, evaluation)
    mode: Any = evaluation.mode or default_mode

    @cache
    def policy_of(checkpoint: Path) -> DecisionMambaPolicy:
        return DecisionMambaPolicy.from_pretrained(checkpoint, mode=mode)

    def play(condition: Condition) -> float:
        entry = kept["conditions"].setdefault(condition.label, {"value": condition.value, "checkpoints": []})
        done = {part["step"] for part in entry["checkpoints"]}
        for number, checkpoint in enumerate(last_checkpoints(folder, evaluation.last)):
            step = _step(checkpoint)
            if step not in done:
                played = _play(policy_of(checkpoint), evaluation, condition, number * evaluation.episodes)
                entry["checkpoints"].append({"step": step, **played.pop("episodes")})
                entry |= played
                write_scores(folder, evaluation, kept)
        return summarize(entry, evaluation)["score"]

    def leave_out(conditions: Iterable[Condition]) -> None:
        kept["conditions"] |= {one.label: {"value": one.value, "checkpoints": []} for one in conditions}

    rows = evaluation.conditions()
    if evaluation.mode == "recurrent" and not carries_state(load_model(last_checkpoints(folder, 1)[0])):
        say(f"score        {evaluation.name}: left out, as the model carries no state")
        leave_out(condition for row in rows for condition in row)
        rows = []
    for row in rows:
        for condition, later in zip(row, [*row[1:], None], strict=True):
            score = play(condition)
            said = f"{evaluation.name}{', ' * bool(condition.label)}{condition.label}"
            say(f"score        {said}: {score:.3g}")
            if later is not None and evaluation.stop_below is not None and score < evaluation.stop_below:
                leave_out(row[row.index(later) :])
                break
    kept["complete"] = True
    write_scores(folder, evaluation, kept)


def write_scores(folder: Path, evaluation: Evaluation, kept: Mapping[str, Any]) -> None:
    path = _path(folder, evaluation)
    path.parent.mkdir(exist_ok=True)
    write_json(path, kept)


def _play(policy: DecisionMambaPolicy, evaluation: Evaluation, condition: Condition, seed: int) -> dict[str, Any]:
    """Play a checkpoint's episodes, which begin at their own seeds; return them, and what was asked and measured."""
    env_kwargs = evaluation.env_kwargs
    if evaluation.sweep:
        (name,) = evaluation.sweep
        env_kwargs = {**(env_kwargs or policy.processor.env_kwargs or {}), name: condition.value}
    result = evaluate_policy(
        policy,
        policy.processor.env_id,
        episodes=evaluation.episodes,
        target_returns=condition.target_return,
        seed=seed,
        env_kwargs=env_kwargs,
        max_episode_steps=evaluation.max_episode_steps,
        progress=False,
    )
    rows = result.episodes
    if evaluation.score == _SUCCESS and any(row.get("success") is None for row in rows):
        raise ValueError(f"score: {_SUCCESS}: {result.env_id} does not say which episodes are a success.")
    if evaluation.score == _NORMALIZED and rows[0]["normalized_score"] is None:
        raise ValueError(f"score: {_NORMALIZED}: there are no reference returns for {result.env_id}; say return.")
    episodes = {"seed": seed, "returns": [row["return"] for row in rows], "lengths": [row["length"] for row in rows]}
    if "success" in rows[0]:
        episodes["successes"] = [row["success"] for row in rows]
    return {
        "episodes": episodes,
        "env_id": result.env_id,
        "env_kwargs": result.env_kwargs,
        "mode": result.mode,
        "target_return": rows[0]["target_return"],
        "versions": result.versions,
    }


def summarize(entry: Mapping[str, Any], evaluation: Evaluation) -> dict[str, Any]:
    """Return what a condition's episodes say of its run.

    Args:
        entry: of `conditions`, see `scores_of`.
        evaluation: which it is of.

    Returns:
        `score`, of the kind `score_kind`: the mean over checkpoints. `return_mean`, `normalized_score` and
        `success_rate`: the same, None where there are none. `checkpoint_scores` and `checkpoint_steps`: of each.
        `episodes`: of all checkpoints. `one_trajectory`: checkpoints whose episodes are one and the same. Of a
        condition that was not played only `score`, which is None.
    """
    parts: Sequence[Mapping[str, Any]] = sorted(entry["checkpoints"], key=lambda part: part["step"])
    if not parts:
        return {"score": None}
    returns = np.array([np.mean(part["returns"]) for part in parts])
    successes = [_mean(part.get("successes", ())) for part in parts]
    by_kind: dict[str, list[Any]] = {
        _RETURN: [*map(float, returns)],
        _NORMALIZED: [normalized_score(entry["env_id"], float(value)) for value in returns],
        _SUCCESS: successes,
    }
    kind = evaluation.score or (_RETURN if None in by_kind[_NORMALIZED] else _NORMALIZED)
    means = {name: _mean(values) for name, values in by_kind.items()}
    return {
        "score": means[kind],
        "score_kind": kind,
        "return_mean": means[_RETURN],
        "normalized_score": means[_NORMALIZED],
        "success_rate": means[_SUCCESS],
        "checkpoint_scores": by_kind[kind],
        "checkpoint_steps": [part["step"] for part in parts],
        "episodes": sum(len(part["returns"]) for part in parts),
        "one_trajectory": sum(
            are_one_trajectory(part["returns"], part["lengths"]) for part in parts if "successes" not in part
        ),
    }


def _mean(values: Iterable[Any]) -> float | None:
    """Return the mean; None of none, and where one is missing."""
    known = [*values]
    return None if not known or None in known else math.fsum(known) / len(known)
