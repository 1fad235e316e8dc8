"""What is left of policies whose hidden attention is exchanged, randomised or zeroed: scores, a table and a picture.

Every condition plays the same episodes. Source: DeMa (arXiv 2405.12094, section 5, figure 5).
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..acting.policy import DecisionMambaPolicy
from ..evaluation.environments import env_kwargs_for
from ..evaluation.result import EvaluationResult
from ..evaluation.rollouts import evaluate_policy
from ..evaluation.statistics import interval_text, t_interval
from ..model.mixers_decision_mamba import DecisionMamba2Mixer, DecisionMambaMixer
from ..reporting.figures import legend_below, new_figure, number, save_figure, tidy
from ..reporting.files import replacing_together, write_json
from ..reporting.tables import table_lines
from ..reporting.versions import package_versions
from .windows import Model, mixers_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def swap_hidden_attention(model: Model, other: PreTrainedModel, layers: int | Sequence[int] | None = None) -> Model:
    """Return a copy of the model with another model's hidden-attention parameters in some layers (DeMa, figure 5).

    These are, as in the paper, all of a mixer but `in_proj` and `out_proj`: conv1d, x_proj, dt_proj, A_log and D.
    Mamba-2 computes B, C and Δ in `in_proj`, so those rows of it belong to them, and its final norm does not.

    Args:
        layers: counted from 0; all when not given.

    Raises:
        ValueError: a layer that one of them does not have, other sizes, or a model without Mamba mixers.
    """
    mixers, donors = mixers_of(model), mixers_of(other)
    given = {}
    for layer in _chosen_layers(len(mixers), layers):
        if layer >= len(donors):
            raise ValueError(f"layers: the other model has no layer {layer}; it has layers 0 to {len(donors) - 1}.")
        given[layer] = _attention_parameters(donors[layer])
        sizes, others = _sizes(_attention_parameters(mixers[layer])), _sizes(given[layer])
        if sizes != others:
            ours, theirs = (", ".join(sorted(found)) or "nothing more" for found in (sizes - others, others - sizes))
            raise ValueError(f"layer {layer} cannot be swapped: the model has {ours}; the other has {theirs}.")
    return _replaced(model, layers, lambda layer, name, _: given[layer][name])


def randomize_hidden_attention(model: Model, layers: int | Sequence[int] | None = None, seed: int = 0) -> Model:
    """Return a copy of the model whose hidden-attention parameters in some layers are drawn uniformly from [0, 1).

    Parameters, layers and errors as `swap_hidden_attention`; the same seed draws the same numbers on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    return _replaced(model, layers, lambda layer, name, tensor: torch.rand(tensor.shape, generator=generator))


def zero_hidden_attention(model: Model, layers: int | Sequence[int] | None = None) -> Model:
    """Return a copy of the model whose hidden-attention parameters in some layers are zero: their scans give nothing.

    Parameters, layers and errors as `swap_hidden_attention`.
    """
    return _replaced(model, layers, lambda layer, name, tensor: torch.zeros_like(tensor))


def _replaced(model: Model, layers: int | Sequence[int] | None, value: Callable[[int, str, Tensor], Tensor]) -> Model:
    """Return a copy of the model with value(layer, name, parameter) in the place of hidden-attention parameters."""
    chosen = _chosen_layers(len(mixers_of(model)), layers)
    changed = copy.deepcopy(model)
    mixers = mixers_of(changed)
    with torch.no_grad():
        for layer in chosen:
            for name, tensor in _attention_parameters(mixers[layer]).items():
                tensor.copy_(value(layer, name, tensor))
    return changed


def _attention_parameters(mixer: DecisionMambaMixer | DecisionMamba2Mixer) -> dict[str, Tensor]:
    """Return the parameters that make a mixer's hidden attention, by name; parts of one are views."""
    named: dict[str, Tensor] = dict(mixer.named_parameters())
    parameters = {name: x for name, x in named.items() if name.split(".")[0] not in ("in_proj", "out_proj", "norm")}
    if isinstance(mixer, DecisionMamba2Mixer):
        first = 2 * mixer.config.intermediate_size  # behind z and x
        for name, tensor in mixer.in_proj.named_parameters():
            parameters[f"in_proj.{name} of B, C and Δ"] = tensor[first:]
    return parameters


def _sizes(parameters: Mapping[str, Tensor]) -> set[str]:
    return {f"{name} {tuple(tensor.shape)}" for name, tensor in parameters.items()}


def _chosen_layers(count: int, layers: int | Sequence[int] | None) -> list[int]:
    chosen = list(range(count)) if layers is None else [layers] if isinstance(layers, int) else list(layers)
    for layer in chosen:
        if not 0 <= layer < count:
            raise ValueError(f"layers: there is no layer {layer}; this model has layers 0 to {count - 1}.")
    return chosen


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
    """Copy a policy with other hidden-attention parameters, see `analysis.swap_hidden_attention`.

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
        """Return the mean over checkpoints of `"return"` or `"normalized_score"`, its 95% interval, and their own.

        The interval is a t-interval over checkpoints, or the bootstrap's over the episodes of a single one.
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
        """Return the numbers of every condition, see `Condition.to_dict`."""
        return [condition.to_dict(self.quantity) for condition in self.conditions]

    def title(self) -> str:
        """Return what was played."""
        count = len(self.conditions[0].results)
        checkpoints = f" of each of {count} checkpoints" if count > 1 else ""
        return f"{self.env_id}: {self.episodes} episode{'s' if self.episodes > 1 else ''}{checkpoints}"

    def table(self) -> str:
        """Return one line a condition, as plain text."""
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
            write_json(draft / "ablation.json", report)
            try:
                save_figure(self.plot(), draft / "ablation.png")
            except ImportError as error:
                missing = error
        if missing is not None:
            raise missing
        return [folder / "ablation.json", folder / "ablation.png"]

    def plot(self) -> Figure:
        """Draw bars with intervals, the conditions below each other.

        Raises:
            ImportError: matplotlib is not installed.
        """
        rows = self.rows()
        figure = new_figure(8, 1.6 + 0.3 * len(rows))
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
        return figure


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
