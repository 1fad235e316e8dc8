"""Score 64 episodes of Hopper: `python benchmarks/batched_evaluation.py`; results/batched_evaluation.json.

The published checkpoint in `evaluate_policy`, whose environments' steps and resets are timed apart from the rest, which
is the policy and the bookkeeping. In each of its modes, with 20 environments at once (the default) and with 64.
"""

import argparse
import time
from pathlib import Path
from typing import Any
from unittest import mock

from measuring import save, spread, target
from tqdm import tqdm

from hf_decision_mamba import DecisionMambaPolicy
from hf_decision_mamba.evaluation import rollouts as evaluation
from hf_decision_mamba.evaluation.environments import make_environments

CHECKPOINT = Path(__file__).parents[1] / "model_cards" / "dema-b3ld-hopper-medium-replay"
ENV_ID, EPISODES = "Hopper-v5", 64


class Timed:
    """A vector environment that adds up the seconds spent in it."""

    def __init__(self, envs: Any):
        self.envs, self.seconds = envs, 0.0

    def step(self, *arguments: Any) -> Any:
        """As the environment's."""
        return self._timed(self.envs.step, *arguments)

    def reset(self, **arguments: Any) -> Any:
        """As the environment's."""
        return self._timed(self.envs.reset, **arguments)

    def _timed(self, call: Any, *arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = call(*arguments, **options)
        self.seconds += time.perf_counter() - start
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.envs, name)


def evaluate(mode: Any, rows: int, steps: int | None) -> dict[str, float]:
    """Seconds of one evaluation, those spent in the environment, and how many steps it counted."""
    policy = DecisionMambaPolicy.from_pretrained(CHECKPOINT, mode)
    envs = Timed(make_environments(ENV_ID, rows, steps))
    with mock.patch.object(evaluation, "make_environments", lambda *_, **__: envs):
        start = time.perf_counter()
        result = evaluation.evaluate_policy(
            policy, ENV_ID, episodes=EPISODES, num_envs=rows, max_episode_steps=steps, progress=False
        )
        seconds = time.perf_counter() - start
    counted = sum(row["length"] for row in result.episodes)
    return {"seconds": seconds, "environment_seconds": envs.seconds, "environment_steps": counted}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max_episode_steps", type=int, help="for a quick look; whole episodes by default")
    arguments = parser.parse_args()
    kinds = [(mode, rows) for mode in ("window", "recurrent") for rows in (20, EPISODES)]
    runs: dict[tuple[str, int], list[dict[str, float]]] = {kind: [] for kind in kinds}
    evaluate("window", 20, 20)  # loads kernels and environments
    for _ in tqdm(range(arguments.rounds), unit="round", leave=False):
        for kind in kinds:
            runs[kind].append(evaluate(*kind, arguments.max_episode_steps))

    results: list[dict[str, Any]] = [
        {
            "mode": mode,
            "rows": rows,
            "episodes_per_second": spread(EPISODES / run["seconds"] for run in of),
            "steps_per_second": spread(run["environment_steps"] / run["seconds"] for run in of),
            "environment_share": spread(run["environment_seconds"] / run["seconds"] for run in of),
            "runs": of,
        }
        for (mode, rows), of in runs.items()
    ]
    for row in results:
        values = (row[name]["median"] for name in ("episodes_per_second", "steps_per_second", "environment_share"))
        print("{mode:10} {rows:3} at once".format(**row), "{:7.2f} episodes/s {:9,.0f} steps/s {:5.1%}".format(*values))
    save(
        f"{EPISODES} episodes of {ENV_ID}",
        {"share": "of the wall-clock time that is spent in the environments' step and reset; the rest is policy"},
        size={"checkpoint": CHECKPOINT.name, "max_episode_steps": arguments.max_episode_steps},
        results=results,
        targets=[
            target(
                f"time in the environment, {row['mode']} mode, {row['rows']} at once",
                100 * row["environment_share"]["median"],
                60,
                at_least=True,
                unit="%",
            )
            for row in results
        ],
    )


if __name__ == "__main__":
    main()
