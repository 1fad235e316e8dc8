"""How good a policy is: rollouts in gymnasium's vector environments, normalised scores and their uncertainty.

The protocol is the caller's: every result states its target returns, episodes and seeds, and no episode is left out.
Source of the normalised score: D4RL (Fu et al. 2020, arXiv 2004.07219, section 6); of Atari's, see environments.py.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from .environments import (
    check_spaces,
    decide,
    env_kwargs_for,
    environment_kwargs,
    environment_name,
    install_hint,
    make_environments,
    normalized_score,
    score_reference,
)
from .figures import number, tidy
from .files import replacing_together
from .policy import DecisionMambaPolicy
from .video import VIDEO_FILES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .environments import Environment

logger = logging.getLogger(__name__)

#: What an evaluation leaves in a folder, the videos included. Without the first, the others mean nothing.
EVALUATION_FILES = ("evaluation.json", "evaluation.parquet", "returns.png", *VIDEO_FILES)

_ROWS = 20  # environments at once: enough to make a batch worth its while, few enough to waste little at the end
_RESAMPLES = 10_000


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
            opposed to truncated by the time limit), normalized_score (None without reference).
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
        """Statistics over the episodes of each target return, in the order in which these were asked for.

        Means, population standard deviations, interquartile means (of the middle half of the episodes), and 95 %
        intervals of the mean: percentile bootstrap over episodes, 10,000 resamples, the same at every call. An interval
        is `[None, None]` for fewer than two episodes, and scores are None for environments without reference.
        `return_first` is the return of the first episode, the one that a video shows.
        """
        results = []
        for target in self._targets():
            rows = [row for row in self.episodes if row["target_return"] == target]
            returns = np.array([row["return"] for row in rows])
            scores = normalized_score(self.env_id, returns)
            results.append(
                {
                    "target_return": target,
                    "episodes": len(rows),
                    **_statistics("return", returns),
                    "return_first": float(returns[0]),
                    "length_mean": float(np.mean([row["length"] for row in rows])),
                    **_statistics("normalized_score", scores),
                }
            )
        return results

    def table(self) -> str:
        """The summary as plain text, one line per target return."""
        heads = ["target return", "return mean ± std", "95% interval", "normalised score", "95% interval", "length"]
        lines, text = [heads], functools.partial(number, decimals=1, thousands="")
        for result in self.summary():
            mean, std = result["normalized_score_mean"], result["normalized_score_std"]
            lines.append(
                [
                    f"{result['target_return']:g}",
                    f"{text(result['return_mean'])} ± {text(result['return_std'], beside=[result['return_mean']])}",
                    interval_text(result["return_ci95"], text),
                    "-" if mean is None else f"{mean:.1f} ± {std:.1f}",
                    interval_text(result["normalized_score_ci95"]),
                    f"{result['length_mean']:.1f}",
                ]
            )
        widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
        body = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([self._title(), "", body[0], "  ".join("-" * width for width in widths), *body[1:]])

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
        ]
        table, (last, *others) = pa.Table.from_pylist(self.episodes, schema=pa.schema(columns)), EVALUATION_FILES
        with replacing_together(folder, last, others) as draft:
            pq.write_table(table, draft / "evaluation.parquet")
            (draft / "evaluation.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
            try:
                self._plot(draft / "returns.png", dataset_return_mean, dataset_return_max)
            except ImportError:
                hint = install_hint(self.env_id)
                logger.warning("returns.png was not drawn: matplotlib is not installed (%s).", hint)
        written = [folder / name for name in ("evaluation.parquet", "evaluation.json", "returns.png")]
        return [path for path in written if path.is_file()]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single episodes, ready for JSON."""
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

    def _plot(self, path: Path, dataset_mean: float | None, dataset_max: float | None) -> None:
        """Draw achieved returns against target returns, or against the episode where there is one target only."""
        from matplotlib.figure import Figure  # draws without a display and leaves pyplot's state alone

        figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        for value, name in ((dataset_mean, "data set, mean"), (dataset_max, "data set, best")):
            if value is not None:
                axes.axhline(value, color="#8a8f98", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
                axes.annotate(
                    f"{name}: {number(value, 0)}",
                    xy=(1, value),
                    xycoords=("axes fraction", "data"),
                    xytext=(-4, 3),
                    textcoords="offset points",
                    ha="right",
                    fontsize=8,
                    color="#5b616b",
                )
        if len(self._targets()) == 1:
            self._plot_episodes(axes)
        else:
            self._plot_targets(axes)
        self._finish(axes)
        figure.savefig(path)

    def _plot_episodes(self, axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        returns = [row["return"] for row in self.episodes]
        result = self.summary()[0]
        style: dict[str, Any] = {"color": "#4c78a8", "markersize": 5, "alpha": 0.8, "zorder": 3}
        axes.plot(range(len(returns)), returns, "o", label="one episode", **style)
        low, high = result["return_ci95"]
        if low is not None:
            axes.axhspan(low, high, color="#e4572e", alpha=0.2, linewidth=0, zorder=2, label="95% interval of the mean")
        mean, target = result["return_mean"], result["target_return"]
        axes.axhline(mean, color="#e4572e", zorder=2, label=f"mean: {number(mean, 0)}")
        axes.axhline(target, color="#2b2f36", linewidth=1, linestyle=":", label=f"target return: {number(target, 0)}")
        axes.set_xlim(-0.8, len(returns) - 0.2)
        axes.set_xlabel("episode")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    def _plot_targets(self, axes: Axes) -> None:
        targets, results = self._targets(), self.summary()
        columns = np.arange(len(targets))  # evenly spaced: target returns often are multiples of 1, 2, 10, 20
        jitter = np.random.default_rng(0).uniform(-0.12, 0.12, len(self.episodes))
        places = [targets.index(row["target_return"]) for row in self.episodes] + jitter
        returns = [row["return"] for row in self.episodes]
        style: dict[str, Any] = {"color": "#4c78a8", "markersize": 4.5, "alpha": 0.5, "markeredgewidth": 0, "zorder": 2}
        axes.plot(places, returns, "o", label="one episode", **style)
        means = np.array([result["return_mean"] for result in results])
        bounds = np.array([result["return_ci95"] for result in results], dtype=np.float64).T
        errors = None if np.isnan(bounds).any() else np.abs(bounds - means)
        label = "mean" if errors is None else "mean, 95% interval"
        axes.errorbar(columns, means, yerr=errors, fmt="o", color="#e4572e", capsize=5, label=label, zorder=3)
        inside = axes.get_ylim()  # a target far out of reach must not flatten everything else
        axes.hlines(targets, columns - 0.3, columns + 0.3, color="#2b2f36", linestyle=":", label="target return")
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


def evaluate_policy(
    policy: DecisionMambaPolicy,
    env_id: Environment | None = None,
    *,
    episodes: int = 20,
    target_returns: float | Sequence[float] | None = None,
    seed: int = 0,
    num_envs: int | None = None,
    max_episode_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Roll a policy out in a gymnasium environment and measure the returns.

    Exactly the episodes asked for are run and counted, however long they last, so that short ones are not favoured.
    Episode i starts from seed `seed + i` for every target return. A row whose episode ends takes the next one; when
    none is left it repeats episodes that nobody counts, until the last row is done. Results do not depend on
    `num_envs`, but for the rounding of larger matrix products. The policy is reset. Atari games are made as
    `make_environments` says; returns are their points, and so is what comes off the return-to-go.

    Args:
        policy: what acts.
        env_id: a gymnasium id; an environment or a vector environment, which stays open; or a function that makes one.
            `policy.processor.env_id` when not given. A single environment plays one episode at a time. A vector
            environment has rows of its own; where they cannot be reset one by one with seeds of their own (gymnasium's
            SyncVectorEnv and AsyncVectorEnv can), they begin together, and each waits for the last one.
        episodes: per target return.
        target_returns: returns to ask for, in the environment's units; `policy.processor.target_return` when not given.
        seed: of the first episode, and of the draws of a policy that samples; 0 or greater.
        num_envs: environments that run at once; 20 when not given, never more than there are episodes.
        max_episode_steps: ends episodes earlier than the environment does; such a row has `terminated` False.
        env_kwargs: keyword arguments for `gymnasium.make`, with an id; `policy.processor.env_kwargs` when not given and
            the environment is the checkpoint's.
        progress: whether to show a progress bar.

    Raises:
        ImportError: gymnasium, or what the environment needs, is not installed.
        ValueError: no or an unknown environment, one whose observations or actions are not what the policy was trained
            on, that raises an error or gives what is not finite, no target return, or a number that makes no sense.
    """
    env_kwargs = env_kwargs_for(policy, env_id, env_kwargs)
    env = policy.processor.env_id if env_id is None else env_id
    if env is None:
        raise ValueError("No environment: this checkpoint stores none. Say which one with env_id='Hopper-v5' or so.")
    targets = _checked_targets(policy, target_returns)
    for name, value, least in (
        ("episodes", episodes, 1),
        ("num_envs", num_envs, 1),
        ("max_episode_steps", max_episode_steps, 1),
        ("seed", seed, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name}={value} must be at least {least}.")
    jobs = [(target, episode) for target in targets for episode in range(episodes)]
    envs = make_environments(env, min(num_envs or _ROWS, len(jobs)), max_episode_steps, env_kwargs=env_kwargs)
    try:
        name = env if isinstance(env, str) else environment_name(envs)
        if not isinstance(env, str):
            env_kwargs = environment_kwargs(envs)
        if num_envs not in (None, envs.num_envs) and not (isinstance(env, str) or callable(env)):
            raise ValueError(f"num_envs={num_envs}, but {name} is given with {envs.num_envs}; leave it out.")
        check_spaces(name, envs, policy)
        with tqdm(total=len(jobs), desc=name, unit="episode", disable=not progress) as bar:
            rows, actions = _run(policy, name, envs, jobs, seed, bar)
    finally:
        envs.close()
    return EvaluationResult(
        env_id=name,
        mode=policy.mode,
        context_length=policy.context_length if policy.mode == "window" else None,
        seed=seed,
        episodes=rows,
        versions=package_versions(),
        max_episode_steps=max_episode_steps,
        temperature=policy.temperature if policy.sample else None,
        env_kwargs=env_kwargs,
        actions=actions,
    )


def _run(
    policy: DecisionMambaPolicy,
    env_id: str,
    envs: Any,  # gymnasium's VectorEnv, whose type hides that a reset takes one seed per row
    jobs: list[tuple[float, int]],
    seed: int,
    bar: tqdm,
) -> tuple[list[dict[str, Any]], dict[float, NDArray[Any]]]:
    """Run every job (target return, episode) once; return rows in the order of jobs, and actions of first episodes."""
    count, last = envs.num_envs, len(jobs) - 1
    targets, seeds = np.array([target for target, _ in jobs]), np.array([seed + episode for _, episode in jobs])
    current, waiting = np.arange(count), count  # each row's job; beyond the last one the row is idle
    together = not getattr(envs, "resets_rows", True)  # all rows begin at once, each waits for the last one
    returns, lengths = np.zeros(count), np.zeros(count, dtype=np.int64)
    finished: dict[int, dict[str, Any]] = {}
    first: dict[int, list[Any]] = {job: [] for job, (_, episode) in enumerate(jobs) if episode == 0}
    started, shown, steps = time.monotonic(), 0.0, 0

    jobs_now = np.minimum(current, last)
    observations, given = _reset(envs, seeds[jobs_now])
    policy.reset(target_return=targets[jobs_now], seed=seed)  # the policy's n-th episode is the n-th job
    rewards: NDArray[np.float64] | None = None
    while True:
        actions = decide(policy, envs, observations, rewards)
        for place, job in enumerate(current.tolist()):
            if job in first:
                first[job].append(actions[place].copy())
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        returns += rewards
        lengths += 1
        steps += int(np.count_nonzero(current <= last))
        if not np.isfinite(returns).all():
            bad = int(np.flatnonzero(~np.isfinite(returns))[0])
            raise ValueError(
                f"{env_id} gave the reward {rewards[bad]} at step {lengths[bad] - 1} of the episode with seed "
                f"{given[bad]}; returns need finite rewards."
            )
        over = terminated | truncated
        for row in np.flatnonzero(over):
            if current[row] <= last:
                target, episode = jobs[current[row]]
                finished[int(current[row])] = {
                    "target_return": target,
                    "episode": episode,
                    "seed": int(given[row]),
                    "return": float(returns[row]),
                    "length": int(lengths[row]),
                    "terminated": bool(terminated[row]),
                    "normalized_score": normalized_score(env_id, float(returns[row])),
                }
                bar.update()
            current[row], waiting = (last + 1, waiting) if together else (waiting, waiting + 1)
        if time.monotonic() - shown > 0.5 or len(finished) == len(jobs):
            shown = time.monotonic()
            mean = number(float(np.mean([row["return"] for row in finished.values()])), 1, "") if finished else "-"
            bar.set_postfix({"mean return": mean, "steps/s": f"{steps / max(shown - started, 1e-9):,.0f}"})
        if len(finished) == len(jobs):
            taken = {jobs[job][0]: np.stack(series) for job, series in first.items()}
            return [finished[job] for job in range(len(jobs))], taken
        resets = over.any() and not together
        if together and (current > last).all():
            current, waiting, over, resets = waiting + np.arange(count), waiting + count, np.ones_like(over), True
        jobs_now = np.minimum(current, last)
        if resets:
            observations, given = _reset(envs, seeds[jobs_now], over)
        if over.any():
            returns[over], lengths[over] = 0.0, 0
            policy.reset_rows(over, target_return=targets[jobs_now[over]])


def _reset(envs: Any, seeds: NDArray[np.int64], rows: NDArray[np.bool_] | None = None) -> tuple[Any, NDArray[np.int64]]:
    """Reset rows (all when not given) with a seed each, or all with the first; return observations and seeds (n,)."""
    if getattr(envs, "resets_rows", True):
        return envs.reset(seed=seeds.tolist(), options=None if rows is None else {"reset_mask": rows})[0], seeds
    return envs.reset(seed=int(seeds[0]))[0], np.full_like(seeds, seeds[0])


def _checked_targets(policy: DecisionMambaPolicy, target_returns: float | Sequence[float] | None) -> list[float]:
    targets = policy.processor.target_return if target_returns is None else target_returns
    if targets is None:
        raise ValueError("No target return: this checkpoint stores none. Say which with target_returns=[...].")
    values = [float(target) for target in np.atleast_1d(np.asarray(targets, dtype=np.float64))]
    if not values or not np.isfinite(values).all():
        raise ValueError(f"target_returns={target_returns} must be one finite number or more.")
    return list(dict.fromkeys(values))


def _statistics(name: str, values: NDArray[np.float64] | None) -> dict[str, Any]:
    """Mean, deviation, interval and interquartile mean of values (n,), under names that begin with `name`."""
    if values is None:
        return {f"{name}_mean": None, f"{name}_std": None, f"{name}_ci95": [None, None], f"{name}_iqm": None}
    trimmed = len(values) // 4
    return {
        f"{name}_mean": float(values.mean()),
        f"{name}_std": float(values.std()),
        f"{name}_ci95": _bootstrap_interval(values),
        f"{name}_iqm": float(np.sort(values)[trimmed : len(values) - trimmed].mean()),
    }


def _bootstrap_interval(values: NDArray[np.float64]) -> list[float] | list[None]:
    """95 % interval of the mean of values (n,) by the percentile bootstrap."""
    if len(values) < 2:
        return [None, None]
    generator = np.random.default_rng(0)
    rows = max(1, 1_000_000 // len(values))  # bounds the memory, whatever the number of episodes
    means: list[float] = []
    while len(means) < _RESAMPLES:
        drawn = generator.integers(len(values), size=(min(rows, _RESAMPLES - len(means)), len(values)))
        means.extend(values[drawn].mean(1))
    return [float(bound) for bound in np.percentile(means, [2.5, 97.5])]


def t_interval(values: Sequence[float]) -> list[float] | list[None]:
    """95 % t-interval of the mean of independent values (n,), such as the scores of trainings from n seeds.

    Returns:
        `[low, high]`; `[None, None]` for fewer than two values.
    """
    if len(values) < 2:
        return [None, None]
    half = _t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return [mean - half, mean + half]


@functools.lru_cache
def _t_quantile(freedom: int) -> float:
    """Half-width of a 95 % t-interval in standard errors, from a million draws (to about 0.3 %)."""
    return float(np.quantile(np.abs(np.random.default_rng(0).standard_t(freedom, 1_000_000)), 0.95))


def interval_text(interval: list[float] | list[None], text: Callable[[float], str] = "{:.1f}".format) -> str:
    """An interval for people, of which `text` writes the ends; a dash where there is none."""
    low, high = interval
    return "-" if low is None or high is None else f"{text(low)} to {text(high)}"


def package_versions(*more: str) -> dict[str, str]:
    """Return the versions of what a result depends on, and of `more`, as far as these packages are installed."""
    from hf_decision_mamba import __version__

    versions = {"hf_decision_mamba": __version__}
    for package in ("torch", "transformers", "gymnasium", "mujoco", "ale-py", "opencv-python-headless", *more):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
