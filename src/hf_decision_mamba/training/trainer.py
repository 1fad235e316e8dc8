"""DecisionMambaTrainer: transformers' Trainer for windows of trajectories, with exact losses and rollouts.

The loss is one mean over all action entries, however a batch is split, and a killed run resumes to the bit.
Source: transformers' Trainer, whose hooks are overridden here.
"""

import inspect
import logging
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_pt_utils import get_parameter_names
from transformers.trainer_utils import HubStrategy, SaveStrategy

from ..data import (
    SequenceDataset,
    SequencePass,
    SequenceSampler,
    Trajectories,
    WindowDataset,
    WindowSampler,
    WindowStream,
    collate,
)
from ..data.windows import IGNORED_LABEL, window_settings
from ..model import DecisionMambaProcessor
from ..reporting.checks import wrong_type
from ..reporting.console import say
from ..reporting.files import files_at_top, replacing_together, writing
from ..sharing import model_card as hub
from ..sharing.push import PushError
from .callbacks import SetEpoch, TrainingProgress
from .carrying import CarriedStates, carried_file
from .checkpoints import PROCESSES, last_complete_checkpoint
from .record import write_run
from .task import data_seed_of

# What an optimizer's groups have from the arguments; some optimizers keep state in them too.
_OF_ARGUMENTS = ("lr", "initial_lr", "weight_decay", "betas", "eps")


def action_errors(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the errors, and number of entries that count (label not `IGNORED_LABEL`), of every row: (b,), (b,).

    Squared errors of continuous actions (b, K, A); cross-entropies of the logits (b, K, A) of discrete ones, whose
    labels are integers (b, K).
    """
    counted = labels != IGNORED_LABEL
    if labels.is_floating_point():
        errors = torch.where(counted, predictions.float() - labels.float(), 0.0).square()
    else:
        errors = F.cross_entropy(predictions.float().mT, labels, ignore_index=IGNORED_LABEL, reduction="none")
    return errors.flatten(1).sum(1), counted.flatten(1).sum(1)


def action_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Compute the mean error of `outputs.action_preds` (b, K, A), see `action_errors`, for models without a loss.

    Args:
        num_items_in_batch: divisor of the sum; the number of entries that count when not given.
    """
    errors, counts = action_errors(outputs["action_preds"], labels)
    return errors.sum() / (counts.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


class DecisionMambaTrainer(Trainer):
    """Trainer for models with `DecisionTransformerModel`'s forward; a model without `labels` gets the same loss.

    Batches come finished from a `WindowDataset`, in the order of a `WindowSampler`, or from a `WindowStream`. Of
    `Trajectories`, the windows are those that `processing_class` shows a model when it acts; for evaluation they do not
    overlap. The loss
    is a mean over all action entries of a step's batch, over gradient accumulation and over processes; so is
    `eval_loss` over the whole data.

    Training that is resumed uses the arguments of now: learning rate and schedule, the optimizer's other settings, and
    the intervals. `run`, where it is set, is kept with every checkpoint (see `record.read_run`).

    With `push_to_hub`, checkpoints are pushed as `hub_strategy` says, each in one commit and as `hub.push_to_hub` does
    it: card, weights and processor, never a pickle. `"every_save"` pushes in the background; a save is skipped while
    the one before it is under way, unless `hub_always_push`. A push that fails is reported, and training goes on.
    """

    model: PreTrainedModel
    train_dataset: Any
    processing_class: Any
    hub_model_id: Any
    run: Any = None

    def __init__(self, model: PreTrainedModel, args: TrainingArguments, **kwargs: Any):
        _check_types(model, args)
        processor = kwargs.get("processing_class")
        for name, cut in (("train_dataset", WindowDataset), ("eval_dataset", WindowDataset.covering)):
            kwargs[name] = _windows(name, kwargs.get(name), processor, cut)
        args.remove_unused_columns = False  # batches are finished; `compute_loss` drops what the forward does not take
        args.label_names = args.label_names or ["labels"]
        args.logging_nan_inf_filter = False  # `training_step` stops at such a loss instead of hiding it
        self._forward_arguments = set(inspect.signature(model.forward).parameters)
        if "labels" not in self._forward_arguments:
            kwargs.setdefault("compute_loss_func", action_loss)
        kwargs.setdefault("data_collator", collate)
        self._pushes = ThreadPoolExecutor(1, "push")
        self._last_push: Future[None] | None = None
        super().__init__(model, args, **kwargs)
        self._eval_errors, self._eval_count = 0.0, 0
        self._carried, self._lane = CarriedStates(model), -1
        if self.pop_callback(DEFAULT_PROGRESS_CALLBACK) is not None:
            self.add_callback(TrainingProgress())
        self.add_callback(_OfNow(self))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that draw as many windows as there are, rounded up to whole batches."""
        return math.ceil(len(self.train_dataset) / self.windows_per_step)

    @property
    def last_step(self) -> int:
        """Optimizer steps of the whole training."""
        args = self.args
        return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * self.steps_per_epoch)

    @property
    def windows_per_step(self) -> int:
        """Windows of one optimizer step, over all its passes and processes."""
        return int(self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size)

    @property
    def output_dir(self) -> Path:
        """Where the run is written."""
        return Path(str(self.args.output_dir))

    def get_train_dataloader(self) -> DataLoader:
        """Load as Trainer does; a stream is not distributed, of sequences each pass and process has its own rows."""
        args = self.args
        names = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor")
        settings: dict[str, Any] = {name: getattr(args, f"dataloader_{name}") for name in names}
        if isinstance(self.train_dataset, WindowStream):
            return DataLoader(self.train_dataset, batch_size=None, **settings)
        if not isinstance(self.train_dataset, SequenceDataset):
            return super().get_train_dataloader()
        lanes = args.gradient_accumulation_steps * args.world_size
        sampler = SequenceSampler(self.train_dataset.chunks(), self._train_batch_size, lanes, data_seed_of(args))
        self._tell_epochs(sampler)
        loader = DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=collate, **settings)
        return self.accelerator.prepare_data_loader(loader)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Load as Trainer does, but every process reads all of the sequences, each from its episode's start."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(dataset, SequenceDataset):
            return super().get_eval_dataloader(eval_dataset)
        sampler = SequencePass(dataset.chunks(), self.args.eval_batch_size)
        return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, WindowDataset):
            return super()._get_train_sampler(train_dataset)
        # Whole batches only: no step is smaller, whichever way its batch is split over passes and processes.
        count = self.steps_per_epoch * self.windows_per_step
        sampler = dataset.sampler(data_seed_of(self.args), count)
        self._tell_epochs(sampler)
        return sampler

    def _tell_epochs(self, sampler: WindowSampler | SequenceSampler) -> None:
        self.pop_callback(SetEpoch)
        self.add_callback(SetEpoch(sampler))

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """List what decays: matrices that multiply activations, not A_log, D, norms, biases and embeddings."""
        names = get_parameter_names(model, [torch.nn.LayerNorm, torch.nn.Embedding])
        shapes = {name: parameter.dim() for name, parameter in model.named_parameters()}
        return [name for name in names if shapes.get(name, 0) > 1 and not re.search(r"(^|\.)(A_log|D|bias)$", name)]

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Train as Trainer does, but end at a loss that is not finite, before it reaches the weights.

        Raises:
            FloatingPointError: the loss is NaN or infinite; says where the last checkpoint is.
        """
        self._lane = (self._lane + 1) % self.args.gradient_accumulation_steps
        with self._carried.of(self._lane):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            last = last_complete_checkpoint(self.output_dir)
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}, so training stopped. The last "
                f"checkpoint is {last or 'not written yet'}; lower --learning_rate or --max_grad_norm and start again."
            )
        return loss

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Do as Trainer's, without inputs that the model's forward does not take, and with the state of its rows."""
        if "begins" in inputs:
            inputs = {**inputs, "cache_params": self._carried.at(inputs["begins"])}
        share, largest = (getattr(self.args, name, 0.0) for name in ("time_dilation", "time_dilation_max"))
        if share and model.training:
            inputs = {**inputs, "time_scale": self._time_scale(inputs["attention_mask"], share, largest)}
        inputs = {name: value for name, value in inputs.items() if name in self._forward_arguments or name == "labels"}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _time_scale(self, like: Tensor, share: float, largest: float) -> Tensor:
        """Draw the factors (b, K) on the step sizes of a batch; they depend on its place in the training alone."""
        place = (self.state.global_step, self._lane, self.args.process_index)
        random = np.random.default_rng([self.args.seed, *place])
        exponents = random.uniform(0, math.log(largest), size=like.shape)
        factors = np.where(random.random(like.shape) < share, np.exp(exponents), 1.0)
        return torch.from_numpy(factors.astype(np.float32)).to(like.device)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Any, Any]:
        """Predict as Trainer does, and add the batch to the sums behind `eval_loss`."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        # Rows that only fill up the last batch of several processes are dropped again here.
        errors, counts = self.accelerator.gather_for_metrics(action_errors(outputs["action_preds"], labels))
        self._eval_errors += errors.double().sum().item()
        self._eval_count += int(counts.sum().item())
        predictions = None if prediction_loss_only else outputs["action_preds"]
        return loss.detach(), predictions, None if prediction_loss_only else labels

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as Trainer does, but take the mean loss over all action entries, not over the batches' means."""
        self._eval_errors, self._eval_count = 0.0, 0
        with self._carried.of("evaluation"):
            output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        assert output.metrics is not None
        output.metrics[f"{prefix}_loss"] = self._eval_errors / max(self._eval_count, 1)
        return output

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as Trainer does; what callbacks add to the metrics (see `RolloutCallback`) is logged too."""
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        logged = self.state.log_history[-1]
        added = {name: value for name, value in metrics.items() if name not in logged}
        if added and not isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict):
            logged.update(added)
            self.control = self.callback_handler.on_log(self.args, self.state, self.control, dict(added))
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save weights, config and processor; with `push_to_hub`, push them if it is the user who saves.

        They take the place of earlier ones when all are written.
        """
        super().save_model(output_dir, _internal_call=True)
        folder = Path(output_dir or self.output_dir)
        if self.args.push_to_hub and not _internal_call and self.is_world_process_zero():
            self.push_or_say(folder, "Model save")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as Trainer does, but for the pickle of the arguments, which holds tokens."""
        folder = Path(output_dir or self.output_dir)
        if not self.args.should_save:
            super()._save(str(folder), state_dict)
            return
        with _writing(folder), replacing_together(folder, "config.json") as draft:
            super()._save(str(draft), state_dict)
            (draft / "training_args.bin").unlink()

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        # trainer_state.json is written last; without it, a folder that is being overwritten does not look complete.
        folder = self.output_dir / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / "trainer_state.json").unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()  # nobody writes a random state before
        callbacks: Any = self.state.stateful_callbacks  # what callbacks of a resumed training read, by name
        callbacks[PROCESSES] = {"args": {"count": self.args.world_size}, "attributes": {}}
        try:
            with _writing(folder):
                super()._save_checkpoint(model, trial)
        except OSError:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)  # of no use, and there may be no room
            raise

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self._carried.save(Path(output_dir) / carried_file(self.args.process_index))
        self.accelerator.wait_for_everyone()  # trainer_state.json is written when all processes have theirs

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and isinstance(self.train_dataset, SequenceDataset):
            self._carried.load(Path(checkpoint) / carried_file(self.args.process_index), self.args.device)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """Start as Trainer does, but do not warn that arguments and checkpoint differ: here, the arguments are used."""
        logs = [logging.getLogger(f"transformers.{name}") for name in ("trainer", "trainer_utils")]
        for log in logs:
            log.addFilter(_is_of_something_else)
        try:
            return super()._init_training_state(*args, **kwargs)
        finally:
            for log in logs:
                log.removeFilter(_is_of_something_else)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.run is not None and self.args.should_save:
            self.run["stretches"][-1]["to_step"] = self.state.global_step
            write_run(Path(output_dir), self.run)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load as Trainer does, but only what was learned and the place in the schedule; the settings are the run's."""
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer: Any = self.optimizer
        scheduler: Any = self.lr_scheduler
        asked = [{name: group[name] for name in _OF_ARGUMENTS if name in group} for group in optimizer.param_groups]
        loaded: Any = _SchedulerState()
        self.lr_scheduler = loaded
        super()._load_optimizer_and_scheduler(checkpoint)
        self.lr_scheduler = scheduler
        if isinstance(scheduler, LambdaLR):
            place = loaded.state.get("last_epoch") if "lr_lambdas" in loaded.state else self.state.global_step
            scheduler.last_epoch = place
            rates = [base * share(place) for base, share in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
        elif "lr_lambdas" in loaded.state or self._has_new_schedule():  # one that follows the losses begins anew
            rates = [settings["lr"] for settings in asked]
        else:
            scheduler.load_state_dict(loaded.state)
            rates = [group["lr"] for group in optimizer.param_groups]
        scheduler._last_lr = rates
        for group, settings, rate in zip(optimizer.param_groups, asked, rates, strict=True):
            group.update({**settings, "lr": rate})

    def _has_new_schedule(self) -> bool:
        """Tell whether the stretch that begins here has another schedule than the one before."""
        stretches = [] if self.run is None else self.run["stretches"]
        if len(stretches) < 2 or stretches[-1]["from_step"] != self.state.global_step:
            return False
        before, after = (stretch["settings"] or {} for stretch in stretches[-2:])
        names = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs")
        return any(before.get(name) != after.get(name) for name in names)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Check the arguments; the first push creates the repository, so that training starts without a network."""
        check_hub_arguments(self.args)
        self.hub_model_id = self.args.hub_model_id

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model and push `output_dir`, see `hub.push_to_hub`, after the push that is under way.

        Args: as Trainer's; `kwargs`, which are for its card, are not used.

        Returns:
            The address; its Future if not `blocking`; None on other processes than the main one.

        Raises:
            PushError: the push failed.
        """
        if self.hub_model_id is None:
            self.init_hf_repo()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        push = self._pushes.submit(self._push, self.output_dir, commit_message, token, revision, private)
        return push.result() if blocking else push

    def push_or_say(self, folder: Path, commit_message: str | None = None, *, failed: str = "Not pushed.") -> None:
        """Push a checkpoint folder after the push that is under way; say where it is, or that it `failed` and why."""
        try:
            say(f"pushed to    {self._pushes.submit(self._push, folder, commit_message).result()}")
        except Exception as error:  # whatever it is, the training is worth more than the push
            say(f"{failed} {error}")

    def _push(
        self,
        folder: Path,
        commit_message: str | None,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> str:
        return hub.push_to_hub(
            folder,
            self.hub_model_id,
            private=bool(self.args.hub_private_repo if private is None else private),
            revision=revision or self.args.hub_revision,
            token=token or self.args.hub_token,
            commit_message=commit_message,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint in the background; a copy of it, as Trainer deletes old checkpoints meanwhile."""
        under_way = self._last_push is not None and not self._last_push.done()
        skipped = self.args.hub_strategy == HubStrategy.END or (under_way and not self.args.hub_always_push)
        if skipped or not self.is_world_process_zero():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        step = self.state.global_step
        try:
            copy = tempfile.TemporaryDirectory(prefix="push-")
            for name in files_at_top(Path(checkpoint_folder), hub.CHECKPOINT_FILES):
                shutil.copyfile(Path(checkpoint_folder) / name, Path(copy.name) / name)
        except OSError as error:
            say(f"Step {step:,} was not pushed: it could not be copied ({error}). Training goes on.")
            return
        self._last_push = self._pushes.submit(self._push_copy, copy, step)

    def _push_copy(self, copy: tempfile.TemporaryDirectory, step: int) -> None:
        with copy as folder:
            try:
                self._push(Path(folder), f"Training in progress, step {step}")
            except Exception as error:
                reason = error.reason if isinstance(error, PushError) else f"{type(error).__name__}: {error}."
                say(f"Step {step:,} was not pushed: {reason} Training goes on.")

    def _finish_current_push(self) -> None:
        if self._last_push is not None:
            self._last_push.result()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Render the card of `output_dir` (see `hub.write_model_card`); Trainer's own arguments are not used."""
        if self.is_world_process_zero():
            hub.write_model_card(self.output_dir)


def _check_types(model: Any, args: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise wrong_type("model", model, "a model, such as DecisionMambaModel(config) (of a policy, policy.model)")
    if not isinstance(args, TrainingArguments):
        raise wrong_type("args", args, "transformers' TrainingArguments(output_dir=...)")


def _windows(name: str, data: Any, processor: Any, cut: Callable[..., WindowDataset]) -> Any:
    """Cut trajectories into windows; what is made of windows already is left as it is.

    Args:
        name: of the argument.
        data: a data set, or a dict of several for evaluation.
        processor: says what windows a model sees.
        cut: makes the windows.

    Raises:
        TypeError: there is no processor, or `data` is something else.
    """
    if isinstance(data, dict) and name == "eval_dataset":
        return {key: _windows(f"{name}[{key!r}]", value, processor, cut) for key, value in data.items()}
    if isinstance(data, Trajectories):
        if not isinstance(processor, DecisionMambaProcessor):
            raise wrong_type(
                "processing_class", processor, f"the DecisionMambaProcessor by which {name} is cut into windows"
            )
        return cut(data, context_length=processor.context_length, **window_settings(processor))
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if data is None or isinstance(data, IterableDataset):
        return data
    if not indexed or isinstance(data, (str, bytes, dict, np.ndarray, Tensor)):
        raise wrong_type(name, data, "Trajectories, as load_trajectories(source) returns them, or a WindowDataset")
    return data


def check_hub_arguments(args: TrainingArguments) -> None:
    """Refuse settings of a push that cannot be right.

    Raises:
        ValueError: no repository, a malformed name of one, or a `hub_strategy` that would send pickles.
    """
    if args.hub_model_id is None:
        raise ValueError("push_to_hub needs the repository to push to: --hub_model_id owner/name")
    validate_repo_id(args.hub_model_id)
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"hub_strategy={HubStrategy(args.hub_strategy).value} would send optimizer.pt, scheduler.pt and "
            "rng_state.pth to resume from. They are pickles, which can run code where they are loaded, so they are not "
            "pushed. Take every_save: each save is a commit without them, which revision=COMMIT loads. To resume "
            "elsewhere, copy the output_dir."
        )


def _is_of_something_else(record: logging.LogRecord) -> bool:
    return "The following arguments do not match" not in record.getMessage()


class _SchedulerState:
    """Takes the state of a schedule out of a checkpoint, of whichever kind it is."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


class _OfNow(TrainerCallback):
    """In training that is resumed, use the intervals of now; note the highest learning rate of each stretch."""

    def __init__(self, trainer: DecisionMambaTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Replace the intervals that the checkpoint had."""
        state.compute_steps(args, state.max_steps)

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Note the learning rate that is about to be used, if none was higher."""
        if self.trainer.run is not None:
            stretch = self.trainer.run["stretches"][-1]
            rates = [float(group["lr"]) for group in optimizer.param_groups]
            stretch["highest_learning_rate"] = max(*rates, stretch.get("highest_learning_rate", 0.0))


class StopOnInterrupt(TrainerCallback):
    """Save a checkpoint and stop at the end of the step in which a signal was noted; `signal` is its number."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def note(self, number: int) -> None:
        """Note the signal."""
        self.signal = number

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell the Trainer; who never saves is not saved for."""
        if self.signal is not None:
            control.should_save |= args.save_strategy != SaveStrategy.NO
            control.should_training_stop = True


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Make OSErrors, too, of what safetensors and torch raise where there is no room."""
    try:
        with writing(folder):
            yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("inline_container|iostream", str(error)):  # of torch.save
            raise
        raise OSError(f"{folder} cannot be written; is the disk full? ({error})") from error
