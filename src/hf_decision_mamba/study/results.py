"""What the runs of a study say: a row a run and evaluation, intervals over seeds, tables, pictures and files."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.statistics import interval_text, t_interval
from ..reporting.figures import drawing, number, save_figure
from ..reporting.files import TRAINING_FILE, portable, read_json, replacing_together, write_json
from ..reporting.tables import count_in_words, markdown_lines, table_lines
from .plan import COST_FILE, Evaluation, PlannedRun, Study, slug
from .scoring import is_scored, scores_of, summarize
from .statistics import interquartile_mean, probability_of_improvement, with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS_FILE, ROWS_FILE, PAGE_FILE = "results.json", "results.parquet", "README.md"
#: Scores that mean the same on every data set, so that they may be put together.
COMPARABLE = ("normalized_score", "success_rate")
_MOST_PAIRS = 10  # of variants; of more, each is compared with the first
_KINDS = {
    "normalized_score": "normalised score",
    "return": "return",
    "success_rate": "share of successful episodes",
}

Row = Mapping[str, Any]


@dataclass
class StudyResult:
    """What a study has measured so far.

    Attributes:
        name: of the study.
        folder: of its runs and results.
        rows: one a finished run and condition of an evaluation: `data`, `variant` (`model`, and its point of the
            `grid`), `seed`, `evaluation`, `condition`, `score` (None for a value that its sweep ended before), of the
            kind `score_kind`, and what it is made of; `num_parameters`, `cpu_minutes`, `folder`, ...
        unfinished: runs that have not ended, by folder, with the last line of their logs.
        content: the study's file.
        histories: losses, and scores if rollouts were played, by step, of each finished run's folder.
        command: which repeats it; None where none does.
        failed: those of the unfinished runs that ended with an error in this call.
    """

    name: str
    folder: Path
    rows: list[dict[str, Any]]
    unfinished: dict[str, str] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    histories: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict, repr=False)
    command: str | None = None
    failed: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    def names(self, column: str) -> list[Any]:
        """Return the values of a column of the rows, each once, in order."""
        return list(dict.fromkeys(row[column] for row in self.rows))

    def conditions(self) -> list[tuple[str, str]]:
        """Return evaluation and condition of all rows, each once, in order."""
        return list(dict.fromkeys((row["evaluation"], row["condition"]) for row in self.rows))

    def scores(self, data: str, variant: str, evaluation: str, condition: str = "") -> list[float]:
        """Return the scores of a variant's seeds on a data set."""
        asked = (data, variant, evaluation, condition)
        names = ("data", "variant", "evaluation", "condition")
        found = [row["score"] for row in self.rows if tuple(row[name] for name in names) == asked]
        return [score for score in found if score is not None]

    def summary(self) -> list[dict[str, Any]]:
        """Return each variant on each data set, by evaluation and condition: its seeds' scores, mean and interval.

        The interval is the 95 % t-interval over seeds; `[None, None]` of one seed.
        """
        summaries = []
        for evaluation, condition in self.conditions():
            for data in self.names("data"):
                for variant in self.names("variant"):
                    asked = {"evaluation": evaluation, "condition": condition, "data": data, "variant": variant}
                    rows = [row for row in self.rows if asked.items() <= row.items() and row["score"] is not None]
                    if rows:
                        scores = [row["score"] for row in rows]
                        summaries.append(
                            {
                                **asked,
                                "score_kind": rows[0]["score_kind"],
                                "seeds": [row["seed"] for row in rows],
                                "scores": scores,
                                "mean": _mean(scores),
                                "ci95": t_interval(scores),
                                "num_parameters": rows[0]["num_parameters"],
                                "cpu_minutes": _mean([row["cpu_minutes"] for row in rows]),
                            }
                        )
        return summaries

    def shared_data(self, evaluation: str, condition: str = "") -> list[str]:
        """Return the data sets on which every variant has a score, if these scores may be put together."""
        rows = [row for row in self.rows if (row["evaluation"], row["condition"]) == (evaluation, condition)]
        if any(row["score"] is not None and row["score_kind"] not in COMPARABLE for row in rows):
            return []
        variants = self.names("variant")
        return [
            data
            for data in self.names("data")
            if all(self.scores(data, variant, evaluation, condition) for variant in variants)
        ]

    def aggregate(self, evaluation: str, condition: str = "") -> list[dict[str, Any]]:
        """Return the interquartile mean of each variant over all `shared_data` and seeds.

        `iqm` has the 95 % interval `iqm_ci95` by stratified bootstrap over seeds.
        """
        found, data = [], self.shared_data(evaluation, condition)
        for variant in self.names("variant") if data else []:
            scores = [self.scores(name, variant, evaluation, condition) for name in data]
            value, low, high = with_interval(interquartile_mean, scores)
            found.append({"variant": variant, "data": data, "iqm": float(value), "iqm_ci95": _ends(low, high)})
        return found

    def improvement(self, evaluation: str, condition: str = "") -> list[dict[str, Any]]:
        """Return the probability that a model of one variant scores higher than one of another, for each pair.

        Averaged over all `shared_data`, with the 95 % interval by stratified bootstrap over seeds. Of many variants,
        each is compared with the first one only.
        """
        found, data, variants = [], self.shared_data(evaluation, condition), self.names("variant")
        pairs = [*combinations(variants, 2)]
        if len(pairs) > _MOST_PAIRS:
            pairs = [(variant, variants[0]) for variant in variants[1:]]
        for one, other in pairs if data else []:
            groups = [[self.scores(name, variant, evaluation, condition) for name in data] for variant in (one, other)]
            value, low, high = with_interval(probability_of_improvement, *groups)
            found.append({"variant": one, "over": other, "probability": float(value), "ci95": _ends(low, high)})
        return found

    def table(self) -> str:
        """Return the summary as plain text."""
        heads = ["data", "model", "evaluation", "score", "95% interval", "seeds", "parameters", "CPU minutes"]
        rows = [
            [
                entry["data"],
                entry["variant"],
                _title(entry["evaluation"], entry["condition"]),
                score_text(entry["mean"], entry["score_kind"]),
                interval_text(entry["ci95"], partial(score_text, kind=entry["score_kind"])),
                str(len(entry["seeds"])),
                f"{entry['num_parameters']:,}",
                number(entry["cpu_minutes"], 1),
            ]
            for entry in self.summary()
        ]
        lines = table_lines(heads, rows, left=3) if rows else ["no run is finished"]
        return "\n".join([*lines, *self._unfinished_lines()])

    def save(self) -> list[Path]:
        """Write results.parquet, results.json, README.md and the pictures into the study's folder.

        Returns:
            The files written; without matplotlib there are no pictures, and a warning says so.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        others = (ROWS_FILE, PAGE_FILE, "*.png")
        with replacing_together(self.folder, RESULTS_FILE, others) as draft:
            with drawing("the study", "pip install matplotlib"):
                for name, figure in self.figures():
                    save_figure(figure, draft / name)
            pictures = sorted(path.name for path in draft.glob("*.png"))
            plain = ("grid", "env_kwargs")
            rows = [{**row, **{name: json.dumps(row[name]) for name in plain}} for row in self.rows]
            pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), draft / ROWS_FILE)
            (draft / PAGE_FILE).write_text(page(self, pictures), encoding="utf-8", newline="\n")
            write_json(draft / RESULTS_FILE, self.to_dict())
            written = [path.name for path in draft.iterdir()]
        return [self.folder / name for name in sorted(written)]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON, and nothing of this machine's folders."""
        comparisons = [
            {
                "evaluation": evaluation,
                "condition": condition,
                "data": self.shared_data(evaluation, condition),
                "aggregate": self.aggregate(evaluation, condition),
                "probability_of_improvement": self.improvement(evaluation, condition),
            }
            for evaluation, condition in self.conditions()
        ]
        return {
            "study": _portable(self.content),
            "command": self.command,
            "machine": self.machine,
            "summary": self.summary(),
            "over_data_sets": [entry for entry in comparisons if entry["data"]],
            "unfinished": {folder: portable_line(line) for folder, line in self.unfinished.items()},
            "runs": self.rows,
        }

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield each picture with the name of its file.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .figures import figures_of

        yield from figures_of(self)

    def _unfinished_lines(self) -> list[str]:
        if not self.unfinished:
            return []
        shown = [f"{folder}: {portable_line(line) or 'not started'}" for folder, line in self.unfinished.items()]
        return ["", f"{count_in_words(len(shown), 'run')} not finished:", *shown]


def collect_results(study: Study, folder: Path, last_line: Any) -> StudyResult:
    """Read what the runs of a study have left so far.

    Args:
        last_line: gives the last line of the log in a run's folder.
    """
    result = StudyResult(study.name, folder, [], content=study.content)
    versions: dict[str, dict[str, None]] = {}
    hardware: dict[str, None] = {}
    for run in study.runs:
        where = folder / run.folder
        record = read_json(where / TRAINING_FILE)
        scored = [evaluation for evaluation in study.evaluations if record and is_scored(where, evaluation)]
        if len(scored) < len(study.evaluations):
            result.unfinished[run.folder] = last_line(where)
        if not scored:
            continue
        result.histories[run.folder] = record["history"]
        for name, version in record["versions"].items():
            versions.setdefault(name, {})[version] = None
        hardware[record["hardware"]] = None
        for evaluation in scored:
            result.rows += _rows(run, record, evaluation, where)
    result.machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "trained_on": [*hardware],
        "versions": {
            name: found[0] if len(found) == 1 else found for name, of in versions.items() for found in [[*of]]
        },
    }
    order = {evaluation.name: place for place, evaluation in enumerate(study.evaluations)}
    result.rows.sort(key=lambda row: order[row["evaluation"]])
    return result


def _rows(run: PlannedRun, record: Row, evaluation: Evaluation, where: Path) -> Iterator[dict[str, Any]]:
    kept, cost = scores_of(where, evaluation)["conditions"], read_json(where / COST_FILE)
    swept = next(iter(evaluation.sweep or {}), None)
    for condition in (condition for row in evaluation.conditions() for condition in row):
        entry = kept[condition.label]
        found = summarize(entry, evaluation)
        yield {
            "data": run.data,
            "variant": run.variant,
            "model": run.model,
            "grid": run.grid,
            "seed": run.seed,
            "evaluation": evaluation.name,
            "condition": condition.label,
            "swept": swept,
            "swept_value": None if swept is None else json.dumps(condition.value),
            "env_id": entry.get("env_id"),
            "env_kwargs": entry.get("env_kwargs"),
            "mode": entry.get("mode"),
            "target_return": entry.get("target_return"),
            **{name: found.get(name) for name in _FOUND},
            "num_parameters": record["num_parameters"],
            "cpu_minutes": cost["cpu_seconds"] / 60,
            "cpu_threads": cost["cpu_threads"],
            "steps": record["global_step"],
            "loss": record.get("loss"),
            "eval_loss": record.get("eval_loss"),
            "folder": run.folder,
        }


#: What `summarize` gives.
_FOUND = (
    *("score", "score_kind", "return_mean", "normalized_score", "success_rate"),
    *("checkpoint_scores", "checkpoint_steps", "episodes", "one_trajectory"),
)


def _schema() -> Any:
    import pyarrow as pa

    texts = ("data", "variant", "model", "grid")
    more = ("evaluation", "condition", "swept", "swept_value", "env_id", "env_kwargs", "mode")
    return pa.schema(
        [
            *((name, pa.string()) for name in texts),
            ("seed", pa.int64()),
            *((name, pa.string()) for name in more),
            ("target_return", pa.float64()),
            ("score", pa.float64()),
            ("score_kind", pa.string()),
            *((name, pa.float64()) for name in ("return_mean", "normalized_score", "success_rate")),
            ("checkpoint_scores", pa.list_(pa.float64())),
            ("checkpoint_steps", pa.list_(pa.int64())),
            *((name, pa.int64()) for name in ("episodes", "one_trajectory", "num_parameters")),
            ("cpu_minutes", pa.float64()),
            *((name, pa.int64()) for name in ("cpu_threads", "steps")),
            *((name, pa.float64()) for name in ("loss", "eval_loss")),
            ("folder", pa.string()),
        ]
    )


# ------------------------------------------------------------------------------------------------------------ texts


def page(result: StudyResult, pictures: Sequence[str]) -> str:
    """Return README.md: what was asked, tables of every data set and over all of them, pictures.

    Args:
        pictures: names of the files that were drawn.
    """
    runs = count_in_words(len(result.names("folder")), "run")
    lines = [f"# {result.name}", "", f"{runs} with scores, {len(result.unfinished)} not finished."]
    if result.command:
        lines += ["", f"```bash\n{result.command}\n```"]
    lines += ["", *_HOW]
    for evaluation in result.names("evaluation"):
        lines += ["", f"## {evaluation}", "", _protocol(result, evaluation)]
        rows = [row for row in result.rows if row["evaluation"] == evaluation]
        if rows[0]["swept"]:
            for data in result.names("data"):
                lines += ["", f"### {data}", "", *_sweep_table(result, evaluation, data)]
        else:
            for condition in dict.fromkeys(row["condition"] for row in rows):
                lines += _tables(result, evaluation, condition)
        lines += _pictures(pictures, f"-{slug(evaluation)}.png")
    lines += ["", "## Trainings", *_pictures(pictures, "learning_curves.png")] if result.rows else []
    lines += [f"\n```\n{line}\n```" for line in ["\n".join(result._unfinished_lines()).strip()] if line]
    return "\n".join(lines) + "\n"


_HOW = (
    "The score of a run is the mean over its last checkpoints, each of which plays a few episodes; none is chosen. The",
    "unit is a trained model: intervals are 95% intervals over seeds, by Student's t on one data set, by stratified",
    "bootstrap over several (Agarwal et al. 2021). CPU minutes are the process time of the training, interruptions",
    "included; [results.parquet](results.parquet) has a row a run, [results.json](results.json) everything.",
)


def _protocol(result: StudyResult, evaluation: str) -> str:
    rows = [row for row in result.rows if row["evaluation"] == evaluation and row["score"] is not None]
    if not rows:
        return "Nothing was played."
    first = rows[0]
    checkpoints = len(first["checkpoint_steps"])
    each = first["episodes"] // checkpoints
    alike, played = sum(row["one_trajectory"] for row in rows), sum(len(row["checkpoint_steps"]) for row in rows)
    said = (
        f"{count_in_words(checkpoints, 'checkpoint')} of {count_in_words(each, 'episode')} each, {first['mode']} mode; "
        f"the score is the {_KINDS[first['score_kind']]}."
    )
    if alike:
        said += (
            f" In {alike} of {played} checkpoints the episodes are one trajectory (within 1%): they say as much as one."
        )
    return said


def _tables(result: StudyResult, evaluation: str, condition: str) -> list[str]:
    """Return the tables of a condition: each data set, and all of them together."""
    lines = ["", f"**{condition}**"] if condition else []
    for data in result.names("data"):
        asked = {"evaluation": evaluation, "condition": condition, "data": data}
        cells = []
        for entry in result.summary():
            if asked.items() <= entry.items():
                kind = entry["score_kind"]
                cells.append(
                    [
                        entry["variant"],
                        f"{entry['num_parameters']:,}",
                        number(entry["cpu_minutes"], 1),
                        score_text(entry["mean"], kind),
                        interval_text(entry["ci95"], partial(score_text, kind=kind)),
                        ", ".join(score_text(score, kind) for score in entry["scores"]),
                    ]
                )
        if cells:
            heads = ["model", "parameters", "CPU minutes", "score", "95% interval", "each seed"]
            lines += ["", f"### {data}", "", *markdown_lines(heads, cells)]
    aggregate = result.aggregate(evaluation, condition)
    if aggregate and len(aggregate[0]["data"]) > 1:
        cells = [
            [entry["variant"], f"{entry['iqm']:.3g}", interval_text(entry["iqm_ci95"], "{:.3g}".format)]
            for entry in aggregate
        ]
        over = ", ".join(aggregate[0]["data"])
        lines += ["", f"### Over {over}", "", *markdown_lines(("model", "interquartile mean", "95% interval"), cells)]
    improvement = result.improvement(evaluation, condition)
    if improvement:
        share = "{:.2f}".format
        cells = [
            [entry["variant"], entry["over"], share(entry["probability"]), interval_text(entry["ci95"], share)]
            for entry in improvement
        ]
        heads = ["a model of", "scores higher than one of", "with probability", "95% interval"]
        lines += ["", *markdown_lines(heads, cells)]
    return lines


def _sweep_table(result: StudyResult, evaluation: str, data: str) -> list[str]:
    """Return the table of a sweep: a column a value, in each cell the mean, and each seed's score."""
    conditions = [condition for name, condition in result.conditions() if name == evaluation]
    cells = []
    for variant in result.names("variant"):
        row = [variant]
        for condition in conditions:
            scores = result.scores(data, variant, evaluation, condition)
            kinds = [r["score_kind"] for r in result.rows if r["evaluation"] == evaluation and r["score_kind"]]
            each = ", ".join(score_text(score, kinds[0]) for score in scores)
            row.append(f"{score_text(_mean(scores), kinds[0])} ({each})" if scores else "-")
        cells.append(row)
    return markdown_lines(("model", *conditions), cells)


def _pictures(pictures: Sequence[str], ending: str) -> list[str]:
    return [f"\n![{name.removesuffix('.png')}]({name})" for name in pictures if name.endswith(ending)]


def score_text(score: float, kind: str) -> str:
    """Return a score for reading."""
    return number(score, 1) if kind == "return" else f"{score:.{2 if kind == 'success_rate' else 1}f}"


def _title(evaluation: str, condition: str) -> str:
    return f"{evaluation}, {condition}" if condition else evaluation


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ends(low: float | None, high: float | None) -> list[float] | list[None]:
    return [None, None] if low is None or high is None else [float(low), float(high)]


def _portable(content: Any) -> Any:
    """Return a study's file without folders of this machine."""
    if isinstance(content, Mapping):
        return {str(name): _portable(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_portable(value) for value in content]
    return portable(content) if isinstance(content, str) else content


def portable_line(line: str) -> str:
    """Return a line of a log without folders of this machine."""
    return " ".join(portable(word) if word.startswith(("/", "~")) else word for word in line.split(" "))
