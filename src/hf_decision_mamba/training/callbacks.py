"""What happens beside the optimisation: progress, the sampler's epoch, and rollouts that score a model in training."""

import sys
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.utils import is_in_notebook

from ..acting.policy import DecisionMambaPolicy
from ..data import SequenceSampler, WindowSampler
from ..evaluation.result import EvaluationResult
from ..evaluation.rollouts import evaluate_policy
from ..model import DecisionMambaProcessor

#: What rollouts are measured by, without transformers' prefix `eval_`.
SCORES = ("return_mean", "return_std", "normalized_score", "success_rate")


class SetEpoch(TrainerCallback):
    """Tell the sampler the epoch; accelerate does not reach it when several processes resume within an epoch."""

    def __init__(self, sampler: WindowSampler | SequenceSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


class TrainingProgress(ProgressCallback):
    """A progress bar with loss and learning rate in it, and one line for each evaluation."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Open the bar, where a resumed run left it."""
        self.current_step = state.global_step
        if state.is_world_process_zero:
            interval = 0.1 if sys.stderr.isatty() or is_in_notebook() else 10.0  # a log file needs no animation
            self.training_bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                mininterval=interval,
            )

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: TrainerControl, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Draw no second bar: the held-out windows take a moment."""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Show losses in the bar, evaluations above it."""
        if not state.is_world_process_zero or self.training_bar is None:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(
                {"loss": f"{logs['loss']:.4g}", "lr": f"{logs['learning_rate']:.2e}"}, refresh=False
            )
        timings = ("_runtime", "_per_second", "_time")
        shown = [f"{k} {v:.4g}" for k, v in logs.items() if k.startswith("eval_") and not k.endswith(timings)]
        if shown:
            self.training_bar.write(f"step {state.global_step:,}: {', '.join(shown)}")


class RolloutCallback(TrainerCallback):
    """Roll the policy out after every evaluation and add its scores to the metrics, before the best model is chosen.

    Adds `eval_return_mean`, `eval_return_std`, `eval_normalized_score` where a reference exists, and
    `eval_success_rate` where the environment says which episodes were a success.

    Args:
        env_id: gymnasium environment.
        episodes: episodes per evaluation.
        target_return: the return to ask for, in the environment's units; None of a model of goals.
        seed: of the environments; the same episodes are played at every evaluation.
        mode: of the policy, `"window"` or `"recurrent"`.
        max_episode_steps: truncates longer episodes.
        env_kwargs: keyword arguments that the environment is made with.
    """

    def __init__(
        self,
        env_id: str,
        *,
        episodes: int,
        target_return: float | None,
        seed: int = 0,
        mode: Literal["window", "recurrent"] = "window",
        max_episode_steps: int | None = None,
        env_kwargs: dict[str, Any] | None = None,
    ):
        self.env_id = env_id
        self.env_kwargs = env_kwargs
        self.episodes = episodes
        self.target_return = target_return
        self.seed = seed
        self.mode: Literal["window", "recurrent"] = mode
        self.max_episode_steps = max_episode_steps

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any = None,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Play the episodes on the main process, and tell the others, who choose the best model too."""
        scores = [self.scores(model, processing_class, self.episodes) if state.is_world_process_zero else {}]
        metrics.update(broadcast_object_list(scores)[0])

    def scores(self, model: PreTrainedModel, processor: DecisionMambaProcessor, episodes: int) -> dict[str, float]:
        """Play so many episodes and return the metrics."""
        policy = DecisionMambaPolicy(as_saved(model), processor, mode=self.mode)
        result = evaluate_policy(
            policy,
            self.env_id,
            episodes=episodes,
            target_returns=None if self.target_return is None else [self.target_return],
            seed=self.seed,
            max_episode_steps=self.max_episode_steps,
            env_kwargs=self.env_kwargs,
            progress=False,
        )
        return score_metrics(result)


def as_saved(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model as its checkpoint is loaded: without the mixed precision that training wraps around it."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # fresh weights are drawn, which training must not notice
        copy: Any = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.to(model.device)


def score_metrics(result: EvaluationResult) -> dict[str, float]:
    """Name what the first target return of an evaluation reached, as metrics."""
    row = result.summary()[0]
    metrics = {"eval_return_mean": row["return_mean"], "eval_return_std": row["return_std"]}
    if row.get("normalized_score_mean") is not None:
        metrics["eval_normalized_score"] = row["normalized_score_mean"]
    if row.get("success_rate") is not None:
        metrics["eval_success_rate"] = row["success_rate"]
    return metrics
