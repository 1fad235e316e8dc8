"""Score a checkpoint whose hidden-attention parameters are changed: DeMa's experiment (arXiv 2405.12094, figure 5).

`python benchmarks/hidden_attention.py CHECKPOINT swap 0 --other CHECKPOINT --output FOLDER`; run by paper_questions.py.
"""

import argparse
from pathlib import Path

from hf_decision_mamba import DecisionMambaPolicy
from hf_decision_mamba.analysis import randomize_hidden_attention, swap_hidden_attention, zero_hidden_attention
from hf_decision_mamba.evaluation import evaluate_policy


def main() -> None:
    """Change, score, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("change", choices=("swap", "randomize", "zero"))
    parser.add_argument("layer", help="counted from 0, or all")
    parser.add_argument("--other", required=True, help="checkpoint whose parameters `swap` takes")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of `randomize`")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    policy = DecisionMambaPolicy.from_pretrained(arguments.checkpoint)
    model, layers = policy.model, None if arguments.layer == "all" else int(arguments.layer)
    if arguments.change == "swap":
        model = swap_hidden_attention(model, DecisionMambaPolicy.from_pretrained(arguments.other).model, layers)
    elif arguments.change == "randomize":
        model = randomize_hidden_attention(model, layers, seed=arguments.seed)
    else:
        model = zero_hidden_attention(model, layers)
    changed = DecisionMambaPolicy(model, policy.processor)
    evaluate_policy(changed, episodes=arguments.episodes, progress=False).save(arguments.output)


if __name__ == "__main__":
    main()
