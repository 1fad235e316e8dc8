"""Studies for tests: a small one, and what its runs would have left if they had been trained."""

import json
from pathlib import Path
from typing import Any

from factories import HOPPER

from hf_decision_mamba.study import scoring
from hf_decision_mamba.study.plan import Evaluation, PlannedRun, Study

VERSIONS = {"torch": "2.13.0"}


def small(**changes: Any) -> dict[str, Any]:
    """Two data sets, two models, two seeds."""
    content = {
        "name": "small",
        "base": {"max_steps": 20, "warmup_steps": 2, "context_length": 4},
        "data": {
            "hopper": {"dataset_name": str(HOPPER), "env_id": "Hopper-v5"},
            "other": {"dataset_name": str(HOPPER), "env_id": "Hopper-v5", "target_return": 500},
        },
        "models": {"DeMa": {"preset": "dema-b3ld"}, "RvS": {"architecture": "rvs"}},
        "seeds": 2,
        "evaluations": {"window": {"last": 2, "episodes": 2}},
    }
    return {name: value for name, value in {**content, **changes}.items() if value is not None}


def finish(run: PlannedRun, study: Study, folder: Path, returns: float = 1000.0) -> None:
    """Leave what a training and its scoring leave."""
    where = folder / run.folder
    where.mkdir(parents=True, exist_ok=True)
    history = {"loss": {"10": 0.5, "20": 0.4 + run.seed}, "eval_loss": {"10": 0.6, "20": 0.5 + run.seed}}
    record = {
        "num_parameters": 100 if run.model == "DeMa" else 700,
        "global_step": 20,
        "loss": 0.4,
        "eval_loss": 0.5,
        "history": history,
        "versions": VERSIONS,
        "hardware": "2 CPU cores",
    }
    (where / "training.json").write_text(json.dumps(record))
    (where / "cost.json").write_text(json.dumps({"cpu_seconds": 90.0 + 60 * run.seed, "cpu_threads": 1}))
    for evaluation in study.evaluations:
        score(where, evaluation, [returns + 300, returns - 300])


def score(where: Path, evaluation: Evaluation, returns: list[float], **more: Any) -> None:
    """Leave what an evaluation leaves, where every checkpoint's episodes have these returns."""
    kept = scoring.scores_of(where, evaluation)
    for condition in (condition for row in evaluation.conditions() for condition in row):
        parts = [
            {"step": step, "seed": 0, "returns": returns, "lengths": [40, 30], **more}
            for step in range(21 - evaluation.last, 21)
        ]
        entry = {"value": condition.value, "checkpoints": parts, "env_id": "Hopper-v5", "env_kwargs": None}
        kept["conditions"][condition.label] = {**entry, "mode": "window", "target_return": 3600.0}
    kept["complete"] = True
    scoring.write_scores(where, evaluation, kept)
