"""What a collected data set says of itself: its environment, its policy, and how a training improved."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.histograms import draw_histograms
from ..data.metadata import describe_actions, is_frame
from ..data.recording import EpisodeStatistics
from ..evaluation.environments import action_bounds, install_hint
from ..evaluation.scores import score_reference
from ..reporting.figures import drawing
from ..reporting.files import replacing_together
from ..reporting.versions import package_versions
from ..sharing.dataset_card import FACTS_FILE, PICTURE, write_dataset_card
from .settings import TENTHS, CollectSettings
from .stable_baselines import PREFIX

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


# What the card says


def describe_environment(settings: CollectSettings, envs: VectorEnv) -> dict[str, Any]:
    """Facts that stand in the front matter of the card, where `load_trajectories` finds them."""
    shown, taken = envs.single_observation_space, envs.single_action_space
    facts: dict[str, Any] = {
        "id": settings.env_id,
        "env_kwargs": settings.env_kwargs or None,
        "obs_shape": [int(size) for size in shown.shape or ()] if is_frame(shown) else None,
        "observation_parts": getattr(envs, "observation_parts", None),
        **describe_actions(settings.env_id, taken),
    }
    facts["action_start"] = facts.get("action_start") or None
    bounds = action_bounds(taken)
    if bounds is not None:
        facts["action_low"], facts["action_high"] = bounds
    facts = {name: value for name, value in facts.items() if value is not None}
    limit = settings.max_episode_steps or (envs.spec.max_episode_steps if envs.spec is not None else None)
    if limit is not None:
        facts["max_episode_steps"] = int(limit)
    versions = package_versions()
    played: Any = envs
    modules = {base.__module__.split(".")[0] for base in type(played.envs[0].unwrapped).__mro__}
    modules |= {"mujoco"} if hasattr(played.envs[0].unwrapped, "mujoco_renderer") else set()
    simulators = {"mujoco": "mujoco", "ale_py": "ale-py"}
    return {
        **facts,
        "gymnasium": versions["gymnasium"],
        **{package: versions[package] for module, package in simulators.items() if module in modules},
    }


def describe_collection(
    settings: CollectSettings,
    output: Path,
    statistics: EpisodeStatistics,
    environment: dict[str, Any],
    complete: bool,
) -> None:
    """Write the facts, the picture and the card."""
    used = ["stable-baselines3"] if settings.train or settings.policy.startswith(PREFIX) else []
    reference = score_reference(settings.env_id)
    facts = {
        "command": settings.command(output),
        "complete": complete,
        "settings": {
            **{entry.name: getattr(settings, entry.name) for entry in fields(settings)},
            "policy": settings.policy_name,
        },
        "environment": environment,
        "score_reference": reference and reference._asdict(),
        **statistics.to_dict(),
        "parts": _parts(statistics.returns) if settings.train is not None else None,
        "versions": package_versions(*used),
    }
    with replacing_together(output, FACTS_FILE) as draft:
        (draft / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        returns, lengths = np.array(statistics.returns), np.array(statistics.lengths)
        with drawing(PICTURE, install_hint(settings.env_id)):
            draw_histograms(draft / PICTURE, settings.env_id, returns, lengths)
    write_dataset_card(output)


def _parts(returns: list[float]) -> list[dict[str, float]]:
    """How the returns developed: mean and best of ten equal parts of the episodes, or of each if there are fewer."""
    parts = np.array_split(np.array(returns), min(TENTHS, len(returns)))
    ends = np.cumsum([len(part) for part in parts])
    return [
        {"first": int(end - len(part)), "last": int(end - 1), "mean": float(part.mean()), "max": float(part.max())}
        for part, end in zip(parts, ends, strict=True)
    ]
