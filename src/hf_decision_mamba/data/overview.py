"""What is in a data set, in numbers that a person can read: the first thing to run on data that one does not know.

Everything is taken from what `load_trajectories` returns, warns of or refuses, so that what is shown here is what
training gets.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reporting.figures import number
from ..reporting.files import replacing_together
from ..reporting.tables import count_in_words, table_lines
from .cache import noted_warnings
from .histograms import draw_histograms
from .listing import listing
from .sources import Source, load_trajectories
from .statistics import CONSTANT_STD, TrajectoryStatistics, spread
from .trajectories import Trajectories

_FILE = "data_overview.json"
_PACKAGE = __name__.split(".")[0]
_DIMENSIONS_SHOWN = 50


@dataclass(frozen=True)
class Overview:
    """What was found in a source.

    Args:
        source: what the user called it.
        summary: numbers about it, ready for JSON; empty when it cannot be read.
        problems: what is wrong, or should be known before training: the error, the warnings, and more.
        listing: when it cannot be read, what it holds instead.
        returns, lengths: of each episode, (E,); no returns where there are no rewards.
    """

    source: str
    summary: dict[str, Any]
    problems: list[str]
    listing: list[str] = field(default_factory=list)
    returns: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def readable(self) -> bool:
        """Return whether the source could be read as trajectories."""
        return bool(self.summary)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single episodes, ready for JSON."""
        return {
            "source": self.source,
            "readable": self.readable,
            **self.summary,
            "problems": self.problems,
            "listing": self.listing,
        }

    def text(self) -> str:
        """Return everything as text for a terminal."""
        lines = [self.source, ""]
        if self.readable:
            lines += [*_summary_lines(self.summary), "", *_spreads(self.summary), "", *_dimensions(self.summary), ""]
        else:
            lines += ["what is there:", *(f"  {line}" for line in self.listing), ""]
        lines += ["problems found:", *(f"  - {problem}" for problem in self.problems)]
        return "\n".join(lines if self.problems else [*lines[:-1], "no problems found"])

    def save(self, folder: str | Path) -> list[Path]:
        """Write data_overview.json, and returns.png, of the lengths alone where there are no returns.

        Returns:
            The files written.

        Raises:
            ImportError: matplotlib is not installed; data_overview.json is written all the same.
        """
        folder, missing = Path(folder), None
        with replacing_together(folder, _FILE, ["returns.png"]) as draft:
            (draft / _FILE).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
            try:
                if self.readable:
                    returns = self.returns if len(self.returns) else None
                    draw_histograms(draft / "returns.png", self.source, returns, self.lengths)
            except ImportError as error:
                missing = error
        if missing is not None:
            raise missing
        return [folder / name for name in (_FILE, "returns.png") if (folder / name).is_file()]


def overview_of(
    source: Source,
    *,
    config: str | None = None,
    revision: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    action_type: str | None = None,
    rewards_from: str | None = None,
    positions_only: bool = False,
    delayed_reward: bool = False,
    return_scale: float | None = None,
) -> Overview:
    """Read a source as training would, and say what is there.

    Args: as `load_trajectories`, and
        return_scale: what returns-to-go would be divided by, to see what is left of them; not negative.

    Returns:
        The overview. Errors of reading are among its problems: nothing is raised for what is wrong with the data.

    Raises:
        TypeError: the source is of no known kind.
        ValueError: `return_scale` is not a positive number.
    """
    if return_scale is not None and not 0 < return_scale < np.inf:
        raise ValueError(f"return_scale={return_scale} must be a positive number")
    source_name = _source_name(source)
    try:
        with _warnings() as found:
            trajectories = load_trajectories(
                source,
                config=config,
                revision=revision,
                split=split,
                columns=columns,
                action_type=action_type,
                rewards_from=rewards_from,
                positions_only=positions_only,
                delayed_reward=delayed_reward,
            )
            statistics = trajectories.statistics()
    except (ValueError, OSError, ImportError, MemoryError) as error:
        there = listing(source, config=config, revision=revision)
        return Overview(source_name, {}, [*found, _without_hint(error)], there)
    summary = _summary(trajectories, statistics)
    remark = None if return_scale is None else statistics.remark_on_scale(return_scale)
    if return_scale is not None and not trajectories.has_rewards:
        remark = f"return_scale {return_scale:g} does not apply: there are no returns to divide"
    problems = [*found, *_remarks(summary), *([] if remark is None else [remark])]
    returns = trajectories.returns() if trajectories.has_rewards else np.empty(0)
    return Overview(source_name, summary, problems, [], returns, trajectories.lengths)


def _source_name(source: Source) -> str:
    """Return what the user called the source."""
    if isinstance(source, (str, Path)):
        return str(source)
    named = isinstance(source, Sequence) and len(source) > 0 and isinstance(source[0], (str, Path))
    return " ".join(map(str, source)) if named else "arrays in memory"


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Gather what the package warns of meanwhile, instead of printing it."""
    with noted_warnings(_PACKAGE) as found:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield found
        found += [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]


def _without_hint(error: BaseException) -> str:
    """Return the error's text, without the advice to do what is being done."""
    lines = [line for line in str(error).splitlines() if "inspect-data" not in line]
    return " ".join(lines) or type(error).__name__


def _summary(trajectories: Trajectories, statistics: TrajectoryStatistics) -> dict[str, Any]:
    rewards = trajectories.rewards
    return {
        "name": trajectories.name,
        "env_id": trajectories.env_id,
        **({} if trajectories.fps is None else {"fps": trajectories.fps}),
        "episodes": statistics.episodes,
        "transitions": statistics.transitions,
        "terminated": statistics.terminated,
        "truncated": statistics.truncated,
        **({} if rewards is None else {"returns": spread(trajectories.returns())}),
        "lengths": spread(trajectories.lengths),
        **({} if rewards is None else {"return_scale": statistics.return_scale}),
        "rewards": None if rewards is None else {"min": float(rewards.min()), "max": float(rewards.max())},
        "observations": _observation_summary(trajectories, statistics),
        "actions": _action_summary(trajectories, statistics),
    }


def _observation_summary(trajectories: Trajectories, statistics: TrajectoryStatistics) -> dict[str, Any]:
    if statistics.state_mean is None or statistics.state_std is None:
        height, width = trajectories.frame_shape
        return {"type": "image", "height": height, "width": width}
    # A deviation below the bound is given as 1: of those, only the dimensions that really are constant.
    constant = [
        int(dimension)
        for dimension in np.flatnonzero(statistics.state_std == 1)
        if trajectories.observations[:, dimension].std(dtype=np.float64) < CONSTANT_STD
    ]
    return {
        "type": "vector",
        "dimensions": trajectories.state_dim,
        "mean": statistics.state_mean.tolist(),
        "std": statistics.state_std.tolist(),
        "low": trajectories.observations.min(axis=0).astype(np.float64).tolist(),
        "high": trajectories.observations.max(axis=0).astype(np.float64).tolist(),
        "constant": constant,
    }


def _action_summary(trajectories: Trajectories, statistics: TrajectoryStatistics) -> dict[str, Any]:
    if statistics.action_counts is not None:
        return {"type": "discrete", "number": trajectories.act_dim, "counts": statistics.action_counts.tolist()}
    assert statistics.action_low is not None and statistics.action_high is not None
    actions = trajectories.actions
    return {
        "type": "continuous",
        "dimensions": trajectories.act_dim,
        "mean": actions.mean(axis=0, dtype=np.float64).tolist(),
        "std": actions.std(axis=0, dtype=np.float64).tolist(),
        "low": statistics.action_low.tolist(),
        "high": statistics.action_high.tolist(),
    }


def _remarks(summary: Mapping[str, Any]) -> list[str]:
    """Say what loads, but should be known before training."""
    remarks = []
    observations, actions, returns = summary["observations"], summary["actions"], summary.get("returns")
    constant = observations.get("constant")
    if constant:
        what = f"dimension{'s' if len(constant) > 1 else ''} {_enumerated(constant)}"
        remarks.append(f"{what} of the observations never change: they are centred, not scaled, and tell nothing")
    if returns and returns["min"] == returns["max"] and summary["episodes"] > 1:
        remarks.append(f"every episode returns {returns['min']:g}: a model cannot learn what a return asks for")
    if actions["type"] == "discrete":
        never = [action for action, count in enumerate(actions["counts"]) if not count]
        if never:
            remarks.append(f"of {actions['number']} discrete actions, {_enumerated(never)} never happen")
    if summary["episodes"] == 1:
        remarks.append("there is one episode: none can be held out, so train with --held_out_fraction 0")
    if summary["env_id"] is None:
        remarks.append("nothing says which environment it is from: without --env_id no model of it can be scored")
    return remarks


def _enumerated(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:20])) + (f" and {len(numbers) - 20} more" if len(numbers) > 20 else "")


# The text


def _summary_lines(summary: Mapping[str, Any]) -> list[str]:
    observations, actions = summary["observations"], summary["actions"]
    if observations["type"] == "image":
        seen = f"grey frames of {observations['height']} x {observations['width']}"
    else:
        seen = count_in_words(observations["dimensions"], "dimension")
    if actions["type"] == "discrete":
        shares = [f"{100 * count / summary['transitions']:.1f}%" for count in actions["counts"]]
        done = f"{actions['number']} discrete ones, taken in {', '.join(shares[:20])} of the steps"
    else:
        reach = f"from {min(actions['low']):.4g} to {max(actions['high']):.4g}"
        done = f"{count_in_words(actions['dimensions'], 'dimension')} {reach}"
    rewards = summary["rewards"]
    of_returns = {"rewards": "none"}
    if rewards:
        scale = number(summary["return_scale"])
        of_returns = {
            "rewards": f"{rewards['min']:.4g} to {rewards['max']:.4g} a step",
            "return scale": f"{scale}: what returns-to-go are divided by if no other is given",
        }
    rows = {
        "environment": summary["env_id"] or "unknown",
        **({"rate": f"{summary['fps']:g} steps a second"} if "fps" in summary else {}),
        "episodes": f"{summary['episodes']:,}: {summary['terminated']:,} terminated, {summary['truncated']:,} "
        "truncated",
        "transitions": f"{summary['transitions']:,}",
        "observations": seen,
        "actions": done,
        **of_returns,
    }
    return [f"{name:12}  {value}" for name, value in rows.items()]


def _spreads(summary: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, *(number(value, 1, beside=summary[key].values()) for value in summary[key].values())]
        for name, key in (("return", "returns"), ("length", "lengths"))
        if key in summary
    ]
    return table_lines(["of an episode", *summary["lengths"]], rows)


def _dimensions(summary: Mapping[str, Any]) -> list[str]:
    """Return mean, deviation and range of every dimension; training normalises observations with the first two."""
    rows = []
    for name in ("observation", "action"):
        found = summary[f"{name}s"]
        for dimension in range(min(found.get("dimensions", 0), _DIMENSIONS_SHOWN)):
            numbers = [f"{found[key][dimension]:.4g}" for key in ("mean", "std", "low", "high")]
            if dimension in found.get("constant", ()):
                numbers[1] = "constant"
            rows.append([f"{name} {dimension}", *numbers])
        if found.get("dimensions", 0) > _DIMENSIONS_SHOWN:
            rows.append([f"and {found['dimensions'] - _DIMENSIONS_SHOWN} more", *[""] * 4])
    return table_lines(["dimension", "mean", "std", "min", "max"], rows) if rows else ["pixels are divided by 255"]
