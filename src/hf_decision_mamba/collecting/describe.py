"""What a collected data set says of itself: its environment, its policy, and how a training improved."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.histograms import draw_histograms
from ..data.metadata import describe_actions, is_frame
from ..data.recording import EpisodeStatistics
from ..evaluation.environments import action_bounds, install_hint
from ..evaluation.scores import score_reference
from ..evaluation.statistics import describe_success
from ..reporting.figures import drawing
from ..reporting.files import replacing_together, write_json
from ..reporting.versions import package_versions
from ..sharing.dataset_card import PICTURE, SUMMARY_FILE, write_dataset_card
from .settings import TENTHS, CollectSettings
from .stable_baselines import PREFIX

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


# What the card says


def describe_environment(settings: CollectSettings, envs: VectorEnv) -> dict[str, Any]:
    """Return the environment's metadata for the front matter of the card, where `load_trajectories` finds them."""
    shown, taken = envs.single_observation_space, envs.single_action_space
    metadata: dict[str, Any] = {
        "id": settings.env_id,
        "env_kwargs": settings.env_kwargs or None,
        "obs_shape": [int(size) for size in shown.shape or ()] if is_frame(shown) else None,
        "observation_parts": getattr(envs, "observation_parts", None),
        **describe_actions(settings.env_id, taken),
    }
    metadata["action_start"] = metadata.get("action_start") or None
    bounds = action_bounds(taken)
    if bounds is not None:
        metadata["action_low"], metadata["action_high"] = bounds
    metadata = {name: value for name, value in metadata.items() if value is not None}
    collected_with = settings.kwargs_of_expert()
    limit = settings.max_episode_steps or collected_with.get("max_episode_steps")
    limit = limit or (envs.spec.max_episode_steps if envs.spec is not None else None)
    if limit is not None:
        metadata["max_episode_steps"] = int(limit)
    if collected_with:
        metadata["collected_with"] = collected_with
    versions = package_versions("ogbench")
    played: Any = envs
    modules = {base.__module__.split(".")[0] for base in type(played.envs[0].unwrapped).__mro__}
    modules |= {"mujoco"} if hasattr(played.envs[0].unwrapped, "mujoco_renderer") else set()
    modules |= {"mujoco"} if "ogbench" in modules else set()
    simulators = {"mujoco": "mujoco", "ale_py": "ale-py", "ogbench": "ogbench"}
    return {
        **metadata,
        "gymnasium": versions["gymnasium"],
        **{
            package: versions[package]
            for module, package in simulators.items()
            if module in modules and package in versions
        },
    }


def describe_collection(
    settings: CollectSettings,
    output: Path,
    statistics: EpisodeStatistics,
    environment: dict[str, Any],
    complete: bool,
) -> None:
    """Write the summary, the picture and the card."""
    used = ["stable-baselines3"] if settings.train or settings.policy.startswith(PREFIX) else []
    reference = score_reference(settings.env_id)
    summary = {
        "command": settings.command(output),
        "complete": complete,
        "settings": {
            **{entry.name: getattr(settings, entry.name) for entry in fields(settings)},
            "policy": settings.policy_name,
        },
        "environment": environment,
        "score_reference": reference and reference._asdict(),
        **statistics.to_dict(),
        **(describe_success(statistics.successes) if statistics.successes else {}),
        "parts": _parts(statistics.returns) if settings.train is not None else None,
        "versions": package_versions(*used),
    }
    with replacing_together(output, SUMMARY_FILE) as draft:
        write_json(draft / SUMMARY_FILE, summary)
        returns, lengths = np.array(statistics.returns), np.array(statistics.lengths)
        with drawing(PICTURE, install_hint(settings.env_id)):
            draw_histograms(draft / PICTURE, settings.env_id, returns, lengths)
    write_dataset_card(output)


def _parts(returns: list[float]) -> list[dict[str, float]]:
    """Return mean and best of the returns in ten equal parts of the episodes, or of each if there are fewer."""
    parts = np.array_split(np.array(returns), min(TENTHS, len(returns)))
    ends = np.cumsum([len(part) for part in parts])
    return [
        {"first": int(end - len(part)), "last": int(end - 1), "mean": float(part.mean()), "max": float(part.max())}
        for part, end in zip(parts, ends, strict=True)
    ]
