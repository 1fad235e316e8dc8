"""Looking inside a checkpoint: what its decisions in real episodes attend to, depend on and remember.

Episodes are rolled out, or taken from a data set; `analysis` measures the windows that the policy reads in them, and
`page` makes pictures and a page of the result. Source: DeMa (arXiv 2405.12094, section 5, figure 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from ..acting.checks import check_policy
from ..acting.policy import DecisionMambaPolicy
from ..evaluation.environments import env_kwargs_for
from ..evaluation.result import EvaluationResult
from ..evaluation.rollouts import evaluate_policy
from ..model import DecisionMambaModel
from ..reporting.files import command_line, portable
from ..reporting.versions import package_versions
from .effective_context import EffectiveContext, effective_context
from .episodes import DecisionWindows, PlayedEpisodes, chosen_episodes, play_episodes
from .hidden_attention import Decay, decay_rate, hidden_attention
from .memory import MemoryOfBeginning, check_carries_state, memory_of_beginning
from .time_constants import TimeConstants, time_constants

TIMESTEPS = (300, 600)  # the paper's
_TARGETS = (0.25, 0.5, 0.75, 1.0, 1.25)  # shares of the checkpoint's target return
_WINDOWS = {"vector": 200, "image": 16}  # about so many are measured; an encoder of images costs much more
_AT_ONCE = {"vector": 50, "image": 4}  # bounds the memory


@dataclass
class ModelInspection:
    """What was measured, and how. `k` is the context length, `n` the number of decisions in the surface.

    Attributes:
        protocol: what was inspected: checkpoint, command, episodes, seeds, target return, windows, versions.
        token_types: what the tokens of a step are, in order.
        timesteps: (n,) of the decisions in `surface`.
        surface: (layers, n, k, token types) mean |α| that the decisions of one episode pay to the steps before.
        curves: (layers, k) mean |α| by steps ago over spaced windows, all token types together.
        decays: of each curve; None where fewer than two steps are attended.
        context: of spaced windows.
        action_spread: standard deviation of the actions in these windows, mean over dimensions, in the model's units;
            None where they are discrete.
        time_constants: of spaced windows.
        conditioning: episodes at several target returns.
        memory: what is left of a beginning; only where it was asked for.
        left_out: why what is missing is missing, by the name of the figure.
    """

    protocol: dict[str, Any]
    token_types: tuple[str, ...] = ()
    timesteps: NDArray[np.int64] | None = None
    surface: NDArray[Any] | None = None
    curves: NDArray[Any] | None = None
    decays: list[Decay | None] = field(default_factory=list)
    context: EffectiveContext | None = None
    action_spread: float | None = None
    time_constants: TimeConstants | None = None
    conditioning: EvaluationResult | None = None
    memory: MemoryOfBeginning | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, ready for JSON, to four digits where they are many; infinite ones are None."""
        attention = decay = context = None
        if self.surface is not None and self.timesteps is not None and self.curves is not None:
            attention = {
                "token_types": self.token_types,
                "timesteps": [int(self.timesteps[0]), int(self.timesteps[-1])],
                "axes": ["token type", "timestep", "steps ago"],
                "mean_over_layers": self.surface.mean(0).transpose(2, 0, 1),
            }
            decay = [
                {"layer": layer, "attention_by_steps_ago": curve, **(_decay_numbers(fit) if fit else {})}
                for layer, (curve, fit) in enumerate(zip(self.curves, self.decays, strict=True))
            ]
        if self.context is not None:
            context = {
                "steps_ago": self.context.steps_ago,
                "step_removed": _spread(self.context.step_removed),
                "older_removed": _spread(self.context.older_removed),
                "action_spread": self.action_spread,
            }
        numbers = {
            "protocol": self.protocol,
            "attention": attention,
            "decay": decay,
            "effective_context": context,
            "return_conditioning": self.conditioning and self.conditioning.to_dict(),
            "time_constants": self.time_constants and asdict(self.time_constants),
            **({} if self.memory is None else {"memory": asdict(self.memory)}),
            "left_out": self.left_out,
        }
        plain: dict[str, Any] = _plain(numbers)
        return plain


def inspect_checkpoint(
    policy: DecisionMambaPolicy,
    checkpoint: str,
    env_id: str | None = None,
    *,
    data: str | None = None,
    target_returns: Sequence[float] | None = None,
    episodes: int = 5,
    timesteps: tuple[int, int] | None = None,
    seed: int = 0,
    env_kwargs: dict[str, Any] | None = None,
    memory: bool = False,
    steps: int | None = None,
    progress: bool = True,
) -> ModelInspection:
    """Measure what a policy's decisions attend to, depend on and remember, and what it makes of target returns.

    What a model does not have is left out, with a sentence in `left_out`: hidden attention, decay and time constants
    need a `DecisionMambaModel`, everything about the past a context of two steps, target returns an environment and a
    model that is asked for them.

    Args:
        policy: in window mode.
        checkpoint: folder or Hub repository that the policy is from; the page shows it as it means something elsewhere.
        env_id: gymnasium id; the checkpoint's when not given.
        data: a data set (as `load_trajectories` takes it) whose episodes are read instead of rollouts.
        target_returns: what to ask for; shares of the checkpoint's own when not given. The episodes that are looked
            into are asked for the largest of those given, or the checkpoint's own.
        episodes: to look into, and to play per target return.
        timesteps: first and last decision of the attention surface; the paper's 300 to 600 when not given, or the whole
            episode where it is shorter.
        seed: of the first episode, or of the draw of episodes from a data set.
        env_kwargs: keyword arguments that the environment is made with; the checkpoint's when not given.
        memory: whether to follow two beginnings through the longest of the episodes (see `memory_of_beginning`).
        steps: decisions to follow them for, at most; to its end when not given.
        progress: whether to show progress bars.

    Raises:
        ImportError: gymnasium, or what the environment needs, is not installed.
        TypeError: `policy` is no policy.
        ValueError: no environment and no data, one that is not of the model's kind, or a number that makes no sense.
    """
    check_policy(policy)
    if policy.mode != "window":
        raise ValueError(f"Inspection reads windows; give a policy with mode='window', not mode={policy.mode!r}.")
    if episodes < 1 or seed < 0:
        raise ValueError(f"episodes={episodes} must be at least 1, and seed={seed} at least 0.")
    if timesteps is not None and not 0 <= timesteps[0] < timesteps[1]:
        raise ValueError(f"timesteps={timesteps} must be two time steps, the first 0 or later and before the last.")
    goals = policy.condition_input == "goals"
    if memory and goals:
        raise ValueError("This policy is asked for goals, and its memory is not followed yet; leave memory out.")
    if memory:
        check_carries_state(policy)
    elif steps is not None:
        raise ValueError(
            f"steps={steps} says how long a memory is followed; say memory too (--memory), or leave out steps."
        )
    checkpoint = portable(checkpoint)
    data_name = None if data is None else portable(data)
    command = command_line(
        "inspect",
        checkpoint,
        env_id=env_id or None,
        env_kwargs=env_kwargs,
        data=data_name,
        target_return=target_returns or None,
        timesteps=timesteps,
        episodes=episodes,
        seed=seed,
        memory=memory or None,
        steps=steps,
    )
    asked, targets = None, []
    if data is not None:
        if env_id is not None or env_kwargs is not None or target_returns is not None:
            raise ValueError("On a data set nothing is played; leave environment and target returns out.")
        played = chosen_episodes(policy, data, episodes, seed)
        env_id = played.trajectories.env_id
    else:
        env_kwargs = env_kwargs_for(policy, env_id, env_kwargs)
        env_id = env_id or policy.processor.env_id
        if env_id is None:
            raise ValueError(
                "No environment: this checkpoint stores none. Name one (--env-id Hopper-v5), or a data set to read "
                "instead (--data SOURCE)."
            )
        targets = _targets(policy, target_returns)
        asked = max(targets) if target_returns else policy.processor.target_return if targets else None
        try:
            played = play_episodes(policy, env_id, asked, episodes, seed, progress, env_kwargs)
        except ImportError as error:
            raise ImportError(f"{error} (Or read a data set instead: --data SOURCE.)") from error
    happened = played.trajectories
    returns = happened.returns().tolist() if happened.has_rewards else [None] * happened.num_episodes
    found = ModelInspection(
        {
            "checkpoint": checkpoint,
            "command": command,
            "model": type(policy.model).__name__,
            "data": data_name,
            "env_id": env_id,
            "env_kwargs": env_kwargs,
            "target_return": asked,
            "episodes": [
                {"number": number, "length": int(length), "return": total}
                for number, length, total in zip(played.numbers, happened.lengths, returns, strict=True)
            ],
            "mode": policy.mode,
            "context_length": policy.context_length,
            "action_type": policy.action_type,
            "versions": package_versions(),
        }
    )
    if memory:
        found.memory = memory_of_beginning(policy, played, steps)
    _look_inside(found, policy, played, timesteps, progress)
    if data is not None:
        found.left_out["return_conditioning"] = "Nothing was played: the episodes are those of a data set."
    elif goals:
        found.left_out["return_conditioning"] = "This policy is asked for goals, and for no return."
    elif not targets:
        found.left_out["return_conditioning"] = "This policy is asked for nothing: it imitates its data."
    else:
        found.conditioning = evaluate_policy(
            policy,
            env_id,
            episodes=episodes,
            target_returns=targets,
            seed=seed,
            env_kwargs=env_kwargs or {},
            progress=progress,
        )
    return found


def _look_inside(
    found: ModelInspection,
    policy: DecisionMambaPolicy,
    played: PlayedEpisodes,
    timesteps: tuple[int, int] | None,
    progress: bool,
) -> None:
    """Measure everything that the model has, on windows of the episodes."""
    windows = DecisionWindows(policy, played)
    at_once = _AT_ONCE[policy.state_type]
    spaced = windows.spaced(_WINDOWS[policy.state_type])
    count = len(spaced["states"])
    found.protocol.update(windows=count)
    parts = [{name: x[i : i + at_once] for name, x in spaced.items()} for i in range(0, count, at_once)]
    past = policy.context_length > 1
    if not past:
        reason = "This policy decides from one step, so there is no past to look at."
        found.left_out.update(attention=reason, decay=reason, effective_context=reason)
    if isinstance(policy.model, DecisionMambaModel) and policy.model.config.ssm != "gru":
        if past:
            _measure_attention(found, policy, windows, parts, timesteps, at_once, progress)
        found.time_constants = time_constants(policy.model, spaced)
    else:
        kind = "A GRU" if isinstance(policy.model, DecisionMambaModel) else type(policy.model).__name__
        reason = f"{kind} has no Mamba layers, so no hidden attention and no step sizes."
        found.left_out.update(attention=reason, decay=reason, time_constants=reason)
    if past:
        bar = tqdm(parts, desc="actions with steps removed", disable=not progress)
        contexts = [effective_context(policy.model, part) for part in bar]
        found.context = EffectiveContext(
            contexts[0].steps_ago,
            np.concatenate([part.step_removed for part in contexts]),
            np.concatenate([part.older_removed for part in contexts]),
        )
        if policy.action_type == "continuous":
            real = spaced["attention_mask"].bool()
            found.action_spread = float(spaced["actions"][real].std(0, correction=0).mean())


def _measure_attention(
    found: ModelInspection,
    policy: DecisionMambaPolicy,
    windows: DecisionWindows,
    parts: list[dict[str, Tensor]],
    timesteps: tuple[int, int] | None,
    at_once: int,
    progress: bool,
) -> None:
    longest = int(windows.lengths.argmax())
    decisions = _decisions(timesteps, int(windows.lengths[longest]))
    bar = tqdm(range(0, len(decisions), at_once), desc="hidden attention", disable=not progress)
    attention = [hidden_attention(policy.model, windows.read(longest, decisions[i : i + at_once])) for i in bar]
    found.token_types, found.timesteps = attention[0].token_types, decisions
    found.surface = np.concatenate([part.by_steps_ago() for part in attention], axis=1)
    found.protocol.update(surface_episode=longest)
    spaced = np.concatenate([hidden_attention(policy.model, part).by_steps_ago() for part in parts], axis=1).sum(-1)
    found.curves = mean_of_present(spaced, axis=1)
    found.decays = [
        decay_rate(layer) if np.count_nonzero(curve > 0) > 1 else None
        for layer, curve in zip(spaced, found.curves, strict=True)
    ]


def _decisions(timesteps: tuple[int, int] | None, length: int) -> NDArray[np.int64]:
    """Return the time steps to draw in an episode of so many steps."""
    if timesteps is None:
        timesteps = TIMESTEPS if length > TIMESTEPS[1] else (0, TIMESTEPS[1])
    first, last = timesteps
    if first >= length:
        raise ValueError(
            f"timesteps {first} to {last} lie beyond the longest episode, which has {length} steps; ask for earlier "
            "ones."
        )
    return np.arange(first, min(last + 1, length))


def _targets(policy: DecisionMambaPolicy, given: Sequence[float] | None) -> list[float]:
    """Return the target returns to play: those given, or around the checkpoint's own; none where none is asked for."""
    own = policy.processor.target_return
    if policy.condition_input != "returns_to_go":
        if given:
            instead = (
                "imitates its data (conditioning=none)" if policy.condition_input is None else "is asked for goals"
            )
            raise ValueError(
                f"target_returns={[*given]} cannot be asked for: this checkpoint {instead}; leave them out."
            )
        return []
    if given:
        return sorted(float(target) for target in given)
    if own is None:
        raise ValueError("No target return: this checkpoint stores none. Say which to ask for (--target-return).")
    # A lower one is a smaller number of positive returns, and a larger one of negative returns.
    return sorted({float(f"{own * share if own > 0 else own / share:.4g}") for share in _TARGETS})


def mean_of_present(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return the mean of what is there; NaN where nothing is."""
    present = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: NDArray[Any] = np.where(present, values, 0).sum(axis) / present.sum(axis)
    return mean


def _decay_numbers(fit: Decay) -> dict[str, Any]:
    return {**asdict(fit), "half_life": fit.half_life, "half_life_interval": fit.half_life_interval}


def _spread(changes: NDArray[Any]) -> list[dict[str, float]]:
    """Return mean and quartiles over windows (b, k - 1), one row a step."""
    rows = []
    for column in changes.T:
        there = column[np.isfinite(column)]
        quartiles = np.quantile(there, [0.25, 0.5, 0.75]) if there.size else np.full(3, np.nan)
        mean = float(there.mean()) if there.size else math.nan
        rows.append(dict(zip(("mean", "q25", "median", "q75"), (mean, *quartiles), strict=True)))
    return rows


def _plain(value: Any) -> Any:
    """Return numbers as JSON has them: those of arrays to four digits; None for what is not finite."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist()) if value.dtype.kind != "f" else _rounded(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.4g}") if math.isfinite(value) else None
