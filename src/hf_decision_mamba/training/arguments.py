"""Settings of a training run: four groups of arguments, from a YAML file and the command line.

One parser reads both, so that a wrong name or value is refused the same way wherever it stands.
Source: transformers' HfArgumentParser; the defaults are DeMa's (arXiv 2405.12094, section 5).
"""

import copy
import difflib
import json
import math
import os
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentError, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from glob import glob
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
import yaml
from accelerate.utils import get_cpu_distributed_information
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from ..baselines.architectures import WITH_PRESETS, fields_of
from ..data.goals import GoalsFrom
from ..data.statistics import Normalization
from ..evaluation.environments import parse_env_kwargs
from ..model.checkpoint_decision_mamba import check_sizes
from ..reporting.checks import wrong_type
from ..views import VIEWS

#: Context length by the type of the states. Source: Decision Transformer's settings for MuJoCo and for Atari (Chen et
#: al. 2021, appendix A), which DeMa (arXiv 2405.12094) keeps.
DEFAULT_CONTEXT_LENGTH = {"vector": 20, "image": 30}
DEFAULT_FRAME_STACK = 4


@dataclass
class ModelArguments:
    """Which model to train: a preset with single fields replaced, a baseline, or a checkpoint to fine-tune."""

    _argument_group_name = "model"

    architecture: Literal["decision_mamba", "gru", "decision_transformer", "rvs", "bc"] = field(
        default="decision_mamba",
        metadata={
            "help": "One of the project's models (see preset), or a baseline: a GRU, Decision Transformer, RvS (an "
            "MLP on state and return-to-go or goal) or behaviour cloning (an MLP on the state alone)."
        },
    )
    preset: str = field(
        default="dema-b3ld",
        metadata={"help": "Variant of decision_mamba to build, with its paper's sizes; dema-atari for images."},
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to fine-tune, a folder or a Hub repository, instead of a preset."}
    )
    conditioning: Literal["return", "goal", "none"] | None = field(
        default=None,
        metadata={
            "help": "What the policy is asked for: a return (if unset, where the data have rewards); a goal, where the "
            "data have goals; or none: it imitates what the data do. (Of the baselines rvs is asked for a return or a "
            "goal, bc for nothing, the others have the choice.)"
        },
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
    time_step_min: float | None = field(
        default=None, metadata={"help": "Smallest step size Δ at initialisation: a memory of about 1/Δ tokens."}
    )
    time_step_max: float | None = field(default=None, metadata={"help": "Largest step size Δ at initialisation."})
    use_timestep_embedding: bool | None = field(default=None, metadata={"help": "Embed the time step."})
    max_ep_len: int | None = field(
        default=None, metadata={"help": "Longest episode; the preset's, or the data set's where that is longer."}
    )
    embd_pdrop: float | None = field(default=None, metadata={"help": "Dropout on the tokens."})
    resid_pdrop: float | None = field(default=None, metadata={"help": "Dropout on the output of each mixer."})
    scan_backend: str | None = field(default=None, metadata={"help": "reference, numba, triton or mamba_ssm."})

    def __post_init__(self) -> None:
        check_sizes(self)  # those of every architecture
        self._name_a_gru()
        for name in ("embd_pdrop", "resid_pdrop"):
            share = getattr(self, name)
            if share is not None and not 0 <= share < 1:
                raise ValueError(f"{name}={share} must be at least 0 and below 1.")

    def _name_a_gru(self) -> None:
        """Let both settings name a GRU, whichever was given: it is a preset, and an architecture of its own."""
        if self.architecture == "gru" and self.preset not in (ModelArguments.preset, "gru"):
            raise ValueError(f"--architecture gru is --preset gru, not --preset {self.preset}; leave one of them out.")
        if self.preset == "gru" and self.architecture == ModelArguments.architecture:
            self.architecture = "gru"
        if self.architecture == "gru" and self.model_name_or_path is None:
            self.preset = "gru"

    @property
    def builds_a_preset(self) -> bool:
        """Whether a new model of a preset is built: no other baseline, and no checkpoint is fine-tuned."""
        return self.model_name_or_path is None and self.architecture in WITH_PRESETS

    def overrides(self) -> dict[str, Any]:
        """Return the config fields that were given."""
        chosen = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        given = {name: value for name, value in chosen.items() if value is not None and name not in _MODEL_CHOICE}
        return {name: None if (name, value) == ("local_mixer", "none") else value for name, value in given.items()}


#: Data sets that the name of a run's folder names.
_SOURCES_NAMED = 2

#: How data are normalised, which a checkpoint that is fine-tuned keeps as it was.
NORMALIZATIONS = ("state_normalization", "action_normalization")

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
    rewards_from: str | None = field(
        default=None,
        metadata={
            "help": "Column whose values are the rewards, one number or true or false a step, such as next.success; if "
            "unset the one that is called so."
        },
    )
    observation_parts: str | None = field(
        default=None,
        metadata={
            "help": "What an observation was concatenated from, where the data do not say it, as JSON: parts of the "
            'environment\'s observation and their sizes, {"observation": 4, "desired_goal": 2}.'
        },
    )
    goals: Literal["recorded", "last", "uniform", "geometric"] | None = field(
        default=None,
        metadata={
            "help": "With --conditioning goal, the goal of a window: what its steps were recorded with, or what its "
            "episode achieved later: the last, or drawn uniformly or geometrically. If unset uniform, where the data "
            "have achieved goals."
        },
    )
    goals_from: list[int] | None = field(
        default=None,
        metadata={
            "help": "Numbers of the observation, from 0, that are the recorded goal, and then no part of it; if unset "
            "the column or part desired_goal."
        },
    )
    achieved_goals_from: list[str] | None = field(
        default=None,
        metadata={
            "help": "Numbers of the observation that are the achieved goal, such as the position, or observations for "
            "all of them; if unset the column or part achieved_goal."
        },
    )
    positions_only: bool = field(
        default=False,
        metadata={"help": "Leave velocities out, of MuJoCo's data and of the environment that is acted in."},
    )
    delayed_reward: bool = field(
        default=False,
        metadata={"help": "Put all reward at the end of an episode, in the data and when acting."},
    )
    held_out_fraction: float = field(
        default=0.05, metadata={"help": "Share of whole episodes kept back for eval_loss; 0 trains on all."}
    )
    top_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Learn from the best episodes alone, by return, which hold this share of all steps (filtered BC, "
            "%%BC); held-out ones are of the same kind."
        },
    )
    context_length: int | None = field(
        default=None,
        metadata={"help": "Steps in a window; if unset 20, for images 30, or that of the fine-tuned checkpoint."},
    )
    train_mode: Literal["windows", "sequences"] = field(
        default="windows",
        metadata={
            "help": "windows: each context_length steps from any place, without a past. sequences: whole episodes in "
            "chunks of context_length steps, from one to the next of which the states are carried (decision_mamba)."
        },
    )
    window_placement: Literal["full", "anywhere"] = field(
        default="anywhere",
        metadata={
            "help": "Where windows begin: anywhere in an episode, so that those at its end are padded (as Decision "
            "Transformer), or only where they are full."
        },
    )
    return_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Draw windows of good episodes more often, in proportion to exp(return / (temperature * range of "
            "returns)) (return weighting, Hong et al. 2023); 0.1 leaves little but the best. If unset, all alike."
        },
    )
    return_scale: float | None = field(
        default=None,
        metadata={
            "help": "Divides returns-to-go; if unset the largest of the training episodes, to two digits (1 where all "
            "returns are 0), or that of the fine-tuned checkpoint."
        },
    )
    state_normalization: Normalization | None = field(
        default=None,
        metadata={
            "help": "How states, and goals, are normalised: by mean and deviation, if unset; or so that smallest and "
            "largest (min_max), or 1st and 99th percentile (quantile), become -1 and 1; or not. A fine-tuned "
            "checkpoint keeps its own."
        },
    )
    action_normalization: Normalization | None = field(
        default=None,
        metadata={
            "help": "The same for continuous actions; if unset min_max where they reach beyond [-1, 1], else none. "
            "docs/data.md says what becomes of the tanh."
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

    def goal_numbers(self) -> GoalsFrom:
        """Return which numbers of an observation are goals.

        Raises:
            ValueError: `achieved_goals_from` is neither whole numbers nor `observations`.
        """
        given: Any = self.achieved_goals_from or []
        words = given if isinstance(given, list) else [given]
        try:
            achieved: Any = [int(word) for word in words] or None
        except ValueError:  # one that stands for all of them, or a wrong one
            achieved = " ".join(map(str, words))
        return GoalsFrom(self.goals_from, achieved)

    def views(self) -> list[str]:
        """Name the views that are asked for."""
        return [name for name in VIEWS if getattr(self, name)]

    def columns(self) -> dict[str, str]:
        """Return the column names to read, by the names that they have here.

        Raises:
            ValueError: `dataset_columns` is not a JSON object of strings.
        """
        return _json_object("dataset_columns", self.dataset_columns or "{}", '{"observations": "obs"}', (str,))

    def parts(self) -> dict[str, int] | None:
        """Return what observations were concatenated from, where the settings say it.

        Raises:
            ValueError: `observation_parts` is not a JSON object of whole numbers.
        """
        if self.observation_parts is None:
            return None
        return _json_object("observation_parts", self.observation_parts, '{"observation": 4}', (int,))


@dataclass
class EvaluationArguments:
    """How the policy is scored: after training, and if asked for at every evaluation during it."""

    _argument_group_name = "evaluation in the environment"

    env_id: str | None = field(
        default=None, metadata={"help": "gymnasium environment; the one that the data set's card names if unset."}
    )
    env_kwargs: str | None = field(
        default=None,
        metadata={
            "help": 'Keyword arguments for gymnasium.make as JSON: {"reset_noise_scale": 0.1}; if unset those of the '
            "data set."
        },
    )
    eval_episodes: int = field(default=20, metadata={"help": "Episodes per target return after training; 0 for none."})
    target_return: list[float] | None = field(
        default=None,
        metadata={
            "help": "Returns to ask for, the first one by default when the checkpoint acts; if unset the best return "
            "of the data set."
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

    def environment_kwargs(self) -> dict[str, Any] | None:
        """Return the keyword arguments for `gymnasium.make`; None where none are given.

        Raises:
            ValueError: `env_kwargs` is not a JSON object.
        """
        return parse_env_kwargs("env_kwargs", self.env_kwargs)


@dataclass
class DecisionMambaTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the defaults of this project."""

    _argument_group_name = "training (transformers.TrainingArguments)"

    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Where checkpoints and results are written; if unset runs/<model>-<data set>, with -seed<seed> if "
            "that is not the default."
        },
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
        metadata={
            "help": "last: go on from the newest complete checkpoint in output_dir; or a checkpoint folder. Optimizer, "
            "schedule and number of steps may change, and are used from there on."
        },
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
    time_dilation: float = field(
        default=0.0,
        metadata={
            "help": "Share of the steps that pass for many in training: their step sizes Δ are multiplied by a factor "
            "log-uniform in [1, time_dilation_max] (decision_mamba). 0 for none."
        },
    )
    time_dilation_max: float = field(default=1e6, metadata={"help": "The largest of these factors."})
    cpu_threads: int | None = field(
        default=None,
        metadata={"help": "CPU threads per process; torch's choice if unset, under accelerate launch all cores."},
    )

    def __post_init__(self) -> None:
        _check_ranges(self)
        if isinstance(self.lr_scheduler_kwargs, str):
            example, types = '{"min_lr_rate": 0.1}', (int, float, str)
            self.lr_scheduler_kwargs = _json_object("lr_scheduler_kwargs", self.lr_scheduler_kwargs, example, types)
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
    """Count the processes that were started as one training, as the launcher says.

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
    """Tell whether processes can train together on what this machine has beside its CPU; on Apple's GPU none can."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator is not None and accelerator.type != "mps"


#: Settings that may be paths, in which ~ is the home folder: no shell reads those of a YAML file, nor `--name=~/path`.
_PATHS = ("dataset_name", "model_name_or_path", "output_dir", "resume_from_checkpoint", "deepspeed")


def _json_object(name: str, text: str, example: str, types: tuple[type, ...]) -> dict[str, Any]:
    """Parse the object that a setting spells in JSON, with values of these types."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, types) for value in found.values()):
        raise ValueError(f"{name}={text} must be JSON such as {example}.")
    return found


#: The smallest value of each setting that is a number, where there is one.
_AT_LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    "cpu_threads": 1,
    "time_dilation": 0,
    "time_dilation_max": 1,
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "num_train_epochs"), 0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon", "seed", "data_seed", "dataloader_num_workers"), 0),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps", "eval_delay"), 0),
}
#: What some of them must stay below. (numpy's generator takes no larger seed.)
_BELOW = {"time_dilation": 1, "adam_beta1": 1, "adam_beta2": 1, "seed": 2**32, "data_seed": 2**32}


def _check_ranges(args: TrainingArguments) -> None:
    """Refuse numbers that no training can be done with, by their names."""
    for name, lowest in _AT_LEAST.items():
        value = getattr(args, name)
        limit = _BELOW.get(name, 2**31 if isinstance(value, int) else math.inf)
        if value is not None and not lowest <= value < limit:
            below = "finite" if limit == math.inf else f"below {limit}"
            raise ValueError(f"{name}={value} must be {below if value >= limit else f'at least {lowest}'}.")
    if not 1 <= args.max_steps < 2**31 and (args.max_steps != -1 or args.num_train_epochs == 0):
        raise ValueError(f"max_steps={args.max_steps} must be at least 1, or -1 to train num_train_epochs (above 0).")


class Arguments(tuple[ModelArguments, DataArguments, EvaluationArguments, DecisionMambaTrainingArguments]):
    """The four groups of settings of a run, and where they came from.

    Attributes:
        given: the settings that differ from their defaults, by name, as they were given.
        remarks: what becomes of a file's settings that were made for another model than the command line chooses.
    """

    given: dict[str, Any]
    remarks: list[str]


class _HelpFormatter(ArgumentDefaultsHelpFormatter):
    """Each option in one spelling (with underscores), though the one with hyphens works too."""

    def _format_action_invocation(self, action: Any) -> str:
        if action.option_strings and action.dest != "help":
            action = copy.copy(action)
            action.option_strings = action.option_strings[:1]
        return super()._format_action_invocation(action)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise one line instead of printing the usage, which is a page long."""
        raise ValueError(f"{message} (--help lists all settings)")


_ANOTHER_MODEL = (
    "Where the command line chooses another model than the file (preset, architecture, checkpoint), a file that was "
    "named keeps its sizes and context length, as far as that model has them; those of the default file are left out."
)


def build_parser() -> HfArgumentParser:
    """Build the command line: the four groups of settings, nothing abbreviated."""
    groups: Any = (ModelArguments, DataArguments, EvaluationArguments, DecisionMambaTrainingArguments)
    parser = _Parser(
        groups,
        usage="accelerate launch train.py [settings.yaml] [--setting value ...]",
        description="Train a decision model on trajectories, score it in its environment, and write its card. Settings "
        "come from the YAML file, and from the command line, which wins. " + _ANOTHER_MODEL,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    for action in parser._actions:
        if action.dest in _PATHS:
            action.type = os.path.expanduser
    return parser


#: What stands where the command line says nothing; no value of a setting.
_UNSET = object()


def parse_arguments(argv: Sequence[str], default_config: Path | None = None) -> Arguments:
    """Read settings from a YAML file (the first argument, if it is no option) and the command line, which wins.

    Where the command line chooses another model than the file (preset, architecture, checkpoint), a file that was named
    keeps its sizes and context length, as far as that model has them; those of the default file are left out. A
    checkpoint has a return scale of its own; other data than those of the default file have a target return too.

    In the YAML file, a value that starts with `./` or `../` is a path relative to the file's folder; all other paths
    are relative to the working directory, as they are on the command line.

    Args:
        argv: the arguments without the program's name.
        default_config: the YAML file when `argv` names none.

    Raises:
        FileNotFoundError: there is no such YAML file.
        ValueError: an unknown setting (with the closest known one), or a value of the wrong type or out of range.
    """
    parser, argv = build_parser(), list(argv)
    options = _options(parser)
    named = bool(argv) and not argv[0].startswith("-")
    config = Path(argv.pop(0)).expanduser() if named else default_config
    from_file = {} if config is None else _read_yaml(config, parser, options)
    typed, unknown = parser.parse_known_args(argv, Namespace(**dict.fromkeys(options, _UNSET)))
    if unknown:
        raise ValueError(f"Unknown argument {unknown[0]!r}{_closest(unknown[0].split('=')[0], [*options], '--')}")
    from_argv = {name: value for name, value in vars(typed).items() if value is not _UNSET}
    left_out, remarks = _of_another_model(from_file, from_argv, named)
    if of_others := _of_other_returns(from_file, from_argv, named):
        left_out = [*left_out, *of_others]
        remarks = [*remarks, f"{', '.join(of_others)} left out (meant for other data or training)"]
    normalizations = [name for name in NORMALIZATIONS if name in from_file and name not in from_argv]
    if normalizations and _fine_tunes_another(from_file, from_argv):
        left_out = [*left_out, *normalizations]
        remarks = [*remarks, f"{' and '.join(normalizations)} left out (the checkpoint has its own)"]
    kept = {name: value for name, value in from_file.items() if name not in left_out}
    return _arguments(parser, {**kept, **from_argv}, [f"settings     {config}: {remark}" for remark in remarks])


def arguments_from(settings: Mapping[str, Any]) -> Arguments:
    """Check settings that were given from Python, as those of a YAML file are: by their names, None for the default.

    Raises:
        TypeError: a value of a type that no setting has.
        ValueError: an unknown setting (with the closest known one), or a value of the wrong type or out of range.
    """
    parser = build_parser()
    options, converted = _options(parser), {}
    for name, value in settings.items():
        if name not in options:
            every = "; hf-decision-mamba train --help lists all settings."
            raise ValueError(f"Unknown setting {name!r}{_closest(name, [*options], otherwise=every)}")
        if value is None or (isinstance(value, (list, tuple)) and len(value) == 0):
            continue
        try:
            converted[name] = _from_python(parser, options[name], value)
        except ArgumentError as error:
            raise ValueError(f"{name}={value!r}: {error.message}") from error
    return _arguments(parser, converted, [])


def _options(parser: HfArgumentParser) -> dict[str, Action]:
    """Return the settings by name."""
    options: dict[str, Action] = {}
    for action in parser._actions:
        if action.dest != "help":
            options.setdefault(action.dest, action)  # not its --no_ form, which comes second
    return options


def _arguments(parser: HfArgumentParser, chosen: Mapping[str, Any], remarks: list[str]) -> Arguments:
    """Make the four groups, of converted settings and the defaults of all others."""
    defaults = {name: parser.get_default(name) for name in _options(parser)}
    settings = {**defaults, **chosen}
    given = {name: value for name, value in settings.items() if value != defaults[name]}
    settings["output_dir"] = settings["output_dir"] or _run_folder(settings)
    arguments = Arguments(parser.parse_dict(settings))
    arguments.given, arguments.remarks = given, remarks
    return arguments


def _of_another_model(
    from_file: Mapping[str, Any], from_argv: Mapping[str, Any], named: bool
) -> tuple[list[str], list[str]]:
    """List the file's settings to leave out where the command line chooses another model; remark on them if it does.

    Args:
        named: whether the file was named on the command line.
    """
    of_file = {name: from_file.get(name, getattr(ModelArguments, name)) for name in _MODEL_CHOICE}
    chosen = [name for name, value in of_file.items() if from_argv.get(name, value) != value]
    of_a_model = {*(entry.name for entry in fields(ModelArguments)), "context_length"}
    of_its_model = [name for name in from_file if name in of_a_model and name not in from_argv]
    if not chosen or not of_its_model:
        return [], []
    kept = [name for name in of_its_model if named and _applies(name, from_file[name], from_argv)]
    left_out = [name for name in of_its_model if name not in kept]
    choice = " ".join(f"--{name} {from_argv[name]}" for name in chosen)
    remarks = [f"{', '.join(kept)} kept with {choice}"] if kept else []
    if left_out:
        why = f"not of {choice}" if named else f"it is of another model than {choice}; name the file to keep them"
        remarks.append(f"{', '.join(left_out)} left out ({why})")
    return left_out, ["; ".join(remarks)]


def _applies(name: str, value: Any, from_argv: Mapping[str, Any]) -> bool:
    """Tell whether a setting of a file means something to the model that the command line chooses."""
    of_preset = "gru" if from_argv.get("preset") == "gru" else ModelArguments.architecture
    architecture = from_argv.get("architecture", of_preset)
    if name == "context_length":
        return True
    if "model_name_or_path" in from_argv:
        return name == "scan_backend"  # all others are the checkpoint's
    if name in _MODEL_CHOICE:
        return {"architecture": value, "preset": architecture}.get(name) == ModelArguments.architecture
    return name in fields_of(architecture)


def _of_other_returns(from_file: Mapping[str, Any], from_argv: Mapping[str, Any], named: bool) -> list[str]:
    """Name the file's settings that are of other returns than those of the run.

    A checkpoint has a return scale of its own; data that a default file was not made for have a scale and a target, and
    are not weighted by them. Neither is what does not draw windows by return.
    """
    of_file, chosen = (
        [Path(name).resolve() for name in settings.get("dataset_name") or []]
        for settings in (from_file, {**from_file, **from_argv})
    )
    other_data = not named and of_file != chosen
    draws_otherwise = (
        from_argv.get("train_mode") == "sequences"
        or bool(from_argv.get("streaming"))
        or from_argv.get("conditioning") == "goal"
    )
    of_others = {
        "return_scale": other_data or _fine_tunes_another(from_file, from_argv),
        "target_return": other_data,
        "return_temperature": other_data or draws_otherwise,
    }
    return [name for name, is_so in of_others.items() if is_so and name in from_file and name not in from_argv]


def _fine_tunes_another(from_file: Mapping[str, Any], from_argv: Mapping[str, Any]) -> bool:
    """Tell whether the command line names a checkpoint to fine-tune that the file does not."""
    return from_argv.get("model_name_or_path") not in (None, from_file.get("model_name_or_path"))


def _run_folder(settings: Mapping[str, Any]) -> str:
    """Name the folder of a run that nobody gave one: after its model, its data, and a seed of its own."""
    baseline = settings["architecture"] != ModelArguments.architecture
    model = settings["model_name_or_path"] or settings["architecture" if baseline else "preset"]
    sources = [name for given in settings["dataset_name"] or ["data"] for name in sorted(glob(given)) or [given]]
    names = []
    for source in (model, *sources[:_SOURCES_NAMED]):
        path = Path(source)
        names.append(path.stem if path.is_file() else path.resolve().name)
    if len(sources) > _SOURCES_NAMED:
        names.append(f"{len(sources) - _SOURCES_NAMED}-more")
    if settings["seed"] != DecisionMambaTrainingArguments.seed:
        names.append(f"seed{settings['seed']}")
    return f"runs/{'-'.join(names)}"


def _read_yaml(path: Path, parser: HfArgumentParser, options: Mapping[str, Action]) -> dict[str, Any]:
    """Read the settings of a YAML file, check and convert them as the command line's; an empty one is the default."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no settings file {path}; the first argument is a YAML file or an option.")
    content = path.read_bytes()
    try:
        loader = yaml.SafeLoader(content)
        node = loader.get_single_node()
        names = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        settings = None if node is None else loader.construct_document(node)
    except Exception as error:  # PyYAML lets through what its constructors raise, and RecursionError
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold lines of the form `setting: value`, not a {type(settings).__name__}.")
    nodes = {key.value: value for key, value in node.value}
    converted = {}
    for name, value in settings.items():
        if name not in options:
            raise ValueError(f"{path}: unknown setting {name!r}{_closest(str(name), [*options])}")
        if names.count(name) > 1:
            raise ValueError(f"{path}: {name} is set {names.count(name)} times.")
        try:
            if value is not None and value != []:
                converted[name] = _converted(parser, options[name], value, nodes[name], path.parent)
        except (ArgumentError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
    return converted


def _converted(parser: HfArgumentParser, option: Action, value: Any, node: yaml.Node, folder: Path) -> Any:
    """Convert a value of a YAML file to what the command line would give."""
    if option.nargs == "+":
        values = value if isinstance(value, list) else [value]
        nodes = node.value if isinstance(value, list) else [node]
        return [_item(parser, option, *item, folder) for item in zip(values, nodes, strict=True)]
    if isinstance(value, list) and len(value) == 1:
        value, node = value[0], node.value[0]
    return _item(parser, option, value, node, folder)


def _from_python(parser: HfArgumentParser, option: Action, value: Any) -> Any:
    """Convert a value given from Python to what the command line would give."""
    if option.nargs == "+":
        values = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
        return [_text_as_value(parser, option, _text(option.dest, item)) for item in values]
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return _text_as_value(parser, option, _text(option.dest, value))


def _text(name: str, value: Any) -> str:
    """Write a value given from Python as on a command line."""
    value = getattr(value, "value", value)  # enumerations by their names
    if isinstance(value, Mapping):
        try:
            return json.dumps(value)
        except TypeError as error:
            raise TypeError(f"{name}={value!r} must hold what JSON can: {error}.") from error
    if not isinstance(value, (str, Path, bool, int, float, np.generic)):
        raise wrong_type(name, value, "a number, a text, or a list of them")
    return str(value)


def _text_as_value(parser: HfArgumentParser, option: Action, text: str) -> Any:
    if "\0" in text:
        raise ValueError(f"{option.dest} holds a NUL byte.")
    converted = parser._get_value(option, text)
    parser._check_value(option, converted)
    return converted


def _item(parser: HfArgumentParser, option: Action, value: Any, node: yaml.Node, folder: Path) -> Any:
    if isinstance(value, dict) and _is_flat(value) and option.nargs != "+":
        text = json.dumps(value, default=str)
    elif not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"{option.dest} takes one value, not a {type(value).__name__}.")
    elif option.type in (int, float, string_to_bool):
        text = str(value)
    else:
        text = node.value  # as it is written: YAML would make a bool of `no`, and a number of a commit
        if text.startswith(("./", "../")):
            text = os.path.relpath(folder / text)
    return _text_as_value(parser, option, text)


def _is_flat(value: Any, depth: int = 2) -> bool:
    """Tell whether a YAML value nests no deeper; a few lines can unfold to more than a memory holds."""
    if isinstance(value, (dict, list)):
        items = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_flat(item, depth - 1) for item in items)
    return True


def _closest(name: str, known: Sequence[str], prefix: str = "", otherwise: str = "; --help lists all settings.") -> str:
    matches = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), known, n=1, cutoff=0.5)
    return f"; did you mean {prefix}{matches[0]}?" if matches else otherwise
