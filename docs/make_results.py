"""Write docs/results.md from the results of the studies: `python docs/make_results.py`."""

import json
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

import hf_decision_mamba as hdm
from hf_decision_mamba.data import WindowDataset
from hf_decision_mamba.evaluation.statistics import interval_text
from hf_decision_mamba.reporting.tables import markdown_lines
from hf_decision_mamba.training.report import drawn_by_return

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GOOD = 2000  # a return of hopper-medium-replay that few episodes reach
PATH = Path(__file__).with_name("results.md")

PAGE = """# Results

What has been measured, by the rules of [protocol.md](protocol.md): the unit is a trained model, intervals are 95%
intervals over seeds by Student's t, nothing is chosen by its score. A number is the mean over the last checkpoints of
each run. Studies go on; how many seeds stand behind a number is said beside it. Memory has
[a page of its own](memory.md).
"""


def main() -> None:
    """Write the page."""
    PATH.write_text(render(), encoding="utf-8")
    print(PATH)


def render() -> str:
    """Write the page as text: a section for each study that has results."""
    sections = _default_run, _recipe, _nine, _maze, _ogbench, _popgym, _control_rate
    return PAGE + "".join(section() for section in sections)


def _study(name: str) -> dict[str, Any] | None:
    """Read the results of a study, or None where there are none."""
    path = RESULTS / name / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _summaries(study: dict[str, Any], evaluation: str) -> list[dict[str, Any]]:
    return [row for row in study["summary"] if row["evaluation"] == evaluation and row["scores"]]


def _default_run() -> str:
    studies = {name: _study(name) for name in ("default_run_alike", "default_run_2500", "default_run")}
    lines = []
    for study in studies.values():
        assert study is not None
        base = study["study"]["base"]
        drawn = "good episodes more often" if "return_temperature" in base else "all alike"
        for evaluation in study["study"]["evaluations"]:
            (row,) = _summaries(study, evaluation)
            lines.append([drawn, f"{base['max_steps']:,}", f"{row['cpu_minutes']:.1f}", evaluation, *_spread(row)])
    head = ["windows drawn", "steps", "CPU minutes", "scored", "mean", "95% interval", "lowest", "each seed"]
    links = ",\n".join(f"[{name}](../benchmarks/results/{name}/README.md)" for name in studies)
    data = hdm.load_trajectories(ROOT / "datasets" / "hopper-medium-replay")
    good = int((data.returns() > GOOD).sum())
    other = "../benchmarks/results/default_run_context_20/evaluation.json"
    score = json.loads((PATH.parent / other).read_text(encoding="utf-8"))["results"][0]["normalized_score_mean"]
    windows = WindowDataset(data, base["context_length"], return_temperature=base["return_temperature"])
    return f"""
## The default run

`accelerate launch train.py` on hopper-medium-replay: {data.num_episodes:,} episodes, {good} of them with a return
above {GOOD:,}. What made its seeds agree is that windows of good episodes are drawn more often
([Hong et al. 2023](https://arxiv.org/abs/2306.13085)), {drawn_by_return(windows)},
and that it ends before it knows these by heart. The number of steps was chosen by scores of seeds 0 to 9; seeds 10 to
19 chose nothing. "Window" is the score of the protocol, "last checkpoint" that of the command itself. "Spread" begins
with twenty times as much noise. "Recurrent" is the same model, acting with a carried state, for which it was not
trained. The context of {base["context_length"]} steps was chosen after [one run with 20]({other}) had scored
{score:.1f}, all drawn alike.

{_table(head, lines)}
{links}.
"""


def _recipe() -> str:
    study = _study("recipe")
    if study is None:
        return ""
    lines = [[row["variant"], str(len(row["seeds"])), *_spread(row)] for row in _summaries(study, "window")]
    steps = study["study"]["base"]["max_steps"]
    return f"""
## What makes seeds agree

The default run ended after {steps:,} steps. "Alike" draws every window as often, "full windows" none that is
padded; at a temperature, windows of good episodes come more often; "best tenth" leaves the other episodes out.

{_table(["windows", "seeds", "mean", "95% interval", "lowest", "each seed"], lines)}
[recipe](../benchmarks/results/recipe/README.md){_unfinished(study)}
"""


def _nine() -> str:
    return _across("nine", "Nine data sets", "window", "Normalised scores.")


def _maze() -> str:
    study = _study("maze")
    text = "Share of episodes that reach their goal, in %, in PointMaze's UMaze."
    if study is not None and all(row["mean"] > 0.9 for row in _summaries(study, "success")):
        text += " Everything gets there, what sees one step included: this maze tells no model from another."
    return _across("maze", "A maze, by goal and by return", "success", text, factor=100)


def _ogbench() -> str:
    """Write a table of models by data sets, with the state that is carried beside the window."""
    study = _study("ogbench")
    if study is None:
        return ""
    plan, lines, loss = study["study"], [], {}
    for model in plan["models"]:
        line = [model]
        for data in plan["data"]:
            for evaluation in plan["evaluations"]:
                rows = [row for row in _summaries(study, evaluation) if (row["data"], row["variant"]) == (data, model)]
                line.append(_cell(rows[0] if rows else None, 100, 0))
            losses = {
                run["seed"]: run["eval_loss"] for run in study["runs"] if (run["data"], run["variant"]) == (data, model)
            }
            loss[data, model] = np.mean([*losses.values()]) if losses else np.nan
            line.append(f"{loss[data, model]:.4f}" if losses else "-")
        lines.append(line)
    head = [f"{data}, {what}" for data in plan["data"] for what in (*plan["evaluations"], "held-out loss")]
    changed = {
        (model, data): f"{100 * (loss[data, f'{model}, 10 steps'] / loss[data, f'{model}, 1 step'] - 1):+.1f}%"
        for model in ("DeMa", "DMM")
        for data in plan["data"]
    }
    best = max(row["mean"] for how in plan["evaluations"] for row in _summaries(study, how))
    said = (
        "Does a past pay where there was a plan? After so short a training, on a tenth of OGBench's data, no model "
        f"succeeds in more than {100 * best:.0f}% of the episodes, and success tells none from another. Ten steps "
        f"instead of one change DeMa's loss by {changed['DeMa', 'play']} on play and by {changed['DeMa', 'noisy']} on "
        "noisy, where each episode has a level of noise of its own, and DMM's, which is larger everywhere, by "
        f"{changed['DMM', 'play']} and {changed['DMM', 'noisy']}: more where there was no plan, so nothing here says "
        "that one is seen in the past."
    )
    return f"""
## A plan that the data had

OGBench's cube-single, by goal: share of episodes in which the cube is where it was to go, in %. Those who made "play"
follow a plan to its end, whatever happens; "noisy" decides from the state alone, with noise. BC sees one step (an MLP
of state and goal); so many steps see the others in windows, or, with a carried state, all since the start. In brackets
the interval over seeds, and how many there are. The loss is the mean squared error of the actions of held-out episodes,
the same ones for all models of a seed.

{fill(said, 120)}

{_table(["", *head], lines)}
[ogbench](../benchmarks/results/ogbench/README.md){_unfinished(study)}
"""


def _popgym() -> str:
    text = (
        "Mean return of popgym's RepeatPrevious, which asks for the card 4, 32 or 64 cards ago, as the "
        "game counts; the best is 1, whoever guesses gets -0.5."
    )
    return _across("popgym", "Remembering the k-th last card", "return", text, digits=2)


def _control_rate() -> str:
    """Write a table of models by how long a step lasts, with the returns without and with a time scale."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("control_rate_*.json"))]
    if not reports:
        return ""
    returns: dict[tuple[str, str, float], dict[tuple[str, bool], float]] = {}
    for row in (row for report in reports for row in report["rows"]):
        data, _, seed = row["run"].split("/")
        cell = returns.setdefault((data, row["mode"], row["step_lasts"]), {})
        cell[seed, row["time_scale"] is not None] = row["return_mean"]
    ratios = sorted({ratio for _, _, ratio in returns})
    differences, lines = [], []
    for data, mode in dict.fromkeys(key[:2] for key in returns):
        line = [data, mode]
        for ratio in ratios:
            cell = returns.get((data, mode, ratio), {})
            means = [
                np.mean([value for (_, scaled), value in cell.items() if scaled is how])
                for how in (False, True)
                if any(scaled is how for _, scaled in cell)
            ]
            line.append(" → ".join(f"{mean:,.0f}" for mean in means) or "-")
            if len(means) > 1:
                differences.append([cell[seed, True] - cell[seed, False] for seed in sorted({key[0] for key in cell})])
        lines.append(line)
    better, worse = (sum(sign * np.mean(by_seed) > 0 for by_seed in differences) for sign in (1, -1))
    always, never = (sum(all(sign * x > 0 for x in by_seed) for by_seed in differences) for sign in (1, -1))
    said = (
        "A selective SSM has a clock: its step sizes Δ could be multiplied (`time_scale`) where a robot decides at "
        "another rate than its data. Does that help? Each model plays its environment with steps that last longer or "
        "shorter than in training, for the same simulated time, without a time scale → with it; rewards are rates, and "
        f"count as long as their step lasts. Of {len(differences)} cases the time scale makes {better} better and "
        f"{worse} worse in the mean over {len(differences[0])} seeds, {always} better and {never} worse in every one. "
    )
    said += (
        "So a policy has no such argument."
        if worse > better
        else "Which is too little to say that it helps."
        if better < 0.75 * len(differences)
        else "So it helps."
    )
    head = ["", "mode", *(f"{ratio:g}x" for ratio in ratios)]
    links = ", ".join(
        f"[{report['command'].split()[-1].split('/')[-1]}](../{report['command'].split()[-1]})" for report in reports
    )
    return f"""
## Another control rate

{fill(said, 120)}

{_table(head, lines)}
{links}; the models are those of [control_rate.yaml](../configs/studies/control_rate.yaml).
"""


def _across(name: str, title: str, evaluation: str, text: str, factor: float = 1, digits: int = 1) -> str:
    """Write a table of data sets by models, with the interval and the seeds of each; nothing where there are none."""
    study = _study(name)
    if study is None:
        return ""
    rows = {(row["data"], row["variant"]): row for row in _summaries(study, evaluation)}
    models = [model for model in study["study"]["models"] if any(model == known for _, known in rows)]
    lines = [
        [data, *(_cell(rows.get((data, model)), factor, digits) for model in models)]
        for data in study["study"]["data"]
        if any(data == known for known, _ in rows)
    ]
    return f"""
## {title}

{fill(f"{text} In brackets the interval over seeds, and how many there are.", 120)}

{_table(["", *models], lines)}
[{name}](../benchmarks/results/{name}/README.md){_unfinished(study)}
"""


def _unfinished(study: dict[str, Any]) -> str:
    count = len(study["unfinished"])
    return f"; {count} of its runs are not finished." if count else "."


def _cell(row: dict[str, Any] | None, factor: float, digits: int) -> str:
    if row is None:
        return "-"
    ends = interval_text(row["ci95"], lambda end: f"{factor * end:.{digits}f}")
    return f"{factor * row['mean']:.{digits}f} ({'' if ends == '-' else f'{ends}; '}{len(row['seeds'])})"


def _spread(row: dict[str, Any]) -> list[str]:
    each = ", ".join(f"{score:.0f}" for score in row["scores"])
    return [f"{row['mean']:.1f}", interval_text(row["ci95"]), f"{min(row['scores']):.1f}", each]


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "".join(f"{line}\n" for line in markdown_lines(head, lines))


if __name__ == "__main__":
    main()
