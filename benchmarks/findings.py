"""The questions, what their runs say, and the page with its figures that says so; used by paper_questions.py.

A score is the mean over the episodes of one trained model; a condition's score is the mean over its seeds. Intervals
are 95% t-intervals over seeds. With two or three seeds each condition alone knows little of its spread, so that the
standard deviation between seeds is pooled over all trainings on a data set, scored in window mode.
"""

import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from training_runs import ROOT, read

QUESTIONS = ROOT / "configs" / "questions"
SCALING = ROOT / "benchmarks" / "results" / "scaling.json"
#: The environment of each data set.
DATASETS = {"hopper-medium-replay": "Hopper-v5", "halfcheetah-medium-replay": "HalfCheetah-v5"}
SEEDS = (0, 1, 2)
#: What all runs share, but for what a condition says: settings of train.py, whose defaults hold for the others.
SETTINGS: dict[str, Any] = {
    "preset": "dema-b3ld",
    "state_size": 16,
    "context_length": 8,
    "max_steps": 2000,
    "warmup_steps": 200,
    "per_device_train_batch_size": 64,
    "learning_rate": 0.001,
    "eval_strategy": "no",
    "eval_episodes": 20,
}
AGREES, DISAGREES, UNTOLD, UNMEASURED = (
    "agrees with the paper",
    "disagrees with the paper",
    "no difference can be told",
    "not measured yet",
)
#: How the first condition of a claim compares with the last one, as the paper has it.
RELATIONS = {
    "higher": ("scores higher than", ">"),
    "not lower": ("scores no lower than", "≥"),
    "alike": ("scores like", "≈"),
    "against": ("against", "or"),  # no paper says which
}
#: What a condition says that is nothing to its training.
SCORINGS = ("eval_mode", "hidden_attention")
COLORS = ("#4c78a8", "#e4572e", "#54a24b")


# ------------------------------------------------------------------------------------------------------- questions


@dataclass
class Question:
    """A file of configs/questions."""

    name: str
    title: str
    question: str
    paper: str
    conditions: dict[str, dict[str, Any]]
    claims: list[list[str]] = field(default_factory=list)
    remark: str = ""
    cost: bool = False


def load_questions(paths: Iterable[Path] = ()) -> list[Question]:
    """The questions in these files; all when none is given.

    Raises:
        ValueError: a claim that compares what is no condition, or in no known way.
    """
    questions = []
    for path in paths or (QUESTIONS / f"{name}.yaml" for name in ORDER):
        question = Question(name=path.stem, **yaml.safe_load(path.read_text(encoding="utf-8")))
        for first, relation, second in question.claims:
            unknown = {first, second} - set(question.conditions)
            if unknown or relation not in RELATIONS:
                wrong = unknown or {relation}
                raise ValueError(f"{path}: {wrong} is none of {[*question.conditions, *RELATIONS]}.")
        questions.append(question)
    return questions


#: The order of the page, and with a few runs done the more useful first.
ORDER = (
    "context_length",
    "acting_mode",
    "sequence_layout",
    "block",
    "timestep_embedding",
    "mixer_parts",
    "local_mixer",
    "hidden_attention",
)


def train_arguments(settings: dict[str, Any], condition: dict[str, Any]) -> str:
    """What a condition asks of train.py, in one spelling: what is equal here is one training."""
    merged = {name: value for name, value in (settings | condition).items() if name not in SCORINGS}
    return " ".join(f"--{name}={value}" for name, value in sorted(merged.items()))


def scoring(condition: dict[str, Any]) -> str:
    """How the model of a condition is scored: a mode, or what is done to its hidden attention before (`zero all`)."""
    return next((condition[name] for name in SCORINGS if name in condition), "window")


# ------------------------------------------------------------------------------------------------------ statistics


@dataclass
class Estimate:
    """The score of a condition: one number per seed, and their mean with its 95% interval (None, None if unknown)."""

    scores: list[float]
    low: float | None = None
    high: float | None = None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.mean(self.scores)


@functools.lru_cache
def t_quantile(freedom: int) -> float:
    """Half-width of a 95% t-interval in standard errors, from a million draws (to about 0.3%)."""
    return float(np.quantile(np.abs(np.random.default_rng(0).standard_t(freedom, 1_000_000)), 0.95))


class Results:
    """The runs of a results file."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.settings: dict[str, Any] = report["settings"]
        self.runs: list[dict[str, Any]] = report["runs"]
        self.spreads = {dataset: self._pooled(dataset) for dataset in DATASETS}

    def _pooled(self, dataset: str) -> tuple[float, int]:
        """Standard deviation between seeds, pooled over the trainings of a data set, and its degrees of freedom."""
        groups: dict[str, list[float]] = {}
        for run in self.runs:
            if run["dataset"] == dataset and "window" in run["scores"]:  # policies that are broken on purpose vary less
                groups.setdefault(run["arguments"], []).append(run["scores"]["window"]["normalized_score_mean"])
        several = [scores for scores in groups.values() if len(scores) > 1]
        freedom = sum(len(scores) - 1 for scores in several)
        squares = sum((len(scores) - 1) * statistics.variance(scores) for scores in several)
        return (math.sqrt(squares / freedom) if freedom else math.nan), freedom

    def of(self, dataset: str, condition: dict[str, Any]) -> list[dict[str, Any]]:
        """The runs of a condition on a data set that were scored in its mode."""
        arguments = train_arguments(self.settings, condition)
        found = [run for run in self.runs if (run["dataset"], run["arguments"]) == (dataset, arguments)]
        return [run for run in found if scoring(condition) in run["scores"]]

    def estimate(self, dataset: str, condition: dict[str, Any]) -> Estimate | None:
        """The score of a condition; None before any of its runs is done."""
        runs = self.of(dataset, condition)
        scores = [run["scores"][scoring(condition)]["normalized_score_mean"] for run in runs]
        if not scores:
            return None
        spread, freedom = self.spreads[dataset]
        if not freedom:
            return Estimate(scores)
        half, mean = t_quantile(freedom) * spread / math.sqrt(len(scores)), statistics.mean(scores)
        return Estimate(scores, mean - half, mean + half)


def verdict(claim: Sequence[str], first: Estimate | None, second: Estimate | None) -> tuple[str, str]:
    """What two measured conditions say about a claim, in few words and as a sentence; nothing where intervals overlap.

    Args:
        claim: the names of the conditions around a key of `RELATIONS`.
    """
    name, relation, other = claim
    if first is None or second is None or None in (first.low, second.low):
        return UNMEASURED, f"{name} against {other}: {UNMEASURED}."
    assert first.low is not None and first.high is not None and second.low is not None and second.high is not None
    numbers = f"{shown(first)} against {shown(second)}"
    if first.low <= second.high and second.low <= first.high:
        limit = (first.high - first.low + second.high - second.low) / 2
        found = ", and the paper found none" if relation == "alike" else ""
        sentence = f"Between {name} and {other} {UNTOLD}{found}: {numbers}"
        return UNTOLD, f"{sentence}; only one of {limit:.0f} points or more could have been seen."
    higher, lower = (name, other) if first.mean > second.mean else (other, name)
    if relation == "against":
        label = f"{higher} scores higher"
        return label, f"{higher} scores higher than {lower}: {numbers}."
    label = AGREES if relation != "alike" and higher == name else DISAGREES
    return label, f"{higher} scores higher than {lower}, which {label}: {numbers}."


def shown(estimate: Estimate | None) -> str:
    """A score with its interval."""
    if estimate is None:
        return "–"
    interval = "" if estimate.low is None else f" ({estimate.low:.1f} to {estimate.high:.1f})"
    return f"{estimate.mean:.1f}{interval}"


# ------------------------------------------------------------------------------------------------------------ cost


@dataclass
class Cost:
    """What time one thing takes at each context length, in milliseconds."""

    name: str
    contexts: list[int]
    milliseconds: list[float]

    def growth(self) -> tuple[int, int, float]:
        """The longest context, one a tenth as long, and how many times the cost of the one is that of the other."""
        last = self.contexts[-1]
        tenth = self.contexts.index(last // 10)
        return last, self.contexts[tenth], self.milliseconds[-1] / self.milliseconds[tenth]


def costs(quantity: str) -> list[Cost]:
    """Medians of a quantity of benchmarks/scaling.py, model by model."""
    found: dict[str, Cost] = {}
    for row in read(SCALING)["results"]:
        if quantity in row:
            cost = found.setdefault(row["name"], Cost(row["name"], [], []))
            cost.contexts.append(row["steps"])
            cost.milliseconds.append(row[quantity]["median"])
    return list(found.values())


def cost_text() -> str:
    """What benchmarks/scaling.py measured, and whether that is linear: at most a tenth more than proportional."""
    lines = []
    for quantity, what in (("training_step_ms", "training step"), ("decision_ms", "decision")):
        for cost in costs(quantity):
            long, short, growth = cost.growth()
            linear = "linear at most" if growth <= 1.1 * long / short else "more than linear"
            lines.append(f"* {cost.name}, {what}: at K = {long} {growth:.1f} times that of K = {short}: {linear}.\n")
    ours = costs("training_step_ms")[0].growth()
    label = AGREES if ours[2] <= 1.1 * ours[0] / ours[1] else DISAGREES
    head = (
        "\nCost (training step and decision, measured by `python benchmarks/scaling.py` on an otherwise idle machine,"
    )
    return f"{head} not from these runs): a cost of DeMa that is linear in K {label}.\n\n" + "".join(lines)


# ------------------------------------------------------------------------------------------------------------ page


HEADER = """# The papers' questions, asked again

Small experiments on the questions of DeMa's paper (arXiv 2405.12094) and its neighbours. Unless a condition says
otherwise: {steps} steps of {batch} windows of K = {context} time steps, preset `{preset}` with N = {states}, learning
rate {rate}, {episodes} episodes in window mode with the last checkpoint. The papers train for 100,000 steps: what is
said here is said of short trainings. {done} of {total} scores are measured.

Scores are D4RL's normalised returns: the mean over episodes, then over seeds ({seeds}). Intervals are 95% t-intervals
over seeds, with the standard deviation between seeds pooled over all trainings on a data set ({spreads}), which takes
it to be the same for all. **Where two intervals overlap no claim is made**; the sentences follow from that rule.

"""
FOOTER = """
## How to repeat it

One question: `python benchmarks/paper_questions.py configs/questions/{example}.yaml --halfcheetah PATH`; all of them
without the file. The page and its figures from the results alone: `python benchmarks/paper_questions.py --render`.
Every run with its arguments is in [paper_questions.json](../benchmarks/results/paper_questions.json).
{versions}
"""


def page(report: dict[str, Any], questions: Sequence[Question], figures: str = "findings") -> str:
    """The page as text."""
    results, settings = Results(report), report["settings"]
    asked = {
        (dataset, seed, train_arguments(settings, condition), scoring(condition))
        for question in questions
        for condition in question.conditions.values()
        for dataset in DATASETS
        for seed in SEEDS
    }
    done = {(run["dataset"], run["seed"], run["arguments"], how) for run in results.runs for how in run["scores"]}
    spreads = [
        f"{spread:.1f} points on {dataset}, {freedom} degrees of freedom"
        for dataset, (spread, freedom) in results.spreads.items()
        if freedom
    ]
    text = HEADER.format(
        steps=f"{int(settings['max_steps']):,}",
        batch=settings["per_device_train_batch_size"],
        context=settings["context_length"],
        preset=settings["preset"],
        states=settings["state_size"],
        rate=settings["learning_rate"],
        episodes=settings["eval_episodes"],
        done=len(done & asked),
        total=len(asked),
        seeds=", ".join(map(str, SEEDS)),
        spreads="; ".join(spreads) or "not known yet",
    )
    text += table(["claim", *DATASETS], [row for question in questions for row in summary(question, results)])
    for question in questions:
        text += section(question, results, figures)
    versions = ", ".join(f"{name} {number}" for name, number in report.get("versions", {}).items())
    return text + FOOTER.format(example=questions[0].name, versions=versions and f"Made with {versions}.")


def summary(question: Question, results: Results) -> list[list[str]]:
    """One line a claim: what each data set says about it."""
    rows = []
    for claim in question.claims:
        name, relation, other = claim
        labels = [verdict(claim, *estimates(claim, question, results, dataset))[0] for dataset in DATASETS]
        rows.append([f"[{name} {RELATIONS[relation][0]} {other}](#{anchor(question.title)})", *labels])
    return rows


def estimates(
    claim: Sequence[str], question: Question, results: Results, dataset: str
) -> tuple[Estimate | None, Estimate | None]:
    """The scores of both conditions of a claim."""
    first, _, second = claim
    return (
        results.estimate(dataset, question.conditions[first]),
        results.estimate(dataset, question.conditions[second]),
    )


def section(question: Question, results: Results, figures: str) -> str:
    """One question: figure, table, verdicts."""
    text = f"\n## {question.title}\n\n{question.question}\n\nThe paper: {question.paper}\n\n"
    text += question.remark and f"Here: {question.remark}\n\n"
    text += f"![{question.question}]({figures}/{question.name}.png)\n\n"
    heads = [cell for dataset in DATASETS for cell in (dataset, "each seed", "held-out loss")]
    text += table(["", "parameters", *heads], [row(name, question, results) for name in question.conditions]) + "\n"
    for dataset in DATASETS:
        for claim in question.claims:
            sentence = verdict(claim, *estimates(claim, question, results, dataset))[1]
            text += f"* {dataset}: {sentence}\n"
    return text + (cost_text() if question.cost else "")


def row(name: str, question: Question, results: Results) -> list[str]:
    """The cells of a condition."""
    condition = question.conditions[name]
    of = {dataset: results.of(dataset, condition) for dataset in DATASETS}
    first = next((run for runs in of.values() for run in runs), None)
    cells = [name, "–" if first is None else f"{first['num_parameters']:,}"]
    for dataset, runs in of.items():
        estimate = results.estimate(dataset, condition)
        seeds = ", ".join(f"{score:.1f}" for score in estimate.scores) if estimate else "–"
        loss = f"{statistics.mean(run['eval_loss'] for run in runs):.4f}" if runs else "–"
        cells += [shown(estimate), seeds, loss]
    return cells


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text cells."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def anchor(title: str) -> str:
    """The name by which a page links to one of its titles."""
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter == "-")


# --------------------------------------------------------------------------------------------------------- figures


def draw(report: dict[str, Any], questions: Sequence[Question], folder: Path) -> None:
    """One picture a question, in a folder."""
    results = Results(report)
    folder.mkdir(parents=True, exist_ok=True)
    for question in questions:
        figure(question, results).savefig(folder / f"{question.name}.png", dpi=110)


def figure(question: Question, results: Results) -> Figure:
    """A panel for each data set with the conditions below each other; one more where the cost is asked for too."""
    panels = len(DATASETS) + question.cost
    height = 1.7 + 0.34 * max(len(question.conditions), 3) + 0.16 * len(question.claims)
    picture = Figure(figsize=(2.2 + 3.9 * panels, height), layout="constrained")
    picture.suptitle(question.question, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes = picture.subplots(1, panels)
    for number, (dataset, panel) in enumerate(zip(DATASETS, axes, strict=False)):
        scores(panel, question, results, dataset, names=number == 0)
    if question.cost:
        cost_panel(axes[-1])
    marks = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))  # one of each
    if marks:
        picture.legend(marks.values(), marks, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    return picture


def scores(panel: Axes, question: Question, results: Results, dataset: str, names: bool) -> None:
    """The scores of all conditions on a data set."""
    for place, condition in enumerate(question.conditions.values()):
        estimate = results.estimate(dataset, condition)
        if estimate is None:
            panel.text(0.02, place, "not measured yet", transform=panel.get_yaxis_transform(), va="center", fontsize=8)
            continue
        if estimate.low is not None and estimate.high is not None:
            panel.plot([estimate.low, estimate.high], [place] * 2, color="#9db7d5", linewidth=7, solid_capstyle="butt",
                       label="95% interval of the mean", zorder=1)  # fmt: skip
        panel.plot(estimate.scores, [place] * len(estimate.scores), "o", color=COLORS[1], markersize=4,
                   label="one trained model (seed)", zorder=3)  # fmt: skip
        panel.plot([estimate.mean], [place], "|", color="#1f3552", markersize=15, markeredgewidth=2.5,
                   label="mean over seeds", zorder=2)  # fmt: skip
    panel.set_yticks(range(len(question.conditions)), list(question.conditions) if names else [])
    panel.set_ylim(len(question.conditions) - 0.5, -0.5)
    low, high = panel.get_xlim()
    panel.set_xlim(min(low, 0), 1.03 * high)  # not to magnify small differences
    lines = [dataset]
    for claim in question.claims:
        label, _ = verdict(claim, *estimates(claim, question, results, dataset))
        asked = f"{claim[0]} {RELATIONS[claim[1]][1]} {claim[2]}"
        lines.append(f"{asked}: {label}" if claim[1] == "against" else f"paper: {asked}; here: {label}")
    panel.set_title("\n".join(lines), loc="left", fontsize=8.5)
    panel.set_xlabel("normalised score: higher is better", fontsize=9)
    finish(panel, "x")


def cost_panel(panel: Axes) -> None:
    """Time of one decision against the context length."""
    for color, cost in zip(COLORS, costs("decision_ms"), strict=False):
        panel.loglog(cost.contexts, cost.milliseconds, "o-", markersize=3.5, color=color, label=cost.name)
    panel.set_title("milliseconds of one decision: lower is better", loc="left", fontsize=8.5)
    panel.set_xlabel("context length K (time steps)", fontsize=9)
    panel.legend(fontsize=8, frameon=False)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter("{x:g}")
    finish(panel, "both")


def finish(panel: Axes, grid: Any) -> None:
    """What all panels share."""
    panel.grid(axis=grid, color="#e6e8eb", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=9)
