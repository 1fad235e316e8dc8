"""Write docs/protocol.md, the rules of a study with the measurement behind each: `python docs/make_protocol.py`.

The measurements are those of 70 models on each of two data sets (14 conditions, 5 seeds), and of one comparison.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PATH = Path(__file__).with_name("protocol.md")
HOPPER, HALFCHEETAH = "hopper-medium-replay", "halfcheetah-medium-replay"

PAGE = """# Protocol

How `hf-decision-mamba study` scores, and why. The measurements are of 140 models of the package, 14 kinds of
them with five seeds on two data sets, each scored by 20 episodes
([paper_questions.json](../benchmarks/results/paper_questions.json)), and of
[comparison.json](../benchmarks/results/comparison.json). What nothing was measured for is said without a
number. The programs behind both have become
files of [configs/studies](../configs/studies): at the commits c87be1a and 580526b they are
`python benchmarks/paper_questions.py` and `python benchmarks/compare_architectures.py`.

## The unit is a trained model

Models that differ in nothing but their seed: on hopper-medium-replay the standard deviation of their scores is
{seeds} at the median of the 14 kinds (largest: {largest}), and the scores of all 70 lie between {low} and
{high}, a quarter of them below {quarter}, a quarter above {upper}. The 95% interval over the 20 episodes of one
model reaches {half} to either side at the median. So **intervals are over seeds**: Student's t on one data set;
over several data sets the interquartile mean, the performance profile and the probability of improvement, with
a bootstrap that draws the seeds of each data set by themselves (Agarwal et al. 2021). A figure shows every
seed.

## Episodes may be one

A policy without chance of its own, from starts that hardly differ, plays one trajectory again and again. The
returns of 20 episodes deviate by less than 5% of their mean in {alike_hopper} of 70 models on
hopper-medium-replay and in {alike_cheetah} of 70 on halfcheetah-medium-replay, by less than 1% in {same_hopper}
and {same_cheetah}. So **few episodes of several checkpoints** are worth more than many of one, `evaluate` and
the study's page say where episodes are one trajectory, and an evaluation with other `env_kwargs` (Hopper's
`reset_noise_scale`) spreads the starts, in a column of its own.

## The target return is one that the data know

On halfcheetah-medium-replay all 70 models were asked for {target}, the papers' target; the best of them reached
{best} on average, and {frozen} of 70 less than half of that. So a study **names its target returns, the best
return of the data** or below, for each data set. The papers' targets stay in the papers' settings files.

## Nothing is chosen by its score

A run's score is the mean over its **last five checkpoints**, one every 2% of the training, and no best of them:
the best of several is higher than any of them deserves. All seeds that were trained count.

## The held-out loss chooses no model

Among the 14 kinds of one seed, held-out loss and score have a rank correlation of {rank_hopper} on
hopper-medium-replay and {rank_cheetah} on halfcheetah-medium-replay (means of five seeds; -1 would be a perfect
choice). It is shown, and no verdict stands on it.

## One learning rate, by a rule that was stated before

Scores of one seed at three learning rates, and of another seed at the last of them, on hopper-medium-replay:

{rates}
A rate that is chosen by such scores is chosen by luck. So the rate is **one for each architecture**,
found once, on one data set, by a rule that looks at no score, and is the same everywhere after that. Steps,
windows and warm-up are the same for all that are compared.

## What it costs is said

Parameters and CPU minutes of the training stand beside every score, so that "at equal size" and "at equal time"
can be read too. Runs of a machine that does other work cost more; compare those of one study.

Written by `python docs/make_protocol.py`.
"""


def render() -> str:
    """The page as text."""
    runs = json.loads((RESULTS / "paper_questions.json").read_text(encoding="utf-8"))["runs"]
    hopper, cheetah = ([run for run in runs if run["dataset"] == name] for name in (HOPPER, HALFCHEETAH))
    scores = [_window(run)["normalized_score_mean"] for run in hopper]
    halves = [np.diff(_window(run)["normalized_score_ci95"]).item() / 2 for run in hopper]
    returns = [_window(run)["return_mean"] for run in cheetah]
    deviations = [np.std(of_kind, ddof=1) for of_kind in _by_kind(hopper).values()]
    low, quarter, upper, high = np.percentile(scores, [0, 25, 75, 100])
    (target,) = {_window(run)["target_return"] for run in cheetah}
    return PAGE.format(
        seeds=f"{np.median(deviations):.0f}",
        largest=f"{max(deviations):.0f}",
        low=f"{low:.0f}",
        high=f"{high:.0f}",
        quarter=f"{quarter:.0f}",
        upper=f"{upper:.0f}",
        half=f"{np.median(halves):.1f}",
        alike_hopper=_alike(hopper, 0.05),
        alike_cheetah=_alike(cheetah, 0.05),
        same_hopper=_alike(hopper, 0.01),
        same_cheetah=_alike(cheetah, 0.01),
        target=f"{target:,.0f}",
        best=f"{max(returns):,.0f}",
        frozen=sum(value < max(returns) / 2 for value in returns),
        rank_hopper=f"{_rank_correlation(hopper):.2f}",
        rank_cheetah=f"{_rank_correlation(cheetah):.2f}",
        rates=_rates(),
    )


def _window(run: dict[str, Any]) -> dict[str, Any]:
    scores: dict[str, Any] = run["scores"]["window"]
    return scores


def _by_kind(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    kinds = defaultdict(list)
    for run in runs:
        kinds[run["arguments"]].append(_window(run)["normalized_score_mean"])
    return kinds


def _alike(runs: list[dict[str, Any]], share: float) -> int:
    """How many models' returns deviate by less than a share of their mean."""
    return sum(_window(run)["return_std"] < share * abs(_window(run)["return_mean"]) for run in runs)


def _rank_correlation(runs: list[dict[str, Any]]) -> float:
    """Spearman's, of held-out loss and score among the kinds of a seed, averaged over seeds."""
    found = []
    for seed in {run["seed"] for run in runs}:
        ours = [run for run in runs if run["seed"] == seed]
        values = [[run["eval_loss"] for run in ours], [_window(run)["normalized_score_mean"] for run in ours]]
        found.append(np.corrcoef(np.argsort(np.argsort(values, axis=1), axis=1))[0, 1])
    return float(np.mean(found))


def _rates() -> str:
    """The table of scores by learning rate."""
    runs = json.loads((RESULTS / "comparison.json").read_text(encoding="utf-8"))["runs"]
    columns = sorted({(run["seed"], run["learning_rate"]) for run in runs})
    lines = ["| model | " + " | ".join(f"{rate:g}, seed {seed}" for seed, rate in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for model in dict.fromkeys(run["model"] for run in runs):
        ours = {(run["seed"], run["learning_rate"]): run for run in runs if run["model"] == model}
        cells = " | ".join(f"{ours[column]['normalized_score_mean']:.1f}" for column in columns)
        lines.append(f"| {model} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
    print(PATH)
