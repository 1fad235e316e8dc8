"""What an evaluation measured, episode by episode, as statistics, a table, files and a picture."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..reporting.figures import BLUE, DARK, GREY, PALE_GREY, RED, drawing, new_figure, number, save_figure, tidy
from ..reporting.files import (
    EPISODES_FILE,
    EVALUATION_FILE,
    EVALUATION_FILES,
    RETURNS_FILE,
    replacing_together,
    write_json,
)
from ..reporting.tables import table_lines
from .environments import install_hint
from .scores import normalized_score, score_reference
from .statistics import are_one_trajectory, describe_success, describe_values, interval_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass
class EvaluationResult:
    """What was measured, episode by episode, and under which protocol.

    Args:
        env_id: gymnasium id of the environment; of one without an id the name of its class.
        mode: the policy's mode, `"window"` or `"recurrent"`.
        context_length: steps of the window; None in recurrent mode.
        seed: episode i of every target return was reset with seed `seed + i`; of a vector environment whose rows cannot
            be reset one by one, all rows with the seed of the first.
        episodes: one row per episode: target_return, episode, seed, return, length (steps), terminated (by the task, as
            opposed to truncated by the time limit), normalized_score (None without reference); where the environment's
            `info` speaks of it, also success (None where it does not at this episode's end).
        versions: of the packages that a result depends on.
        checkpoint: which checkpoint of its run the policy is.
        max_episode_steps: where the caller truncated episodes; None where only the environment did.
        temperature: at which a policy drew its discrete actions; None where it took the one that it predicted.
        env_kwargs: keyword arguments that the environment was made with; None for none.
        actions: of the first episode of each target return, (steps, act_dim) or (steps,), for `record_videos`.
    """

    env_id: str
    mode: str
    context_length: int | None
    seed: int
    episodes: list[dict[str, Any]]
    versions: dict[str, str] = field(default_factory=dict)
    checkpoint: str = "last"
    max_episode_steps: int | None = None
    temperature: float | None = None
    env_kwargs: dict[str, Any] | None = None
    actions: dict[float, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)

    def summary(self) -> list[dict[str, Any]]:
        """Return statistics over the episodes of each target return, in the order in which these were asked for.

        Means, population standard deviations, interquartile means (of the middle half of the episodes), and 95 %
        intervals of the mean: percentile bootstrap over episodes, 10,000 resamples, the same at every call. An interval
        is `[None, None]` for fewer than two episodes, and scores are None for environments without reference.
        `return_first` is the return of the first episode, the one that a video shows. Where the environment says which
        episodes were a success, there are their share `success_rate` and Wilson's 95 % interval of it, `success_ci95`.
        """
        results, told = [], self._tells_success()
        for target in self._targets():
            rows = [row for row in self.episodes if row["target_return"] == target]
            returns = np.array([row["return"] for row in rows])
            scores = normalized_score(self.env_id, returns)
            results.append(
                {
                    "target_return": target,
                    "episodes": len(rows),
                    **describe_values("return", returns),
                    "return_first": float(returns[0]),
                    "length_mean": float(np.mean([row["length"] for row in rows])),
                    **describe_values("normalized_score", scores),
                    **(
                        describe_success([row["success"] for row in rows if row["success"] is not None]) if told else {}
                    ),
                }
            )
        return results

    def table(self) -> str:
        """Return the summary as plain text, one line per target return."""
        heads = ["target return", "return mean ± std", "95% interval", "normalised score", "95% interval"]
        heads += ["success", "95% interval"] if self._tells_success() else []
        rows, text = [], functools.partial(number, decimals=1, thousands="")
        for result in self.summary():
            mean, std = result["normalized_score_mean"], result["normalized_score_std"]
            rows.append(
                [
                    "-" if result["target_return"] is None else f"{result['target_return']:g}",
                    f"{text(result['return_mean'])} ± {text(result['return_std'], beside=[result['return_mean']])}",
                    interval_text(result["return_ci95"], text),
                    "-" if mean is None else f"{mean:.1f} ± {std:.1f}",
                    interval_text(result["normalized_score_ci95"]),
                ]
            )
            if "success_rate" in result:
                rate, percent = result["success_rate"], "{:.1%}".format
                rows[-1] += ["-" if rate is None else percent(rate), interval_text(result["success_ci95"], percent)]
            rows[-1].append(f"{result['length_mean']:.1f}")
        return "\n".join([self._title(), "", *table_lines([*heads, "length"], rows, left=0), *self._remarks()])

    def _remarks(self) -> list[str]:
        """Return a line for each target return whose episodes are one trajectory; a success is 1 in all of them."""
        remarks = []
        for target in [] if self._tells_success() else self._targets():
            rows = [row for row in self.episodes if row["target_return"] == target]
            if are_one_trajectory([row["return"] for row in rows], [row["length"] for row in rows]):
                of_target = f" of target return {target:g}" if len(self._targets()) > 1 else ""
                remarks.append(
                    f"{len(rows)} episodes{of_target} within 1%: these are one, and their interval says nothing. Other "
                    "starts (--env-kwargs), or models of other seeds, say more."
                )
        return remarks

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        dataset_return_mean: float | None = None,
        dataset_return_max: float | None = None,
    ) -> list[Path]:
        """Write evaluation.parquet (one row per episode), evaluation.json (the summary) and returns.png.

        They take the place of an earlier evaluation's files, its videos included, when all are written: whenever the
        process ends, one evaluation is whole, or there is no evaluation.json.

        Args:
            folder: made if it does not exist.
            dataset_return_mean, dataset_return_max: lines to draw in the picture, in the environment's units.

        Returns:
            The files written; without matplotlib the picture is left out, and a warning says so.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(folder)
        columns = [
            ("target_return", pa.float64()),
            ("episode", pa.int64()),
            ("seed", pa.int64()),
            ("return", pa.float64()),
            ("length", pa.int64()),
            ("terminated", pa.bool_()),
            ("normalized_score", pa.float64()),
            *([("success", pa.bool_())] if self._tells_success() else []),
        ]
        table, (last, *others) = pa.Table.from_pylist(self.episodes, schema=pa.schema(columns)), EVALUATION_FILES
        with replacing_together(folder, last, others) as draft:
            pq.write_table(table, draft / EPISODES_FILE)
            write_json(draft / EVALUATION_FILE, self.to_dict())
            with drawing(RETURNS_FILE, install_hint(self.env_id)):
                save_figure(self.plot(dataset_return_mean, dataset_return_max), draft / RETURNS_FILE)
        written = [folder / name for name in (EPISODES_FILE, EVALUATION_FILE, RETURNS_FILE)]
        return [path for path in written if path.is_file()]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single episodes, ready for JSON."""
        reference = score_reference(self.env_id)
        results = self.summary()
        return {
            "env_id": self.env_id,
            "env_kwargs": self.env_kwargs,
            "checkpoint": self.checkpoint,
            "mode": self.mode,
            "episodes_per_target": results[0]["episodes"],
            "seed": self.seed,
            "context_length": self.context_length,
            "max_episode_steps": self.max_episode_steps,
            "temperature": self.temperature,
            "results": results,
            "score_reference": reference
            and {"min": reference.minimum, "max": reference.maximum, "source": reference.source},
            "versions": self.versions,
        }

    def _tells_success(self) -> bool:
        return any("success" in row for row in self.episodes)

    def _targets(self) -> list[float]:
        return list(dict.fromkeys(row["target_return"] for row in self.episodes))

    def _title(self) -> str:
        count = len(self.episodes) // len(self._targets())
        mode = "recurrent mode" if self.context_length is None else f"window mode, context {self.context_length}"
        episodes = f"{count} episode{'s' if count > 1 else ''}"
        each = " per target return" if len(self._targets()) > 1 else ""
        drawn = "" if self.temperature is None else f", actions drawn at temperature {self.temperature:g}"
        cut = "" if self.max_episode_steps is None else f", cut at {self.max_episode_steps:,} steps"
        made = "".join(f", {name}={value!r}" for name, value in (self.env_kwargs or {}).items())
        return f"{self.env_id}{made}: {episodes}{each}, {mode}{drawn}{cut}"

    def plot(self, dataset_return_mean: float | None = None, dataset_return_max: float | None = None) -> Figure:
        """Draw achieved returns against target returns, or against the episode where there is one target only.

        Args:
            dataset_return_mean, dataset_return_max: lines to draw, in the environment's units.

        Raises:
            ImportError: matplotlib is not installed.
        """
        figure = new_figure(7.2, 4.4)
        axes = figure.add_subplot()
        for value, name in ((dataset_return_mean, "data set, mean"), (dataset_return_max, "data set, best")):
            if value is not None:
                axes.axhline(value, color=PALE_GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
                axes.annotate(
                    f"{name}: {number(value, 0)}",
                    xy=(1, value),
                    xycoords=("axes fraction", "data"),
                    xytext=(-4, 3),
                    textcoords="offset points",
                    ha="right",
                    fontsize=8,
                    color=GREY,
                )
        if len(self._targets()) == 1:
            self._plot_episodes(axes)
        else:
            self._plot_targets(axes)
        self._finish(axes)
        return figure

    def _plot_episodes(self, axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        returns = [row["return"] for row in self.episodes]
        result = self.summary()[0]
        style: dict[str, Any] = {"color": BLUE, "markersize": 5, "alpha": 0.8, "zorder": 3}
        axes.plot(range(len(returns)), returns, "o", label="one episode", **style)
        low, high = result["return_ci95"]
        if low is not None:
            axes.axhspan(low, high, color=RED, alpha=0.2, linewidth=0, zorder=2, label="95% interval of the mean")
        mean, target = result["return_mean"], result["target_return"]
        axes.axhline(mean, color=RED, zorder=2, label=f"mean: {number(mean, 0)}")
        if target is not None:
            axes.axhline(target, color=DARK, linewidth=1, linestyle=":", label=f"target return: {number(target, 0)}")
        axes.set_xlim(-0.8, len(returns) - 0.2)
        axes.set_xlabel("episode")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    def _plot_targets(self, axes: Axes) -> None:
        targets, results = self._targets(), self.summary()
        columns = np.arange(len(targets))  # evenly spaced: target returns often are multiples of 1, 2, 10, 20
        jitter = np.random.default_rng(0).uniform(-0.12, 0.12, len(self.episodes))
        places = [targets.index(row["target_return"]) for row in self.episodes] + jitter
        returns = [row["return"] for row in self.episodes]
        style: dict[str, Any] = {"color": BLUE, "markersize": 4.5, "alpha": 0.5, "markeredgewidth": 0, "zorder": 2}
        axes.plot(places, returns, "o", label="one episode", **style)
        means = np.array([result["return_mean"] for result in results])
        bounds = np.array([result["return_ci95"] for result in results], dtype=np.float64).T
        errors = None if np.isnan(bounds).any() else np.abs(bounds - means)
        label = "mean" if errors is None else "mean, 95% interval"
        axes.errorbar(columns, means, yerr=errors, fmt="o", color=RED, capsize=5, label=label, zorder=3)
        inside = axes.get_ylim()  # a target far out of reach must not flatten everything else
        axes.hlines(targets, columns - 0.3, columns + 0.3, color=DARK, linestyle=":", label="target return")
        axes.set_ylim(min(inside[0], min(targets)), max(inside[1], *(t for t in targets if t < 1.3 * inside[1]), 0))
        axes.set_xlim(-0.6, len(targets) - 0.4)
        axes.set_xticks(columns, [f"{target:,g}" for target in targets])
        axes.set_xlabel("target return")

    def _finish(self, axes: Axes) -> None:
        axes.set_ylabel("return")
        axes.set_title(self._title(), loc="left", fontsize=11)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0), high + 0.04 * (high - low))
        tidy(axes)
        reference = score_reference(self.env_id)
        if reference is not None:
            low, high, source = reference

            def to_score(returns: Any) -> Any:
                return 100 * (returns - low) / (high - low)

            def to_return(score: Any) -> Any:
                return low + score * (high - low) / 100

            scores = axes.secondary_yaxis("right", functions=(to_score, to_return))
            scores.set_ylabel(f"normalised score ({source})")
            scores.spines["right"].set_visible(False)
        axes.figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
