"""The questions, what their runs say, and the page with its figures that says so; used by paper_questions.py.

A score is the mean over the episodes of one trained model; a condition's score is the mean over its seeds. Intervals
are 95% t-intervals over seeds, each from the spread of its own condition: some vary ten times as much as others.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from training_runs import ROOT, read

from hf_decision_mamba.evaluation.statistics import t_interval
from hf_decision_mamba.reporting.figures import fit_titles, legend_below, tidy

QUESTIONS = ROOT / "configs" / "questions"
SCALING = ROOT / "benchmarks" / "results" / "scaling.json"
#: The environment of each data set.
DATASETS = {"hopper-medium-replay": "Hopper-v5", "halfcheetah-medium-replay": "HalfCheetah-v5"}
SEEDS = (0, 1, 2, 3, 4)
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
TITLE = 8.5  # points


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
    """What is known of a condition: one number per seed, and their mean with its 95% interval (None, None: unknown)."""

    values: list[float]
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        """The t-interval, which takes two values or more; None of none."""
        return cls(list(values), *t_interval(values)) if values else None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.mean(self.values)

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        assert self.low is not None and self.high is not None
        return (self.high - self.low) / 2

    def holds(self, value: float) -> bool:
        """Whether the value is in the interval; any is while that is not known."""
        return self.low is None or self.high is None or self.low <= value <= self.high

    def overlaps(self, other: "Estimate") -> bool:
        """Whether the intervals have a value in common."""
        return abs(self.mean - other.mean) <= self.half + other.half


@dataclass
class Comparison:
    """What is known of two conditions.

    Args:
        first: the score of the one.
        second: the score of the other.
        difference: of the scores of the same model, where the conditions are two ways to score the same trainings.
        loss: how much higher the held-out loss of the first is in the same seed, that is on the same episodes; a share.
    """

    first: Estimate | None
    second: Estimate | None
    difference: Estimate | None = None
    loss: Estimate | None = None

    @property
    def measured(self) -> bool:
        """Whether both have an interval."""
        return all(estimate is not None and estimate.low is not None for estimate in (self.first, self.second))

    @property
    def told_apart(self) -> bool:
        """Whether the intervals do not overlap, or that of the difference does not hold 0."""
        if self.difference is not None:
            return not self.difference.holds(0.0)
        assert self.first is not None and self.second is not None
        return not self.first.overlaps(self.second)


class Results:
    """The runs of a results file."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.settings: dict[str, Any] = report["settings"]
        self.runs: list[dict[str, Any]] = report["runs"]

    def of(self, dataset: str, condition: dict[str, Any]) -> list[dict[str, Any]]:
        """The runs of a condition on a data set that were scored in its mode."""
        arguments = train_arguments(self.settings, condition)
        found = [run for run in self.runs if (run["dataset"], run["arguments"]) == (dataset, arguments)]
        return [run for run in found if scoring(condition) in run["scores"]]

    def estimate(self, dataset: str, condition: dict[str, Any]) -> Estimate | None:
        """The score of a condition; None before any of its runs is done."""
        how = scoring(condition)
        return Estimate.of([run["scores"][how]["normalized_score_mean"] for run in self.of(dataset, condition)])

    def compare(self, dataset: str, one: dict[str, Any], other: dict[str, Any]) -> Comparison:
        """Two conditions on a data set."""
        found = Comparison(self.estimate(dataset, one), self.estimate(dataset, other))
        runs, others = ({run["seed"]: run for run in self.of(dataset, each)} for each in (one, other))
        pairs = [(runs[seed], others[seed]) for seed in runs if seed in others]
        if train_arguments(self.settings, one) == train_arguments(self.settings, other):
            how = [scoring(each) for each in (one, other)]
            scores = [[run["scores"][name]["normalized_score_mean"] for name in how] for run, _ in pairs]
            found.difference = Estimate.of([first - second for first, second in scores])
        else:
            found.loss = Estimate.of([first["eval_loss"] / second["eval_loss"] - 1 for first, second in pairs])
        return found


def verdict(claim: Sequence[str], found: Comparison) -> tuple[str, str]:
    """What two conditions say about a claim, in few words and as a sentence; nothing where they are not told apart.

    Args:
        claim: the names of the conditions around a key of `RELATIONS`.
    """
    name, relation, other = claim
    first, second = found.first, found.second
    if not found.measured or first is None or second is None:
        return UNMEASURED, f"{name} against {other}: {UNMEASURED}."
    numbers = f"{shown(first)} against {shown(second)}"
    seen = first.half + second.half
    if found.difference is not None:
        numbers += f", a difference of {shown(found.difference)} in the same model"
        seen = found.difference.half
    if not found.told_apart:
        none = ", and the paper found none" if relation == "alike" else ""
        sentence = f"Between {name} and {other} {UNTOLD}{none}: {numbers}"
        return UNTOLD, f"{sentence}; only one of {seen:.1f} points or more could have been seen."
    higher, lower = (name, other) if first.mean > second.mean else (other, name)
    if relation == "against":
        return f"{higher} scores higher", f"{higher} scores higher than {lower}: {numbers}."
    agrees = AGREES if relation != "alike" and higher == name else DISAGREES
    return agrees, f"{higher} scores higher than {lower}, which {agrees}: {numbers}."


def label(claim: Sequence[str], found: Comparison) -> str:
    """The verdict in few words, and how the held-out losses compare where that is known."""
    told = found.loss is not None and not found.loss.holds(0.0)
    return verdict(claim, found)[0] + (f"; loss {100 * found.loss.mean:+.1f}%" if told and found.loss else "")


def loss_sentence(claim: Sequence[str], found: Comparison) -> str:
    """Which of two conditions has the lower held-out loss; nothing where that is not known."""
    name, _, other = claim
    if found.loss is None or found.loss.low is None or found.loss.high is None:
        return ""
    low, high = 100 * found.loss.low, 100 * found.loss.high
    if found.loss.holds(0.0):
        return f" Held-out loss: {UNTOLD} ({low:+.1f}% to {high:+.1f}%)."
    low, high = sorted(map(abs, (low, high)))
    comparison = "lower" if found.loss.mean < 0 else "higher"
    percent = f"{100 * abs(found.loss.mean):.1f}% ({low:.1f} to {high:.1f})"
    return f" Held-out loss: that of {name} is {percent} {comparison} than that of {other}."


def shown(estimate: Estimate | None) -> str:
    """A mean with its interval, and of how many seeds it is where that is not all."""
    if estimate is None:
        return "–"
    notes = [] if estimate.low is None else [f"{estimate.low:.1f} to {estimate.high:.1f}"]
    notes += [] if len(estimate.values) == len(SEEDS) else [f"{len(estimate.values)} of {len(SEEDS)} seeds"]
    return f"{estimate.mean:.1f}" + (f" ({', '.join(notes)})" if notes else "")


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
    answer = AGREES if ours[2] <= 1.1 * ours[0] / ours[1] else DISAGREES
    head = (
        "\nCost (training step and decision, measured by `python benchmarks/scaling.py` on an otherwise idle machine,"
    )
    return f"{head} not from these runs): a cost of DeMa that is linear in K {answer}.\n\n" + "".join(lines)


# ------------------------------------------------------------------------------------------------------------ page


HEADER = """# The papers' questions, asked again

Small experiments on the questions of DeMa's paper (arXiv 2405.12094) and its neighbours. Unless a condition says
otherwise: {steps} steps of {batch} windows of K = {context} time steps, preset `{preset}` with N = {states}, learning
rate {rate}, {episodes} episodes in window mode with the last checkpoint. The papers train for 100,000 steps: what is
said here is said of short trainings. {done} of {total} scores are measured.

Scores are D4RL's normalised returns: the mean over episodes, then over seeds ({seeds}). Intervals are 95% t-intervals
over seeds, each from the spread of its own condition. **Where two intervals overlap no claim is made**; the sentences
follow from that rule. Where two conditions are two ways to score the same models, the interval of the difference within
a model decides instead. The held-out loss (mean squared error of the actions in 5% of the episodes, others for every
seed) is compared within a seed, and named where its interval does not hold 0 (as that of the first over that of the
second): it is told apart far better than scores are, but a lower loss need not score higher. Of {claims} claims on two
data sets, one or two are expected to be told apart by chance. Rules and number of seeds were settled when the scores of
the first three seeds had been seen.

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
        claims=sum(len(question.claims) for question in questions),
        seeds=", ".join(map(str, SEEDS)),
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
        labels = [label(claim, compared(claim, question, results, dataset)) for dataset in DATASETS]
        rows.append([f"[{name} {RELATIONS[relation][0]} {other}](#{anchor(question.title)})", *labels])
    return rows


def compared(claim: Sequence[str], question: Question, results: Results, dataset: str) -> Comparison:
    """Both conditions of a claim."""
    first, _, second = claim
    return results.compare(dataset, question.conditions[first], question.conditions[second])


def section(question: Question, results: Results, figures: str) -> str:
    """One question: figure, table, verdicts."""
    text = f"\n## {question.title}\n\n{question.question}\n\nThe paper: {question.paper}\n\n"
    text += question.remark and f"Here: {question.remark}\n\n"
    text += f"![{question.question}]({figures}/{question.name}.png)\n\n"
    heads = [cell for dataset in DATASETS for cell in (dataset, "held-out loss")]
    text += table(["", "parameters", *heads], [row(name, question, results) for name in question.conditions]) + "\n"
    for dataset in DATASETS:
        for claim in question.claims:
            found = compared(claim, question, results, dataset)
            text += f"* {dataset}: {verdict(claim, found)[1]}{loss_sentence(claim, found)}\n"
    return text + (cost_text() if question.cost else "")


def row(name: str, question: Question, results: Results) -> list[str]:
    """The cells of a condition."""
    condition = question.conditions[name]
    first = next((run for dataset in DATASETS for run in results.of(dataset, condition)), None)
    cells = [name, "–" if first is None else f"{first['num_parameters']:,}"]
    for dataset in DATASETS:
        trained = results.of(dataset, condition) if scoring(condition) == "window" else []  # the loss is of windows
        losses = [run["eval_loss"] for run in trained]
        cells += [shown(results.estimate(dataset, condition)), f"{statistics.mean(losses):.4f}" if losses else "–"]
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
    legend_below(picture, axes[0], ncols=3)
    fit_titles(picture, TITLE)
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
        panel.plot(estimate.values, [place] * len(estimate.values), "o", color=COLORS[1], markersize=4,
                   label="one trained model (seed)", zorder=3)  # fmt: skip
        panel.plot([estimate.mean], [place], "|", color="#1f3552", markersize=15, markeredgewidth=2.5,
                   label="mean over seeds", zorder=2)  # fmt: skip
    panel.set_yticks(range(len(question.conditions)), list(question.conditions) if names else [])
    panel.set_ylim(len(question.conditions) - 0.5, -0.5)
    low, high = panel.get_xlim()
    panel.set_xlim(min(low, 0), 1.03 * high)  # not to magnify small differences
    lines = [dataset]
    for claim in question.claims:
        found = label(claim, compared(claim, question, results, dataset))
        asked = f"{claim[0]} {RELATIONS[claim[1]][1]} {claim[2]}"
        lines.append(f"{asked}: {found}" if claim[1] == "against" else f"paper: {asked}; here: {found}")
    panel.set_title("\n".join(lines), loc="left", fontsize=TITLE)
    panel.set_xlabel("normalised score: higher is better", fontsize=9)
    finish(panel, "x")


def cost_panel(panel: Axes) -> None:
    """Time of one decision against the context length."""
    for color, cost in zip(COLORS, costs("decision_ms"), strict=False):
        panel.loglog(cost.contexts, cost.milliseconds, "o-", markersize=3.5, color=color, label=cost.name)
    panel.set_title("milliseconds of one decision: lower is better", loc="left", fontsize=TITLE)
    panel.set_xlabel("context length K (time steps)", fontsize=9)
    panel.legend(fontsize=8, frameon=False)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter("{x:g}")
    finish(panel, "both")


def finish(panel: Axes, grid: Any) -> None:
    """What all panels share."""
    tidy(panel, grid)
    panel.tick_params(labelsize=9)
