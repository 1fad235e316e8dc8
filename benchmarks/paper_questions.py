"""Answer the papers' questions by experiments: `python benchmarks/paper_questions.py [QUESTION.yaml ...]`.

A question is a file of configs/questions: conditions, each some settings of train.py on top of the common `SETTINGS`.
Every condition is trained on every data set with every seed, on one thread, `--parallel` of them at a time; conditions
that several questions share are trained once. The command goes on where it was interrupted: what is done stands in
results/paper_questions.json. From that file it writes docs/findings.md and its figures; `--render` does only this.
"""

import argparse
import json
import os
import platform
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

from findings import DATASETS, SEEDS, SETTINGS, Question, draw, load_questions, page, scoring, train_arguments
from tqdm import tqdm
from training_runs import ROOT, read, run_logged, train

RESULTS = ROOT / "benchmarks" / "results" / "paper_questions.json"
PAGE = ROOT / "docs" / "findings.md"
HOPPER, HALFCHEETAH = DATASETS
IDENTITY = ("dataset", "seed", "arguments")
KEPT = ("target_return", "episodes", "return_mean", "return_std", "normalized_score_mean", "normalized_score_ci95")


@dataclass(frozen=True)
class Run:
    """One training, whichever questions ask for it."""

    dataset: str
    seed: int
    arguments: str

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.dataset}-seed{self.seed}-{sha256(self.arguments.encode()).hexdigest()[:8]}"

    @property
    def other(self) -> "Run":
        """The same on the other data set."""
        return Run(HALFCHEETAH if self.dataset == HOPPER else HOPPER, self.seed, self.arguments)


#: A training, and how it is scored.
Job = tuple[Run, str]


def wanted(questions: Iterable[Question], datasets: Sequence[str], settings: dict[str, Any]) -> list[Job]:
    """What answers the questions, the most useful first: seed by seed, data set by data set, trainings before the rest.

    What needs the models of both data sets comes last of a seed, and not at all where there is only one.
    """
    conditions = [condition for question in questions for condition in question.conditions.values()]
    jobs = {}
    for dataset in datasets:
        for seed in SEEDS:
            for condition in sorted(conditions, key=lambda condition: scoring(condition) != "window"):
                if "hidden_attention" not in condition or len(datasets) > 1:
                    job = Run(dataset, seed, train_arguments(settings, condition)), scoring(condition)
                    jobs[job] = (seed, "hidden_attention" in condition)
    return sorted(jobs, key=lambda job: jobs[job])


def missing(jobs: Iterable[Job], done: Iterable[dict[str, Any]]) -> list[Job]:
    """The jobs whose scores are not among the entries of a results file."""
    scored = {(Run(*(entry[name] for name in IDENTITY)), how) for entry in done for how in entry["scores"]}
    return [job for job in jobs if job not in scored]


class Laboratory:
    """The runs in one folder, each trained once."""

    def __init__(self, folder: Path, sources: dict[str, str]) -> None:
        self.folder, self.sources = folder, sources
        self.locks: dict[Run, Lock] = defaultdict(Lock)

    def trained(self, run: Run) -> tuple[Path, dict[str, Any], dict[str, Any]]:
        """The folder of a run, trained and scored in window mode, and what its results files hold."""
        where = [f"--dataset_name={self.sources[run.dataset]}", f"--env_id={DATASETS[run.dataset]}"]
        where += ["--return_scale=1000"]  # Decision Transformer's for MuJoCo
        with self.locks[run]:
            output_dir = self.folder / run.folder
            return output_dir, *train(output_dir, [*shlex.split(run.arguments), *where, f"--seed={run.seed}"])

    def measure(self, job: Job) -> dict[str, Any]:
        """The job's entry in the results file."""
        run, how = job
        output_dir, training, evaluation = self.trained(run)
        if how != "window":
            evaluation = self._scored(run, how, output_dir, evaluation["episodes_per_target"])
        return {
            "dataset": run.dataset,
            "seed": run.seed,
            "arguments": run.arguments,
            "num_parameters": training["num_parameters"],
            "eval_loss": training["eval_loss"],
            "train_runtime_seconds": training["train_runtime_seconds"],
            "scores": {how: {name: evaluation["results"][0][name] for name in KEPT}},
            "versions": {**training["versions"], **evaluation["versions"]},
        }

    def _scored(self, run: Run, how: str, output_dir: Path, episodes: int) -> dict[str, Any]:
        """Score a trained model in another way, unless that was done."""
        scores = output_dir / how.replace(" ", "-")
        if not (scores / "evaluation.json").is_file():
            options = [f"--episodes={episodes}", f"--output={scores}"]
            if how == "recurrent":
                command = ["-m", "hf_decision_mamba.cli", "evaluate", str(output_dir), "--mode=recurrent"]
            else:
                other, _, _ = self.trained(run.other)
                command = ["benchmarks/hidden_attention.py", str(output_dir), *how.split()]
                options += [f"--other={other}", f"--seed={run.seed}"]
            run_logged([*command, *options], scores)
        return read(scores / "evaluation.json")


def save(path: Path, report: dict[str, Any], entry: dict[str, Any]) -> None:
    """Add a score to the report and write it."""
    report["versions"] = entry.pop("versions")
    known = {tuple(run[name] for name in IDENTITY): run for run in report["runs"]}
    identity = tuple(entry[name] for name in IDENTITY)
    scores = known[identity]["scores"] if identity in known else {}
    known[identity] = {**entry, "scores": {**scores, **entry["scores"]}}
    position = list(DATASETS).index
    report["runs"] = [known[key] for key in sorted(known, key=lambda key: (position(key[0]), *key[1:]))]
    write(path, report)


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the results file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".json.part")
    draft.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def render(report: dict[str, Any]) -> str:
    """The page as text."""
    return page(report, load_questions())


def main() -> int:
    """Train what is missing, then write the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", type=Path, help="files of configs/questions (default: all)")
    parser.add_argument("--halfcheetah", metavar="PATH", help="halfcheetah-medium-replay; without it hopper only")
    parser.add_argument("--parallel", type=int, default=os.cpu_count(), help="runs at a time, each on one thread")
    parser.add_argument("--render", action="store_true", help="train nothing, write the page and its figures")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "paper_questions", help="where the runs are kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="its figures lie in a folder beside it")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of train.py other than the common ones"
    )
    arguments = parser.parse_args()

    settings = SETTINGS | dict(item.split("=", 1) for item in arguments.set)
    report: dict[str, Any] = {"settings": settings, "runs": []}
    if arguments.results.is_file():
        report = read(arguments.results)
    else:
        write(arguments.results, report)
    if report["settings"] != settings:
        parser.error(f"{arguments.results} holds runs of other settings; give another file as --results.")
    sources = {HOPPER: str(ROOT / "datasets" / HOPPER)}
    if arguments.halfcheetah:
        sources[HALFCHEETAH] = str(Path(arguments.halfcheetah).resolve())
    jobs = wanted(load_questions(arguments.questions), list(sources), settings)
    todo = [] if arguments.render else missing(jobs, report["runs"])
    if todo:
        report["machine"] = {"cores": os.cpu_count(), "processor": platform.machine(), "parallel": arguments.parallel}
    laboratory, failures = Laboratory(arguments.runs.resolve(), sources), 0
    with ThreadPoolExecutor(arguments.parallel) as pool, tqdm(total=len(todo), unit="score") as progress:
        try:
            for future in as_completed([pool.submit(laboratory.measure, job) for job in todo]):
                try:
                    save(arguments.results, report, future.result())
                except RuntimeError as error:
                    failures += 1
                    tqdm.write(str(error))
                progress.update()
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    arguments.page.write_text(page(report, load_questions()), encoding="utf-8")
    draw(report, load_questions(), arguments.page.with_suffix(""))
    print(f"{arguments.page}; {failures} failed" if failures else arguments.page)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
