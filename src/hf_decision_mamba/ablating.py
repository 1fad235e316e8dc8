"""What is left of policies whose hidden attention is exchanged, randomised or zeroed: scores, a table and a picture.

Every condition plays the same episodes. Source: DeMa (arXiv 2405.12094, section 5, figure 5).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from .analysis import randomize_hidden_attention, swap_hidden_attention, zero_hidden_attention
from .data.inspection import table_lines
from .environments import env_kwargs_for
from .evaluation import EvaluationResult, evaluate_policy, interval_text, package_versions, t_interval
from .figures import legend_below, number, tidy
from .files import replacing_together
from .policy import DecisionMambaPolicy

Change = Literal["swap", "randomize", "zero"]
CHANGES: tuple[Change, ...] = ("swap", "randomize", "zero")
_INTACT = "intact"
_NAMES = {"swap": "swapped", "randomize": "random", "zero": "zero"}
_COLORS = {_INTACT: "#2b2f36", "swap": "#e4572e", "randomize": "#4c78a8", "zero": "#8a8f98"}


def ablated(
    policy: DecisionMambaPolicy,
    change: Change,
    layer: int | None = None,
    *,
    other: DecisionMambaPolicy | None = None,
    seed: int = 0,
) -> DecisionMambaPolicy:
    """A copy of a policy with other hidden-attention parameters, see `analysis.swap_hidden_attention`.

    Args:
        change: where they come from: `"swap"` from `other`, `"randomize"` from the uniform distribution, or zero.
        layer: counted from 0; all layers when not given.
        other: whose parameters are taken.
        seed: of `"randomize"`.

    Raises:
        ValueError: no such change or layer, `"swap"` without `other`, or models of different sizes.
    """
    if change not in CHANGES:
        raise ValueError(f"change={change!r} is unknown; choose one of {', '.join(CHANGES)}.")
    if change == "swap":
        if other is None:
            raise ValueError("change='swap' takes another policy's parameters; say whose with `other` (--other).")
        model = swap_hidden_attention(policy.model, other.model, layer)
    elif change == "randomize":
        model = randomize_hidden_attention(policy.model, layer, seed=seed)
    else:
        model = zero_hidden_attention(policy.model, layer)
    return DecisionMambaPolicy(
        model,
        policy.processor,
        policy.mode,
        context_length=policy.context_length if policy.mode == "window" else None,
        sample=policy.sample,
        temperature=policy.temperature,
    )


@dataclass(frozen=True)
class Condition:
    """One row of an ablation.

    Args:
        change: None for the intact policies.
        layer: counted from 0; None for all.
        results: one of each checkpoint.
    """

    change: Change | None
    layer: int | None
    results: list[EvaluationResult]

    @property
    def name(self) -> str:
        """What tables and pictures call it; they count layers from 1, as papers do."""
        if self.change is None:
            return _INTACT
        return f"{_NAMES[self.change]}, {'all layers' if self.layer is None else f'layer {self.layer + 1}'}"

    def to_dict(self, quantity: str) -> dict[str, Any]:
        """Mean over checkpoints of `"return"` or `"normalized_score"`, its 95% interval, and the checkpoints' own.

        The interval is a t-interval over checkpoints; of a single checkpoint it is the bootstrap's over its episodes.
        """
        rows = [result.summary()[0] for result in self.results]
        means = [row[f"{quantity}_mean"] for row in rows]
        interval = t_interval(means) if len(rows) > 1 else rows[0][f"{quantity}_ci95"]
        return {
            "condition": self.name,
            "change": self.change,
            "layer": self.layer,
            "mean": math.fsum(means) / len(means),
            "ci95": interval,
            "checkpoints": means,
            "length_mean": math.fsum(row["length_mean"] for row in rows) / len(rows),
        }


@dataclass
class Ablation:
    """All conditions, the intact policies first.

    Args:
        env_id: gymnasium id.
        episodes: of every checkpoint in every condition.
        conditions: in the order of the table.
        protocol: what else repeats it.
    """

    env_id: str
    episodes: int
    conditions: list[Condition]
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def quantity(self) -> Literal["return", "normalized_score"]:
        """What is compared: normalised scores where the environment has references."""
        scored = self.conditions[0].results[0].summary()[0]["normalized_score_mean"] is not None
        return "normalized_score" if scored else "return"

    def _measured(self) -> str:
        return "normalised score" if self.quantity == "normalized_score" else "return"

    def rows(self) -> list[dict[str, Any]]:
        """The numbers of every condition, see `Condition.to_dict`."""
        return [condition.to_dict(self.quantity) for condition in self.conditions]

    def title(self) -> str:
        """What was played."""
        count = len(self.conditions[0].results)
        checkpoints = f" of each of {count} checkpoints" if count > 1 else ""
        return f"{self.env_id}: {self.episodes} episode{'s' if self.episodes > 1 else ''}{checkpoints}"

    def table(self) -> str:
        """One line a condition, as plain text."""
        lines: list[list[str]] = []
        scored = self.quantity == "normalized_score"
        text: Callable[[float], str] = "{:.1f}".format if scored else partial(number, decimals=1, thousands="")
        for row in self.rows():
            numbers = text(row["mean"]), interval_text(row["ci95"], text), f"{row['length_mean']:.1f}"
            lines.append([row["condition"], *numbers])
        heads = ["condition", self._measured(), "95% interval", "length"]
        return "\n".join([self.title(), "", *table_lines(heads, lines)])

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write ablation.json and ablation.png.

        Args:
            folder: made if it does not exist.

        Raises:
            ImportError: matplotlib is not installed; ablation.json is written.
        """
        folder, missing = Path(folder), None
        report = {
            "env_id": self.env_id,
            "episodes": self.episodes,
            "quantity": self.quantity,
            "interval": "t over checkpoints" if len(self.conditions[0].results) > 1 else "bootstrap over episodes",
            **self.protocol,
            "conditions": self.rows(),
            "versions": package_versions(),
        }
        with replacing_together(folder, "ablation.json", ["ablation.png"]) as draft:
            (draft / "ablation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            try:
                self._draw(draft / "ablation.png")
            except ImportError as error:
                missing = error
        if missing is not None:
            raise missing
        return [folder / "ablation.json", folder / "ablation.png"]

    def _draw(self, path: Path) -> None:
        """Bars with intervals, the conditions below each other."""
        from matplotlib.figure import Figure

        rows = self.rows()
        figure = Figure(figsize=(8, 1.6 + 0.3 * len(rows)), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            color = _COLORS[row["change"] or _INTACT]
            axes.barh(place, row["mean"], color=color, alpha=0.85, height=0.7)
            if row["ci95"][0] is not None:
                axes.plot(row["ci95"], [place, place], color="black", linewidth=1.5, label="95% interval of the mean")
            if len(row["checkpoints"]) > 1:
                places = [place] * len(row["checkpoints"])
                axes.plot(row["checkpoints"], places, "o", color="white", markeredgecolor="black", markersize=4,
                          label="one checkpoint", zorder=3)  # fmt: skip
        axes.set_yticks(range(len(rows)), [row["condition"] for row in rows])
        axes.invert_yaxis()
        axes.axvline(rows[0]["mean"], color=_COLORS[_INTACT], linestyle=":", linewidth=1)
        axes.set_xlabel(f"{self._measured()}: higher is better")
        axes.set_title(f"What is left without the trained hidden attention?\n{self.title()}", loc="left", fontsize=11)
        tidy(axes, "x")
        legend_below(figure, axes, ncols=2)
        figure.savefig(path)


def ablate(
    policies: Sequence[DecisionMambaPolicy],
    others: Sequence[DecisionMambaPolicy] = (),
    env_id: str | None = None,
    *,
    changes: Sequence[Change] | None = None,
    episodes: int = 20,
    target_return: float | None = None,
    seed: int = 0,
    max_episode_steps: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    progress: bool = True,
) -> Ablation:
    """Score policies intact, and with their hidden attention changed layer by layer and in all layers.

    Args:
        policies: one or more, such as trainings from several seeds; their scores are averaged.
        others: whose parameters are swapped in: one for all policies or one for each, with mixers of the same sizes.
        env_id: gymnasium id; the first policy's when not given.
        changes: some of `CHANGES`; all when not given, without `"swap"` where there are no `others`.
        episodes: of every policy in every condition, the same in all.
        target_return: what to ask for, in the environment's units; each policy's own when not given.
        seed: of the first episode, and of the first policy's random parameters.
        max_episode_steps: ends episodes earlier than the environment does.
        env_kwargs: keyword arguments that the environment is made with; the first policy's when not given.
        progress: whether to show a progress bar.

    Raises:
        ValueError: what `ablated` and `evaluate_policy` refuse, all of the first kind before anything is played.
    """
    if not policies:
        raise ValueError("policies: give one or more.")
    if len(others) not in (0, 1, len(policies)):
        raise ValueError(f"others: there are {len(others)} for {len(policies)}; give one for all or one for each.")
    if changes is None:
        changes = CHANGES if others else CHANGES[1:]
    partners: list[DecisionMambaPolicy | None] = [*others]
    if len(partners) != len(policies):
        partners = len(policies) * (partners or [None])
    layers: list[int | None] = [*range(policies[0].model.config.n_layer), None]
    wanted: list[tuple[Change | None, int | None]] = [(None, None)]
    wanted += [(change, layer) for change in changes for layer in layers]

    def changed(index: int, change: Change | None, layer: int | None) -> DecisionMambaPolicy:
        policy = policies[index]
        return policy if change is None else ablated(policy, change, layer, other=partners[index], seed=seed + index)

    for index in range(len(policies)):  # what cannot be changed is refused before hours of episodes
        for change, layer in wanted:
            changed(index, change, layer)
    env_kwargs = env_kwargs_for(policies[0], env_id, env_kwargs)
    conditions = [Condition(change, layer, []) for change, layer in wanted]
    with tqdm(total=len(conditions) * len(policies), unit="condition", disable=not progress) as bar:
        for index in range(len(policies)):
            for condition in conditions:
                bar.set_description(condition.name)
                result = evaluate_policy(
                    changed(index, condition.change, condition.layer),
                    env_id or policies[0].processor.env_id,
                    episodes=episodes,
                    target_returns=target_return,
                    seed=seed,
                    max_episode_steps=max_episode_steps,
                    env_kwargs=env_kwargs or {},
                    progress=False,
                )
                condition.results.append(result)
                bar.update()
    first = conditions[0].results[0]
    targets = [result.summary()[0]["target_return"] for result in conditions[0].results]
    protocol = {
        "env_kwargs": first.env_kwargs,
        "seed": seed,
        "target_returns": targets,
        "mode": first.mode,
        "max_episode_steps": max_episode_steps,
    }
    return Ablation(first.env_id, episodes, conditions, protocol)
