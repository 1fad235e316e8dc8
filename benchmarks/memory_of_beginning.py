"""What keeps a clue, and what loses it? `python benchmarks/memory_of_beginning.py RUN ...`; docs/memory.md.

Two episodes of a T-Maze that differ in their first observation alone, followed through one corridor by each checkpoint,
as `hf-decision-mamba inspect RUN --memory` follows them. In the results (results/memory_of_beginning.json), at about
160 steps of the corridor, evenly spread on a logarithmic axis:

* `signal`: how far apart the recurrent states of the two are, in Euclid's distance, of all layers together.
* `drift`: how far the mean of both has moved since the first decision, likewise.
* `margins`: had the junction come next, the logit of the right turn less that of the wrong one, of each of the two.
  Below 0 it would have turned wrongly.

The checkpoints of the results are the two of model_cards/ and seed 1 of the same models, undilated, in memory.yaml.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from measuring import save
from tqdm import tqdm

from hf_decision_mamba import DecisionMambaPolicy
from hf_decision_mamba.analysis.episodes import play_episodes
from hf_decision_mamba.analysis.memory import memory_of_beginning
from hf_decision_mamba.tasks.t_maze import T_MAZE


def together(layers: Any) -> list[float]:
    """Distances (layers, n) in each layer's states as those in all of them, four digits."""
    return [float(f"{distance:.4g}") for distance in np.linalg.norm(layers, axis=0)]


def follow(folder: Path, length: int) -> dict[str, Any]:
    """What two beginnings leave behind in one checkpoint."""
    policy = DecisionMambaPolicy.from_pretrained(folder, "recurrent")
    played = play_episodes(policy, T_MAZE, 1.0, 2, seed=0, progress=False, env_kwargs={"length": length})
    found = memory_of_beginning(policy, played)
    firsts = played.trajectories.observations[played.trajectories.starts]
    clues = [int(firsts[played.numbers.index(number)][:2].argmax()) for number in found.episodes]
    turns = found.answers[:, :, 1:]  # action 0 walks on
    margins = [turns[:, twin, clue] - turns[:, twin, 1 - clue] for twin, clue in enumerate(clues)]
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return {
        "preset": training["preset"],
        "time_dilation": training["arguments"].get("time_dilation"),
        "seed": training["arguments"]["seed"],
        "steps": found.steps.tolist(),
        "signal": together(found.signal),
        "drift": together(found.drift),
        "margins": [[float(f"{margin:.4g}") for margin in of] for of in margins],
    }


def main() -> None:
    """Follow, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--length", type=int, default=100_000, help="steps of the corridor")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = [follow(folder, arguments.length) for folder in tqdm(arguments.checkpoints, unit="model")]
    save(
        "what two beginnings of an episode leave behind in a model's recurrent states",
        path=arguments.output,
        size={"length": arguments.length},
        results=results,
        targets=[],
    )


if __name__ == "__main__":
    main()
