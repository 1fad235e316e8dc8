"""Score one condition of `hf-decision-mamba ablate`, with everything that paper_questions.py keeps of a score.

`python benchmarks/hidden_attention.py CHECKPOINT swap 0 --other CHECKPOINT --output FOLDER`
"""

import argparse
from pathlib import Path

from hf_decision_mamba import DecisionMambaPolicy
from hf_decision_mamba.analysis.ablation import CHANGES, ablated
from hf_decision_mamba.evaluation.rollouts import evaluate_policy


def main() -> None:
    """Change, score, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("change", choices=CHANGES)
    parser.add_argument("layer", help="counted from 0, or all")
    parser.add_argument("--other", required=True, help="checkpoint whose parameters `swap` takes")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of `randomize`")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    policy, other = (DecisionMambaPolicy.from_pretrained(path) for path in (arguments.checkpoint, arguments.other))
    layer = None if arguments.layer == "all" else int(arguments.layer)
    changed = ablated(policy, arguments.change, layer, other=other, seed=arguments.seed)
    evaluate_policy(changed, episodes=arguments.episodes, progress=False).save(arguments.output)


if __name__ == "__main__":
    main()
