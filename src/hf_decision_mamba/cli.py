"""The command `hf-decision-mamba`: one verb for each thing that people do with a decision model.

Each verb is a function of the room that it belongs to; here are only its arguments.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .evaluation import evaluate_policy
from .hub import DEFAULT_COMMIT_MESSAGE, push_to_hub, write_model_card
from .policy import DecisionMambaPolicy
from .training import main as train
from .training import report_user_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb; user errors end with one line and exit code 2.

    Args:
        argv: the verb and its arguments; those of the process when not given.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    with report_user_errors():
        if argv[:1] == ["train"]:
            train(argv[1:])
            return
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-decision-mamba", description="Decision models on a Mamba backbone.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verbs.add_parser("train", help="train a model, see `train --help`; the same as train.py", add_help=False)

    evaluate = verbs.add_parser("evaluate", help="roll a checkpoint out in its environment and print the scores")
    evaluate.add_argument("checkpoint", help="folder or Hub repository")
    evaluate.add_argument("--revision", help="branch, tag or commit of the repository")
    evaluate.add_argument("--env-id", help="gymnasium id (default: the checkpoint's)")
    evaluate.add_argument("--target-return", type=float, nargs="+", help="what to ask for (default: the checkpoint's)")
    evaluate.add_argument("--episodes", type=int, default=20, help="per target return (default: 20)")
    evaluate.add_argument("--seed", type=int, default=0, help="of the first episode (default: 0)")
    evaluate.add_argument("--mode", choices=("window", "recurrent"), default="window", help="(default: window)")
    evaluate.add_argument("--max-episode-steps", type=int, help="end episodes after so many decisions")
    evaluate.add_argument("--sample", action="store_true", help="draw discrete actions instead of taking the likeliest")
    evaluate.add_argument("--num-envs", type=int, help="environments that run at once (default: 20)")
    evaluate.add_argument("--device", help="where the model computes (default: cpu)")
    evaluate.add_argument("--output", type=Path, help="folder for evaluation.json, evaluation.parquet and returns.png")
    evaluate.set_defaults(run=_evaluate)

    push = verbs.add_parser("push", help="upload a checkpoint folder with its card and results to the Hub")
    push.add_argument("folder", type=Path)
    push.add_argument("repository", help="owner/name; created if it does not exist")
    push.add_argument("--private", action="store_true", help="create it as a private repository")
    push.add_argument("--revision", help="branch to push to (default: main)")
    push.add_argument("--commit-message", default=DEFAULT_COMMIT_MESSAGE)
    push.set_defaults(run=_push)
    return parser


def _evaluate(arguments: argparse.Namespace) -> None:
    policy = DecisionMambaPolicy.from_pretrained(
        arguments.checkpoint,
        mode=arguments.mode,
        device=arguments.device,
        sample=arguments.sample,
        revision=arguments.revision or "main",
    )
    result = evaluate_policy(
        policy,
        arguments.env_id,
        episodes=arguments.episodes,
        target_returns=arguments.target_return,
        seed=arguments.seed,
        num_envs=arguments.num_envs,
        max_episode_steps=arguments.max_episode_steps,
    )
    print(result.table())
    if arguments.output is not None:
        result.save(arguments.output)
        if (arguments.output / "config.json").is_file():  # the checkpoint's own folder: its card shows the results
            write_model_card(arguments.output)
        print(f"results      {arguments.output}")


def _push(arguments: argparse.Namespace) -> None:
    address = push_to_hub(
        arguments.folder,
        arguments.repository,
        private=arguments.private,
        revision=arguments.revision,
        commit_message=arguments.commit_message,
    )
    print(address)


if __name__ == "__main__":
    main()
