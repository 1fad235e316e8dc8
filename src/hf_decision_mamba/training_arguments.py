"""Settings of a training run: four groups of arguments, from a YAML file and the command line.

One parser reads both, so that a wrong name or value is refused the same way wherever it stands.
Source: transformers' HfArgumentParser; the defaults are DeMa's (arXiv 2405.12094, section 5).
"""

import copy
import difflib
import json
import os
from argparse import ArgumentDefaultsHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from glob import glob
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from accelerate.utils import get_cpu_distributed_information
from transformers import (
    HfArgumentParser,
    TrainingArguments,
)

#: Context length by the type of the states. Source: Decision Transformer's settings for MuJoCo and for Atari (Chen et
#: al. 2021, appendix A), which DeMa (arXiv 2405.12094) keeps.
DEFAULT_CONTEXT_LENGTH = {"vector": 20, "image": 30}
DEFAULT_FRAME_STACK = 4


@dataclass
class ModelArguments:
    """Which model to train: a preset with single fields replaced, a baseline, or a checkpoint to fine-tune."""

    _argument_group_name = "model"

    architecture: Literal["decision_mamba", "decision_transformer", "bc"] = field(
        default="decision_mamba",
        metadata={
            "help": "One of the project's models (see preset), transformers' Decision Transformer or behaviour cloning."
        },
    )
    preset: str = field(
        default="dema-b3ld",
        metadata={"help": "Variant of decision_mamba to build, with its paper's sizes; dema-atari for images."},
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to fine-tune, a folder or a Hub repository, instead of a preset."}
    )
    hidden_size: int | None = field(default=None, metadata={"help": "Width of the backbone, if not the preset's."})
    embedding_size: int | None = field(default=None, metadata={"help": "Width of the embeddings of the tokens."})
    n_layer: int | None = field(default=None, metadata={"help": "Number of blocks."})
    state_size: int | None = field(default=None, metadata={"help": "States per channel of the scan."})
    expand: int | None = field(default=None, metadata={"help": "Width of the mixer as a multiple of hidden_size."})
    conv_kernel: int | None = field(
        default=None, metadata={"help": "Tokens that the causal convolution sees; 0 for no convolution."}
    )
    use_gate: bool | None = field(default=None, metadata={"help": "Multiply the scan's output by a gate."})
    selective: bool | None = field(default=None, metadata={"help": "Step sizes that depend on the input."})
    local_mixer: Literal["none", "linear", "conv"] | None = field(
        default=None, metadata={"help": "Mixer in front of the scan, where it is not the preset's."}
    )
    use_timestep_embedding: bool | None = field(default=None, metadata={"help": "Embed the time step."})
    max_ep_len: int | None = field(
        default=None, metadata={"help": "Longest episode; the preset's, or the data set's where that is longer."}
    )
    embd_pdrop: float | None = field(default=None, metadata={"help": "Dropout on the tokens."})
    resid_pdrop: float | None = field(default=None, metadata={"help": "Dropout on the output of each mixer."})
    scan_backend: str | None = field(default=None, metadata={"help": "reference, numba, triton or mamba_ssm."})

    def overrides(self) -> dict[str, Any]:
        """The config fields that were given."""
        chosen = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        given = {name: value for name, value in chosen.items() if value is not None and name not in _MODEL_CHOICE}
        return {name: None if value == "none" else value for name, value in given.items()}


#: Data sets that the name of a run's folder names.
_SOURCES_NAMED = 2

#: What says which model to build; all other settings of a model are changes to that one.
_MODEL_CHOICE = ("architecture", "preset", "model_name_or_path")


@dataclass
class DataArguments:
    """Which trajectories to learn from, and how windows are cut from them."""

    _argument_group_name = "data"

    dataset_name: list[str] | None = field(
        default=None,
        metadata={
            "help": "Hub repository (org/name), folder, file (.parquet, .hdf5, .pkl, ...) or minari:ID: docs/data.md. "
            "Several are learned from together."
        },
    )
    dataset_config: str | None = field(
        default=None,
        metadata={"help": "Configuration, if the data set has several; transitions to take of a DQN replay, or all."},
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the repository."})
    dataset_split: str = field(
        default="train", metadata={"help": "Split to read; slices as train[:10%%] are whole episodes."}
    )
    dataset_columns: str | None = field(
        default=None, metadata={"help": 'Names of the columns where they differ, as JSON: {"observations": "obs"}.'}
    )
    action_type: Literal["continuous", "discrete"] | None = field(
        default=None,
        metadata={
            "help": "What actions are; if unset one integer a step is discrete, all else continuous. discrete reads "
            "whole numbers and one-hot rows as integers."
        },
    )
    held_out_fraction: float = field(
        default=0.05, metadata={"help": "Share of whole episodes kept back for eval_loss; 0 trains on all."}
    )
    context_length: int | None = field(
        default=None,
        metadata={"help": "Steps in a window; if unset 20, for images 30, or that of the fine-tuned checkpoint."},
    )
    return_scale: float | None = field(
        default=None,
        metadata={
            "help": "Divides returns-to-go; if unset the largest of the training episodes, to two digits (1 where all "
            "returns are 0), or that of the fine-tuned checkpoint."
        },
    )
    frame_stack: int | None = field(
        default=None, metadata={"help": "Frames in the state of an image; if unset 4, or as the checkpoint reads."}
    )

    streaming: bool = field(
        default=False,
        metadata={"help": "Read parquet files with one row per episode as training goes, and download nothing."},
    )
    streaming_buffer: int = field(
        default=50_000,
        metadata={
            "help": "Transitions that each process or worker draws from, and that normalisation is learned from."
        },
    )

    def columns(self) -> dict[str, str]:
        """The column names to read, by ours.

        Raises:
            ValueError: `dataset_columns` is not a JSON object of strings.
        """
        try:
            columns = json.loads(self.dataset_columns or "{}")
        except ValueError:
            columns = None
        if not isinstance(columns, dict) or not all(isinstance(theirs, str) for theirs in columns.values()):
            raise ValueError(f'dataset_columns={self.dataset_columns} must be JSON such as {{"observations": "obs"}}.')
        return columns


@dataclass
class EvaluationArguments:
    """How the policy is scored: after training, and if asked for at every evaluation during it."""

    _argument_group_name = "evaluation in the environment"

    env_id: str | None = field(
        default=None, metadata={"help": "gymnasium environment; the one that the data set's card names if unset."}
    )
    eval_episodes: int = field(default=20, metadata={"help": "Episodes per target return after training; 0 for none."})
    target_return: list[float] | None = field(
        default=None,
        metadata={
            "help": "Returns to ask for, the first one by default when the checkpoint acts; if unset 3600 (hopper), "
            "12000 (halfcheetah), 5000 (walker2d), elsewhere the best return of the data set."
        },
    )
    eval_max_episode_steps: int | None = field(
        default=None, metadata={"help": "Steps after which an episode is cut off; the environment's limit if unset."}
    )
    eval_mode: Literal["window", "recurrent"] = field(
        default="window", metadata={"help": "Re-read the last steps at each decision, or carry the states along."}
    )
    rollout_episodes: int = field(
        default=0,
        metadata={"help": "Episodes at every evaluation during training (eval_normalized_score); 0 for none."},
    )


@dataclass
class DecisionMambaTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the defaults of this project."""

    _argument_group_name = "training (transformers.TrainingArguments)"

    output_dir: str | None = field(
        default=None, metadata={"help": "Where checkpoints and results are written; if unset runs/<model>-<data set>."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the run that output_dir already holds, and start again."}
    )
    max_steps: int = field(default=5000, metadata={"help": "Optimizer steps; -1 to count num_train_epochs."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Windows per device and forward pass."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "The same for eval_loss."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Highest learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "How it falls after the warm-up."})
    warmup_steps: float = field(default=500, metadata={"help": "Steps until it is reached; below 1 a share of all."})
    weight_decay: float = field(default=1e-4, metadata={"help": "AdamW; matrices only (not A_log, D, norms, biases)."})
    max_grad_norm: float = field(default=0.25, metadata={"help": "Gradients are clipped to this norm."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two values of the loss."})
    eval_strategy: str = field(default="steps", metadata={"help": "When eval_loss is measured: no, steps or epoch."})
    eval_steps: float | None = field(default=1000, metadata={"help": "Steps between two evaluations."})
    save_steps: float = field(default=500, metadata={"help": "Steps between two checkpoints to resume from."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    report_to: None | str | list[str] = field(  # noqa: RUF036 (HfArgumentParser reads the order of the types)
        default="none", metadata={"help": "tensorboard, wandb, trackio, ..."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "last: go on from the newest complete checkpoint in output_dir; or a checkpoint folder."},
    )
    hub_strategy: str = field(
        default="end",
        metadata={
            "help": "With push_to_hub: end pushes the scored checkpoint; every_save also every one before, in the "
            "background. (checkpoint and all_checkpoints are refused: they would push pickles.)"
        },
    )
    data_on_device: bool | None = field(
        default=None,
        metadata={
            "help": "Keep the data where the model is, and cut windows there; if unset on a GPU that has room for it."
        },
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={"help": "CPU threads per process; torch's choice if unset, under accelerate launch all cores."},
    )

    def __post_init__(self) -> None:
        processes = _launched_processes()
        if processes > 1 and not _has_accelerator():
            self.use_cpu = True  # only then is one world made of them; else each would train alone
        super().__post_init__()
        if processes > self.world_size == 1:
            raise ValueError(
                f"{processes} processes were started, but not as one training: each would train alone, into "
                "the same folder. Start them with torchrun or accelerate launch."
            )
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # pinning is for copies to an accelerator


def _launched_processes() -> int:
    """How many processes were started as one training, as the launcher says.

    Raises:
        ValueError: this process is said to be another one than the first, but not of how many.
    """
    launched = get_cpu_distributed_information()
    if launched.world_size == 1 and (launched.rank > 0 or launched.local_rank > 0):
        raise ValueError(
            f"RANK={launched.rank} and LOCAL_RANK={launched.local_rank} are set, but no WORLD_SIZE: this process would "
            "train alone, into the same folder as the others. Start all with torchrun or accelerate launch, or unset "
            "these variables."
        )
    return launched.world_size


def _has_accelerator() -> bool:
    """Whether processes can train together on what this machine has beside its CPU; on Apple's GPU none can."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator is not None and accelerator.type != "mps"


#: Settings that may be paths, in which ~ is the home folder: no shell reads those of a YAML file, nor `--name=~/path`.
_PATHS = ("dataset_name", "model_name_or_path", "output_dir", "resume_from_checkpoint", "deepspeed")

Arguments = tuple[ModelArguments, DataArguments, EvaluationArguments, DecisionMambaTrainingArguments]


class _HelpFormatter(ArgumentDefaultsHelpFormatter):
    """Each option in one spelling (with underscores), though the one with hyphens works too."""

    def _format_action_invocation(self, action: Any) -> str:
        if action.option_strings and action.dest != "help":
            action = copy.copy(action)
            action.option_strings = action.option_strings[:1]
        return super()._format_action_invocation(action)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the usage, which is a page long."""
        raise ValueError(f"{message} (--help lists all settings)")


def build_parser() -> HfArgumentParser:
    """The command line: the four groups of settings, nothing abbreviated."""
    groups: Any = (ModelArguments, DataArguments, EvaluationArguments, DecisionMambaTrainingArguments)
    parser = _Parser(
        groups,
        usage="accelerate launch train.py [settings.yaml] [--setting value ...]",
        description="Train a decision model on trajectories, score it in its environment, and write its card. Settings "
        "come from the YAML file, and from the command line, which wins.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    for action in parser._actions:
        if action.dest in _PATHS:
            action.type = os.path.expanduser
    return parser


def parse_arguments(argv: Sequence[str], default_config: Path | None = None) -> Arguments:
    """Read settings from a YAML file (the first argument, if it is no option) and the command line, which wins.

    A command line that chooses another model than the file (preset, architecture, checkpoint) leaves out the file's
    settings of its model: they are sizes and the context length of another one. A checkpoint has a return scale of its
    own, and so have other data than those of a default file, which nobody has chosen for them.

    In the YAML file, a value that starts with `./` or `../` is a path relative to the file's folder; all other paths
    are relative to the working directory, as they are on the command line.

    Args:
        argv: the arguments without the program's name.
        default_config: the YAML file when `argv` names none.

    Raises:
        FileNotFoundError: there is no such YAML file.
        ValueError: an unknown setting (with the closest known one), or a value of the wrong type.
    """
    parser = build_parser()
    words, known = _all_words(parser, argv, default_config)
    *arguments, unknown = parser.parse_args_into_dataclasses(
        words, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise ValueError(f"Unknown argument {unknown[0]!r}{_closest(unknown[0].split('=')[0], known, '--')}")
    return tuple(arguments)  # type: ignore[return-value]


def given_settings(argv: Sequence[str], default_config: Path | None = None) -> dict[str, Any]:
    """The settings that differ from their defaults, by name, as they were given.

    Args, raises: as `parse_arguments`.
    """
    parser = build_parser()
    words, _ = _all_words(parser, argv, default_config)
    chosen = vars(parser.parse_known_args(words)[0])
    return {name: value for name, value in chosen.items() if value != parser.get_default(name)}


def _all_words(
    parser: HfArgumentParser, argv: Sequence[str], default_config: Path | None
) -> tuple[list[str], list[str]]:
    """The YAML file's settings and the command line's as one command line, and the names of all settings."""
    argv = list(argv)
    known = sorted({action.dest for action in parser._actions} - {"help"})
    named_file = bool(argv) and not argv[0].startswith("-")
    config = Path(argv.pop(0)).expanduser() if named_file else default_config
    from_file = {} if config is None else _read_yaml(config, known)
    chosen, chosen_in_file = (
        parser.parse_known_args(words)[0] for words in (_joined(from_file, argv), _joined(from_file))
    )
    named = [name for name in _MODEL_CHOICE if name in from_file]
    if named and any(getattr(chosen, name) != getattr(chosen_in_file, name) for name in _MODEL_CHOICE):
        of_the_model = {*(entry.name for entry in fields(ModelArguments)), "context_length"}
        from_file = {name: words for name, words in from_file.items() if name not in of_the_model}
    if chosen.model_name_or_path != chosen_in_file.model_name_or_path or (
        not named_file and not _same_data(chosen.dataset_name, chosen_in_file.dataset_name)
    ):
        from_file.pop("return_scale", None)
    words = _joined(from_file, argv)
    if chosen.output_dir is None:
        words = [f"--output_dir={_run_folder(*parser.parse_known_args(words)[:1])}", *words]
    return words, known


def _same_data(one: str | None, other: str | None) -> bool:
    return one == other or (one is not None and other is not None and Path(one).resolve() == Path(other).resolve())


def _joined(from_file: dict[str, list[str]], argv: Sequence[str] = ()) -> list[str]:
    return [*(word for words in from_file.values() for word in words), *argv]


def _run_folder(settings: Any) -> str:
    """Where a run is written that nobody gave a folder: named after its model and its data."""
    model = settings.preset if settings.architecture == ModelArguments.architecture else settings.architecture
    sources = [name for given in settings.dataset_name or ["data"] for name in sorted(glob(given)) or [given]]
    names = []
    for source in (settings.model_name_or_path or model, *sources[:_SOURCES_NAMED]):
        path = Path(source)
        names.append(path.stem if path.is_file() else path.resolve().name)
    more = len(sources) - _SOURCES_NAMED
    return f"runs/{'-'.join([*names, *([f'{more}-more'] if more > 0 else [])])}"


def _read_yaml(path: Path, known: Sequence[str]) -> dict[str, list[str]]:
    """The settings of a YAML file, each as command-line arguments, so that one parser checks both."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no settings file {path}; the first argument is a YAML file or an option.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold lines of the form `setting: value`, not a {type(settings).__name__}.")
    arguments = {}
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"{path}: unknown setting {name!r}{_closest(str(name), known)}")
        values = [_as_text(item, path.parent) for item in (value if isinstance(value, list) else [value])]
        if value is not None and len(values) > 0:
            arguments[name] = [f"--{name}={values[0]}"] if len(values) == 1 else [f"--{name}", *values]
    return arguments


def _as_text(value: Any, folder: Path) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, str) and value.startswith(("./", "../")):
        return os.path.relpath(folder / value)
    return str(value)


def _closest(name: str, known: Sequence[str], prefix: str = "") -> str:
    matches = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), known, n=1, cutoff=0.5)
    return f"; did you mean {prefix}{matches[0]}?" if matches else "; --help lists all settings."
