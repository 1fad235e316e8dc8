"""Write docs/benchmarks.md and its picture from benchmarks/results/*.json: `python docs/make_benchmarks.py`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from hf_decision_mamba.reporting.tables import markdown_lines

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PATH, PICTURE = Path(__file__).with_name("benchmarks.md"), Path(__file__).with_name("scaling.svg")
SECTIONS = {
    "training_step": "One training step",
    "training_loop": "The loop around it",
    "decision": "One decision",
    "control_loop": "A control loop",
    "scaling": "Cost against the context length",
    "batched_evaluation": "Scoring many episodes",
    "cpu_kernels": "Why the kernels are not simpler",
}
HEADER = """# Benchmarks

What our models cost on a CPU, beside their peers: transformers' Decision Transformer and transformers' Mamba. Every
section is one command that measured its lines in turn, round by round; ratios mean more than numbers. A median stands
with its quartiles and the number of measurements; the results file holds the extremes too. What was aimed at is listed
with what was reached, met or not. Written by `python docs/make_benchmarks.py`.
"""
DECISIONS = """Compiled code is this package's largest burden, so whatever is within 10% of something simpler goes. What
stays:

* The vector type (`vector_cpu.py`), instead of plain numba loops, which LLVM vectorises only while they are short.
* torch's own OpenMP team, instead of numba's threads: their layer `omp` ends forked processes that use it, their layer
  `workqueue` a process in which two Python threads scan at once.
* The fused decision, instead of the exported file, which catches up only where many environments meet a wide model,
  and which reads no windows.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others numbers."""
    return "".join(f"{line}\n" for line in markdown_lines(head, [*rows], left=1))


def number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def shown(values: dict[str, float]) -> list[str]:
    """Median, quartiles and count as cells."""
    median, low, high = (number(values[name]) for name in ("median", "q1", "q3"))
    return [median, f"{low} to {high}", f"{values['n']}"]


SPREAD = ["median", "quartiles", "n"]


def training_step(report: dict[str, Any]) -> str:
    """One line per model."""
    size, rows = report["size"], []
    for name, values in report["results"].items():
        rows.append([name, f"{values['parameters']:,}" if "parameters" in values else "", *shown(values)])
    intro = "Milliseconds of zero_grad, forward, loss, backward, clipping and the optimiser's update: "
    intro += f"{size['batch']} windows of\nK {size['steps']} time steps, Hopper's dimensions.\n\n"
    return intro + table(["", "parameters", *SPREAD], rows)


def training_loop(report: dict[str, Any]) -> str:
    """The loop, the processes and the memory."""
    names = {
        "loop": "a step in train.py's loop",
        "bare": "the bare step",
        "draw": "drawing one batch of windows",
        "save": "a checkpoint",
        "evaluate": "the loss of the held-out episodes",
    }
    size = report["size"]
    text = (
        f"Milliseconds in the default run ({size['batch']} windows of {size['steps']} time steps; a checkpoint every "
    )
    text += f"{size['save_steps']:,} steps, held-out loss every {size['eval_steps']:,}):\n\n"
    text += table(["", *SPREAD], [[names[name], *shown(values)] for name, values in report["milliseconds"].items()])
    text += "\nSeconds of whole processes, kernels compiled before:\n\n"
    return text + table(["", *SPREAD], [[name, *shown(values)] for name, values in report["seconds"].items()])


def decision(report: dict[str, Any]) -> str:
    """Latency in one environment, then throughput in many, for both numbers of threads."""
    size, rows, default = report["size"], report["results"], report["default_threads"]
    threads = sorted({row["threads"] for row in rows}, reverse=True)

    def line(name: str, count: int) -> list[str]:
        of = {row["threads"]: row for row in rows if (row["name"], row["rows"]) == (name, count)}
        cells = [name, *(cell for number in threads for cell in shown(of[number])[:2])]
        return cells + ([f"{of[default]['per_second']:,.0f}"] if count > 1 else [])

    head = ["", *(cell for number in threads for cell in (f"{number} thread{'s' * (number > 1)}", "quartiles"))]
    text = f"Milliseconds of `policy.act` in one environment; windows of {size['steps']} time steps:\n\n"
    text += table(head, [line(name, 1) for name in dict.fromkeys(row["name"] for row in rows if row["rows"] == 1)])
    many = size["rows"]
    text += (
        f"\nMilliseconds of one `policy.act` in {many} environments, and decisions per second with torch's own number "
    )
    text += f"of threads, {default}:\n\n"
    names = dict.fromkeys(row["name"] for row in rows if row["rows"] == many)
    return text + table([*head, "decisions/s"], [line(name, many) for name in names])


def control_loop(report: dict[str, Any]) -> str:
    """Of each checkpoint and mode the time of a decision, how much of it is computing, and how late it began."""
    size, rows = report["size"], []
    names = {"decision_ms": "a decision", "processor_ms": "of this computing", "jitter_ms": "begins after its tick by"}
    for row in report["results"]:
        for name, words in names.items():
            if name in row:
                of = f"{row['name']}, {row['mode']}: " if name == "decision_ms" else ""
                rows.append([of + words, *(number(value) for value in row[name].values())])
    missed = [f"{row['missed']} ({row['name']}, {row['mode']})" for row in report["results"] if "missed" in row]
    pace = f"{size['rate_hz']:g} times a second" if missed else "one after the other"
    text = f"Milliseconds of `policy.act`, {size['decisions']:,} times, {pace}, after `policy.warm_up()`, one thread.\n"
    cores = "One core (`taskset -c 0`)" if size["cores"] == 1 else f"{size['cores']} cores"
    text += f"{cores} of a machine that did other things too (load {report['machine']['load_average_before']:.1f} "
    text += "before): what a decision takes\nbeyond its computing is the time of other processes, and they may keep it "
    text += "from beginning, too.\n\n"
    text += table(["", *report["results"][0]["decision_ms"]], rows)
    return text + (f"\nNot made when the next tick came: {', '.join(missed)}.\n" if missed else "")


def scaling(report: dict[str, Any]) -> str:
    """One table per quantity, contexts down, models across."""
    size, rows = report["size"], report["results"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    of = {(row["name"], row["steps"]): row for row in rows}
    text = f"![Cost against the context length]({PICTURE.name})\n\nTraining: {size['batch']} windows of K time steps, "
    text += f"{size['tokens_per_step']} tokens each, in every model. Decisions: one environment.\n\n"
    head, lines = ["K", *(f"{name}: decision, ms" for name in names)], []
    for name in names:
        if "training_step_ms" in of[name, size["contexts"][0]]:
            head += [f"{name}: training step, ms", "memory, KiB a token"]
    for steps in size["contexts"]:
        cells = [str(steps), *(number(of[name, steps]["decision_ms"]["median"]) for name in names)]
        for name in names:
            row = of[name, steps]
            if "training_step_ms" in row:
                memory = f"{row['memory_bytes_per_token'] / 1024:.1f}"
                cells += [number(row["training_step_ms"]["median"]), memory]
        lines.append(cells)
    return text + table(head, lines)


def batched_evaluation(report: dict[str, Any]) -> str:
    """One line per mode and number of environments."""
    rows = []
    for row in report["results"]:
        share = row["environment_share"]["median"]
        speeds = (f"{row['episodes_per_second']['median']:.2f}", f"{row['steps_per_second']['median']:,.0f}")
        count = str(row["episodes_per_second"]["n"])
        rows.append([f"{row['mode']} mode, {row['rows']} at once", *speeds, f"{share:.0%}", count])
    text = f"{report['what'][0].upper()}{report['what'][1:]} with `{report['size']['checkpoint']}`, medians:\n\n"
    return text + table(["", "episodes/s", "steps/s", "of the time in the environment", "n"], rows)


def cpu_kernels(report: dict[str, Any]) -> str:
    """The decisions, and for each question how much slower the simpler ways are."""
    text = DECISIONS
    questions = {
        "vectors": "Milliseconds of processor time, one thread:",
        "decision": "The same, for the exported file in onnxruntime:",
        "threads": "Milliseconds that pass, with torch's number of threads:",
    }
    for question, intro in questions.items():
        lines = [line for line in report["results"] if line["question"] == question]
        if not lines:
            text += f"\nNot measured: {question}, which needs an idle machine (`--questions {question}`).\n"
            continue
        names = list(lines[0]["times"])
        head = ["", "width", *names, *(f"{name} / {names[0]}" for name in names[1:])]
        rows = []
        for line in lines:
            medians = [number(line["times"][name]["median"]) for name in names]
            rows.append([line["what"], str(line["width"]), *medians, *map(number, line["ratios"].values())])
        text += f"\n{intro}\n\n" + table(head, rows)
    return text


def target(line: dict[str, Any]) -> list[str]:
    """A target as cells: what it is, what was reached, the limit, whether it is met."""
    unit = line["unit"] and f" {line['unit']}"
    limit = f"{'≥' if line['at_least'] else '≤'} {line['limit']:g}{unit}"
    return [line["what"], f"{number(line['value'])}{unit}", limit, "met" if line["met"] else "**not met**"]


def footer(report: dict[str, Any], stem: str) -> str:
    """Targets, what is on the other side of each ratio, command and machine."""
    head = ["what is aimed at", "reached", "target", ""]
    aims = [target(line) for line in report["targets"]]
    text = "\n" + (table(head, aims) + "\n" if aims else "")
    text += "".join(f"* {name}: {note}.\n" for name, note in report["notes"].items())
    machine, versions = report["machine"], ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    text += f"\n`{report['command']}`, [results](../benchmarks/results/{stem}.json): {machine['cores']} cores of "
    return text + f"{machine['processor']}, {machine['threads']} threads; {versions}.\n"


def render() -> str:
    """The page as text."""
    text = HEADER
    for stem, title in SECTIONS.items():
        if not (RESULTS / f"{stem}.json").exists():
            continue  # not measured yet
        report = load(stem)
        text += f"\n## {title}\n\n{globals()[stem](report)}{footer(report, stem)}"
    return text


def load(stem: str) -> dict[str, Any]:
    """One results file."""
    return json.loads((RESULTS / f"{stem}.json").read_text(encoding="utf-8"))


def draw() -> None:
    """The log-log picture of scaling.json."""
    matplotlib.rcParams["svg.hashsalt"] = "scaling"  # the same picture is the same file
    report = load("scaling")
    rows, panels = report["results"], {
        "training step, ms": lambda row: row.get("training_step_ms", {}).get("median"),
        "memory of a step, KiB a token": lambda row: (row["memory_bytes_per_token"] or 0) / 1024 or None,
        "one decision, ms": lambda row: row["decision_ms"]["median"],
    }  # fmt: skip
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    names = list(dict.fromkeys(row["name"] for row in rows))
    colors = dict(zip(names, ("#4c78a8", "#e4572e", "#54a24b"), strict=False))
    for axes, (title, value) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name in names:
            points = [(row["steps"], value(row)) for row in rows if row["name"] == name and value(row) is not None]
            if points:
                axes.loglog(*zip(*points, strict=True), "o-", markersize=4, color=colors[name], label=name)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("context length K (time steps)")
        axes.grid(color="#e6e8eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()  # the last panel has every line
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
    draw()
    print(PATH)
