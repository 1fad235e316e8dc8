"""The command `hf-decision-mamba`: one verb for each thing that people do with a decision model.

Each verb is a function of the room that it belongs to; here are only its arguments.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from os.path import expanduser
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id

from .acting.export import export_policy
from .acting.policy import DecisionMambaPolicy
from .analysis.ablation import CHANGES, ablate
from .analysis.inspection import inspect_checkpoint
from .analysis.page import NUMBERS, PAGE, write_inspection
from .collecting.collect import collect
from .collecting.settings import CollectSettings
from .collecting.stable_baselines import ALGORITHMS
from .data.overview import overview_of
from .evaluation.environments import install_hint, parse_env_kwargs
from .evaluation.rollouts import evaluate_policy
from .evaluation.video import import_imageio, record_videos
from .info import info_text, installation_info
from .reporting.console import StoppedBySignal, report_user_errors
from .reporting.figures import number
from .reporting.files import CONFIG_FILE, EVALUATION_FILES, RETURNS_FILE, portable
from .sharing.dataset_card import is_dataset_folder, push_dataset_to_hub
from .sharing.model_card import push_to_hub, write_model_card
from .study.results import PAGE_FILE
from .study.runner import run_study
from .training.run import main as train


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
        # Options are spelled with hyphens, but as train.py's are known with underscores too.
        words = [re.sub(r"^--[\w-]+", lambda name: name[0].replace("_", "-"), word) for word in argv]
        arguments = _parser().parse_args(words)
        arguments.run(arguments)


def _path(text: str) -> Path:
    return Path(expanduser(text))  # no shell reads `--output=~/folder`


class _Parser(argparse.ArgumentParser):
    """A parser that takes options by their full names only: `--env` is not `--env-id`."""

    def __init__(self, **settings: Any):
        super().__init__(**{"allow_abbrev": False, **settings})


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hf-decision-mamba", description="Decision models on a Mamba backbone.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verbs.add_parser("train", help="train a model, see `train --help`; the same as train.py", add_help=False)
    _add_evaluate(verbs)
    _add_inspect(verbs)
    _add_ablate(verbs)
    _add_export(verbs)
    _add_collect(verbs)
    _add_inspect_data(verbs)
    _add_study(verbs)

    push = verbs.add_parser("push", help="upload a checkpoint, or a collected data set, with its card to the Hub")
    push.add_argument("folder", type=_path)
    push.add_argument("repository", help="owner/name; created if it does not exist")
    push.add_argument("--private", action="store_true", help="create it as a private repository")
    push.add_argument("--revision", help="branch to push to (default: main)")
    push.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing to main")
    push.add_argument("--dry-run", action="store_true", help="print what would be sent and deleted, and send nothing")
    push.add_argument("--commit-message", help="first line of the commit")
    push.set_defaults(run=_push)

    info = verbs.add_parser("info", help="say what is installed, and what computes where and why; for bug reports")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)
    return parser


def _checkpoint_options(several: bool = False) -> argparse.ArgumentParser:
    """Return a parent of the verbs that read a checkpoint."""
    parent = _Parser(add_help=False)
    if several:
        parent.add_argument(
            "checkpoints",
            nargs="+",
            type=expanduser,
            help="folders or Hub repositories; several are averaged, as seeds",
        )
    else:
        parent.add_argument("checkpoint", type=expanduser, help="folder or Hub repository")
    parent.add_argument("--revision", default="main", help="branch, tag or commit of the repository (default: main)")
    parent.add_argument("--device", help="where the model computes (default: cpu)")
    return parent


def _playing_options(
    episodes: int, of_what: str, *, targets: str | None = "+", default: str = "the checkpoint's", data: bool = False
) -> argparse.ArgumentParser:
    """Return a parent of the verbs that play with a checkpoint.

    Args:
        episodes, of_what: how many they play by default, and of what.
        targets, default: how many target returns they take (as `nargs`), and what they ask for by default.
        data: whether they look at windows, of a data set where they are told to.
    """
    parent = _Parser(add_help=False)
    source = parent.add_mutually_exclusive_group()
    source.add_argument("--env-id", help="gymnasium id (default: the checkpoint's)")
    if data:
        source.add_argument(
            "--data", type=expanduser, metavar="SOURCE", help="read episodes of a data set, and play nothing"
        )
    _add_env_kwargs(parent, "the checkpoint's, in its own environment")
    parent.add_argument("--target-return", type=float, nargs=targets, help=f"what to ask for (default: {default})")
    parent.add_argument("--episodes", type=int, default=episodes, help=f"{of_what} (default: {episodes})")
    parent.add_argument("--seed", type=int, default=0, help="of the first episode (default: 0)")
    if not data:
        parent.add_argument("--mode", choices=("window", "recurrent"), default="window", help="(default: window)")
        parent.add_argument("--max-episode-steps", type=int, help="end episodes after so many decisions")
    return parent


def _add_env_kwargs(command: Any, default: str) -> None:
    command.add_argument(
        "--env-kwargs",
        metavar="JSON",
        help=f"keyword arguments for gymnasium.make: '{{\"reset_noise_scale\": 0.1}}' (default: {default})",
    )


def _add_evaluate(verbs: Any) -> None:
    command = verbs.add_parser(
        "evaluate",
        help="roll a checkpoint out in its environment and print the scores",
        parents=[_checkpoint_options(), _playing_options(20, "per target return")],
    )
    command.add_argument("--sample", action="store_true", help="draw discrete actions instead of taking the likeliest")
    command.add_argument("--num-envs", type=int, help="environments that run at once (default: 20)")
    command.add_argument(
        "--output",
        type=_path,
        help=f"folder for {', '.join(EVALUATION_FILES[:2])} and {RETURNS_FILE}; in the checkpoint's own, its card too "
        "(default: nothing is written)",
    )
    command.add_argument(
        "--video", action="store_true", help="film the first episode of each target return, into the folder of --output"
    )
    command.set_defaults(run=_evaluate)


def _add_inspect(verbs: Any) -> None:
    command = verbs.add_parser(
        "inspect",
        help="look inside a checkpoint: hidden attention, effective context, time constants, target returns",
        parents=[
            _checkpoint_options(),
            _playing_options(5, "to look into, and per target return", default="shares of the checkpoint's", data=True),
        ],
    )
    command.add_argument(
        "--timesteps",
        type=int,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="decisions in the picture of attention (default: 300 600, or the whole episode where it is shorter)",
    )
    command.add_argument(
        "--memory",
        action="store_true",
        help="follow two beginnings: how far apart the recurrent states stay, and what they drift together",
    )
    command.add_argument("--steps", type=int, help="decisions to follow them for (default: the longest episode)")
    command.add_argument(
        "--output",
        type=_path,
        help=f"folder for {PAGE}, its pictures and {NUMBERS} (default: inspection, in the checkpoint's folder; of the "
        "Hub's, inspection-NAME here)",
    )
    command.set_defaults(run=_inspect)


def _add_ablate(verbs: Any) -> None:
    command = verbs.add_parser(
        "ablate",
        help="score a checkpoint with its hidden attention swapped, randomised and zeroed, layer by layer",
        parents=[_checkpoint_options(several=True), _playing_options(20, "per checkpoint and condition", targets=None)],
    )
    command.add_argument(
        "--other",
        nargs="+",
        type=expanduser,
        default=[],
        metavar="CHECKPOINT",
        help="whose parameters are swapped in: one, or one each; of a repository its main branch",
    )
    command.add_argument("--changes", nargs="+", choices=CHANGES, help="(default: all; swap needs --other)")
    command.add_argument(
        "--output", type=_path, help="folder for ablation.json and ablation.png (default: nothing is written)"
    )
    command.set_defaults(run=_ablate)


def _add_export(verbs: Any) -> None:
    command = verbs.add_parser(
        "export",
        help="write one decision of a checkpoint as a file that runs without torch",
        parents=[_checkpoint_options()],
    )
    command.add_argument("--output", type=_path, required=True, help="the file: NAME.onnx, or NAME.pte for ExecuTorch")
    command.set_defaults(run=_export)


def _add_collect(verbs: Any) -> None:
    command = verbs.add_parser(
        "collect",
        help="roll a policy out, or record a training, and write a data set ready for the Hub",
        argument_default=argparse.SUPPRESS,  # defaults are those of CollectSettings
    )
    command.add_argument("env_id", help="gymnasium id; module:NAME imports a module of the working folder first")
    _add_env_kwargs(command, "none")
    command.add_argument("--output", type=_path, required=True, help="folder of the data set; must be new or empty")
    acting = command.add_mutually_exclusive_group()
    acting.add_argument(
        "--policy",
        type=expanduser,
        help="random (default); expert, what is right in our T-Maze, popgym's memory games, PointMaze and OGBench "
        "(expert:play, expert:noisy); a checkpoint of ours, folder or Hub repository; or a policy of "
        "stable-baselines3, sb3:sac:FILE.zip or sb3:sac:owner/name",
    )
    acting.add_argument("--train", choices=tuple(ALGORITHMS), help="record the training of a stable-baselines3 agent")
    amount = command.add_mutually_exclusive_group()
    amount.add_argument("--episodes", type=int, help="how many (default: 100)")
    amount.add_argument("--steps", type=int, help="whole episodes until there are so many; of a training, its length")
    command.add_argument("--seed", type=int, help="episode i is reset with this + i (default: 0)")
    command.add_argument("--target-return", type=float, help="what to ask our checkpoint for (default: its own)")
    command.add_argument("--mode", choices=("window", "recurrent"), help="of our checkpoint (default: window)")
    command.add_argument("--sample", action="store_true", help="draw actions from the policy's distribution")
    command.add_argument("--noise", type=float, help="Gaussian noise on actions, as a share of half their range")
    command.add_argument("--epsilon", type=float, help="probability of a random action")
    command.add_argument("--max-episode-steps", type=int, help="end episodes after so many decisions")
    command.add_argument("--num-envs", type=int, help="environments that run at once (default: 8)")
    command.add_argument("--device", help="where our checkpoint computes (default: cpu)")
    command.add_argument("--license", help="of the data (default: apache-2.0)")
    command.add_argument("--push-to-hub", metavar="OWNER/NAME", default=None, help="publish it when it is complete")
    command.add_argument("--private", action="store_true", default=False, help="as a private repository")
    command.set_defaults(run=_collect)


def _add_inspect_data(verbs: Any) -> None:
    command = verbs.add_parser("inspect-data", help="say what is in a data set, and what is wrong with it")
    command.add_argument(
        "source", nargs="+", type=expanduser, help="what train.py takes as --dataset_name; several are read together"
    )
    command.add_argument("--columns", help='names of its columns by ours, as JSON: \'{"observations": "obs"}\'')
    command.add_argument("--split", default="train", help="such as train[:10%%] (default: train)")
    command.add_argument("--config", help="configuration of the data set")
    command.add_argument("--revision", help="branch, tag or commit of the repository")
    command.add_argument(
        "--action-type", choices=("continuous", "discrete"), help="what actions are, where their numbers do not say it"
    )
    command.add_argument(
        "--rewards-from", metavar="COLUMN", help="column whose values are the rewards, such as next.success"
    )
    command.add_argument("--positions-only", action="store_true", help="leave velocities out, of MuJoCo's data")
    command.add_argument("--delayed-reward", action="store_true", help="put all reward at the end of an episode")
    command.add_argument(
        "--return-scale", type=float, help="say what is left of returns-to-go that are divided by this"
    )
    command.add_argument("--output", type=_path, help="folder for data_overview.json and returns.png")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_inspect_data)


def _add_study(verbs: Any) -> None:
    command = verbs.add_parser(
        "study", help="train models on data sets with several seeds, score them all, and say how sure the answer is"
    )
    command.add_argument("file", type=_path, metavar="STUDY.yaml", help="what it consists of: docs/studies.md")
    command.add_argument("--jobs", type=int, default=1, help="runs at a time, which share out the cores (default: 1)")
    command.add_argument("--report", action="store_true", help="write the results of what has finished; run nothing")
    command.add_argument("--output", type=_path, help="folder of its runs and results (default: runs/NAME)")
    command.add_argument(
        "--overwrite", action="store_true", help="delete runs that were trained with other settings than the file's"
    )
    command.set_defaults(run=_study)


def _collect(arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    given["env_kwargs"] = parse_env_kwargs("--env-kwargs", given.get("env_kwargs"))
    settings = CollectSettings(
        **{entry.name: given[entry.name] for entry in fields(CollectSettings) if entry.name in given}
    )
    if arguments.push_to_hub is not None:
        validate_repo_id(arguments.push_to_hub)
    elif arguments.private:
        raise ValueError("--private needs --push-to-hub owner/name.")
    folder, complete = collect(settings, arguments.output)
    print(f"data set     {folder}")
    if not complete:
        raise StoppedBySignal(message="the episodes that had ended were written, and nothing was pushed.")
    if arguments.push_to_hub is not None:
        print(push_dataset_to_hub(folder, arguments.push_to_hub, private=arguments.private))


def _inspect_data(arguments: argparse.Namespace) -> None:
    found = overview_of(
        arguments.source,
        config=arguments.config,
        revision=arguments.revision,
        split=arguments.split,
        columns=_columns(arguments.columns),
        action_type=arguments.action_type,
        rewards_from=arguments.rewards_from,
        positions_only=arguments.positions_only,
        delayed_reward=arguments.delayed_reward,
        return_scale=arguments.return_scale,
    )
    print(json.dumps(found.to_dict(), indent=2) if arguments.json else found.text())
    if arguments.output is not None:
        print(f"\nwritten: {_saved(found, arguments.output, RETURNS_FILE)}", file=sys.stderr)
    if not found.readable:
        raise SystemExit(1)


def _saved(found: Any, folder: Path, picture: str) -> str:
    """Save what was found, and name the files; without matplotlib the picture is missing."""
    try:
        return ", ".join(map(str, found.save(folder)))
    except ImportError as error:
        raise ImportError(f"{picture} was not drawn ({error}); try: {install_hint('')}") from error


def _columns(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    try:
        columns = json.loads(text)
    except ValueError:
        columns = None
    if not isinstance(columns, dict) or not all(isinstance(name, str) for name in columns.values()):
        raise ValueError(f'--columns {text!r} is not of the form \'{{"observations": "obs"}}\'.')
    return columns


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.video and arguments.output is None:
        raise ValueError("--video needs a folder to put replay.mp4 in: --output FOLDER.")
    policy = DecisionMambaPolicy.from_pretrained(
        arguments.checkpoint,
        mode=arguments.mode,
        device=arguments.device,
        sample=arguments.sample,
        revision=arguments.revision,
    )
    if arguments.video:  # what is missing shows before anything is measured
        import_imageio(arguments.env_id or policy.processor.env_id or "")
    result = evaluate_policy(
        policy,
        arguments.env_id,
        episodes=arguments.episodes,
        target_returns=arguments.target_return,
        seed=arguments.seed,
        num_envs=arguments.num_envs,
        max_episode_steps=arguments.max_episode_steps,
        env_kwargs=parse_env_kwargs("--env-kwargs", arguments.env_kwargs),
    )
    print(result.table())
    if arguments.output is None:
        return
    result.save(arguments.output)
    print(f"results      {arguments.output}")
    try:
        if arguments.video:
            for path, value in record_videos(result, arguments.output).items():
                print(f"video        {path}: the episode of seed {result.seed}, which returned {number(value, 1)}")
    finally:
        if (arguments.output / CONFIG_FILE).is_file():  # the checkpoint's own folder: its card shows the results
            write_model_card(arguments.output)


def _inspect(arguments: argparse.Namespace) -> None:
    if find_spec("matplotlib") is None:
        raise ImportError(f"Pictures need matplotlib; install it with: {install_hint('')}")
    policy = DecisionMambaPolicy.from_pretrained(
        arguments.checkpoint, device=arguments.device, revision=arguments.revision
    )
    found = inspect_checkpoint(
        policy,
        arguments.checkpoint,
        arguments.env_id,
        data=arguments.data,
        target_returns=arguments.target_return,
        episodes=arguments.episodes,
        timesteps=arguments.timesteps and (arguments.timesteps[0], arguments.timesteps[1]),
        seed=arguments.seed,
        env_kwargs=parse_env_kwargs("--env-kwargs", arguments.env_kwargs),
        memory=arguments.memory,
        steps=arguments.steps,
    )
    local = Path(arguments.checkpoint)
    default = local / "inspection" if local.is_dir() else Path(f"inspection-{local.name}")
    for path in write_inspection(found, arguments.output or default):
        print(path)


def _ablate(arguments: argparse.Namespace) -> None:
    def load(names: list[str], revision: str) -> list[DecisionMambaPolicy]:
        options = {"mode": arguments.mode, "device": arguments.device, "revision": revision}
        return [DecisionMambaPolicy.from_pretrained(name, **options) for name in names]

    found = ablate(
        load(arguments.checkpoints, arguments.revision),
        load(arguments.other, "main"),
        arguments.env_id,
        changes=arguments.changes,
        episodes=arguments.episodes,
        target_return=arguments.target_return,
        seed=arguments.seed,
        max_episode_steps=arguments.max_episode_steps,
        env_kwargs=parse_env_kwargs("--env-kwargs", arguments.env_kwargs),
    )
    found.protocol |= {name: [portable(path) for path in getattr(arguments, name)] for name in ("checkpoints", "other")}
    print(found.table())
    if arguments.output is not None:
        print(f"\nresults      {_saved(found, arguments.output, 'ablation.png')}")


def _study(arguments: argparse.Namespace) -> None:
    result = run_study(
        arguments.file,
        jobs=arguments.jobs,
        output=arguments.output,
        report=arguments.report,
        overwrite=arguments.overwrite,
    )
    print(f"{result.table()}\n\nresults      {result.folder / PAGE_FILE}")
    if result.failed:
        raise SystemExit(1)


def _export(arguments: argparse.Namespace) -> None:
    policy = DecisionMambaPolicy.from_pretrained(
        arguments.checkpoint, device=arguments.device, revision=arguments.revision
    )
    difference = export_policy(policy, arguments.output)
    print(f"written      {arguments.output}, {arguments.output.stat().st_size / 1e6:.1f} MB")
    if difference is None:
        print("unverified   onnxruntime is not installed: pip install onnxruntime", file=sys.stderr)
    else:
        print(f"verified     differs from torch by at most {difference:.1e}")


def _push(arguments: argparse.Namespace) -> None:
    push = push_dataset_to_hub if is_dataset_folder(arguments.folder) else push_to_hub
    print(
        push(
            arguments.folder,
            arguments.repository,
            private=arguments.private,
            revision=arguments.revision,
            create_pr=arguments.create_pr,
            dry_run=arguments.dry_run,
            commit_message=arguments.commit_message,
        )
    )


def _info(arguments: argparse.Namespace) -> None:
    found = installation_info()
    print(json.dumps(found, indent=2) if arguments.json else info_text(found))


if __name__ == "__main__":
    main()
