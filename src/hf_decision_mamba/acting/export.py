"""A checkpoint as one decision that runs without torch and without this package: for robots.

The file is a pure function of tensors. What the policy's recurrent mode does around the network is inside: states are
normalised, returns scaled, frames stacked, actions denormalised and clipped.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..model import DecisionMambaCache, DecisionMambaModel, DecisionMambaProcessor
from ..model.cache_decision_mamba import NO_ACTION
from ..model.scan_inputs import ScanInputs
from ..model.selective_scan import NAMESPACE, reference_forward
from ..reporting._version import __version__
from ..reporting.files import replacing
from ..views import split_views
from .checks import check_policy
from .policy import DecisionMambaPolicy
from .shapes import condition_of, frame_stack, observation_shape

FORMAT_VERSION = 1  # of the file's inputs, outputs and metadata
_CACHED = ("ssm_states", "conv_states", "local_states")
_DECISIONS, _TOLERANCE = 5, 1e-4  # of a file's comparison with torch
Run = Callable[[dict[str, Tensor]], Sequence[Tensor]]


class State(NamedTuple):
    """A tensor that a decision hands to the next one; `shape` is one row's."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class DecisionStep(nn.Module):
    """One decision of the recurrent mode as a pure function of tensors; every row is an episode of its own.

    Args:
        model: it is copied, in float32 on the CPU.
        processor: normalisation, return scale and action bounds that belong to the model.

    Attributes:
        states: what is handed from decision to decision, all zero at the start of an episode: the time step; the cache,
            with the layers as the second dimension; of images the frames before the newest.
    """

    state_mean: Tensor
    state_std: Tensor
    goal_mean: Tensor
    goal_std: Tensor
    action_mid: Tensor | None
    action_scale: Tensor | None
    action_low: Tensor | None
    action_high: Tensor | None

    def __init__(self, model: DecisionMambaModel, processor: DecisionMambaProcessor):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.config = self.model.config
        self.condition_input, _ = condition_of(self.config)
        self.config.scan_backend = "reference"  # plain torch, which exporters can read
        self.discrete = self.config.action_type == "discrete"
        self.return_scale, self.action_start = processor.return_scale, processor.action_start
        states, goals = ("state_mean", "state_std"), ("goal_mean", "goal_std")
        for name in (*states, *goals, "action_mid", "action_scale", "action_low", "action_high"):
            values = getattr(processor, name)
            self.register_buffer(name, None if values is None else torch.tensor(values, dtype=torch.float32))
        self.states = [State("timestep", (), torch.int64), *self._cached()]
        if self.config.state_type == "image":
            shape = (frame_stack(self.config) - 1, *observation_shape(self.config))
            self.states.append(State("frames", shape, torch.uint8))

    def _cached(self) -> list[State]:
        cache = DecisionMambaCache(self.config, batch_size=1)
        layers = {name: getattr(cache, name) for name in _CACHED}
        return [
            State(name, (len(tensors), *tensors[0].shape[1:]), tensors[0].dtype)
            for name, tensors in layers.items()
            if tensors and tensors[0].numel()
        ]

    def inputs(self, batch_size: int) -> dict[str, Tensor]:
        """Return all inputs by name, in their order, as an episode starts: zero, but for what is observed."""
        image = self.config.state_type == "image"
        action = (torch.int64, ()) if self.discrete else (torch.float32, (self.config.act_dim,))
        named = {
            "observation": (torch.uint8 if image else torch.float32, observation_shape(self.config)),
            **self._asked_for(),
            "previous_action": action,
            **{state.name: (state.dtype, state.shape) for state in self.states},
        }
        return {name: torch.zeros(batch_size, *shape, dtype=dtype) for name, (dtype, shape) in named.items()}

    def _asked_for(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return the input that says what is asked for, with its type and the shape of one row."""
        return {"return_to_go": (torch.float32, (1,))}

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs, in their order."""
        return ["action", *(f"next_{state.name}" for state in self.states), *(["logits"] if self.discrete else [])]

    def forward(
        self, observation: Tensor, return_to_go: Tensor, previous_action: Tensor, *states: Tensor
    ) -> tuple[Tensor, ...]:
        """Decide.

        Args:
            observation: (b, state_dim) float32 in the environment's units, or newest frames (b, height, width) uint8.
            return_to_go: (b, 1) float32, the return that is left to earn, in the environment's units.
            previous_action: (b, act_dim) float32 in the environment's units, or (b,) int64; not read where the time
                step is 0.
            states: those of `self.states`, batch first.

        Returns:
            The action (b, act_dim) float32 in the environment's units and within its bounds, or (b,) int64; the next
            states; of discrete actions the logits (b, act_dim).
        """
        condition = {"returns_to_go": return_to_go[:, None] / self.return_scale}
        return self._decide(observation, condition, previous_action, states)

    def _decide(
        self, observation: Tensor, condition: dict[str, Tensor], previous_action: Tensor, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        before = {state.name: tensor for state, tensor in zip(self.states, states, strict=True)}
        timestep = before["timestep"]
        cache = DecisionMambaCache(self.config, observation.shape[0])
        cache.started = timestep > 0
        cached = [name for name in _CACHED if name in before]
        for name in cached:
            getattr(cache, name)[:] = before[name].unbind(1)
        seen = self._seen(observation, before)
        predicted = self.model(
            states=seen[:, None],
            **condition,
            previous_actions=self._known(previous_action, cache.started)[:, None],
            timesteps=timestep[:, None] if self.config.use_timestep_embedding else None,
            cache_params=cache,
        ).action_preds[:, 0]
        after = {"timestep": timestep + 1, **{name: torch.stack(getattr(cache, name), dim=1) for name in cached}}
        if "frames" in before:
            after["frames"] = seen[:, 1:]
        logits = (predicted,) if self.discrete else ()
        return self._action(predicted), *(after[state.name] for state in self.states), *logits

    def _seen(self, observation: Tensor, before: dict[str, Tensor]) -> Tensor:
        """Return the state as the model sees it: normalised, or the stack of frames that ends with this one."""
        if "frames" in before:
            newest = observation[:, None]
            begins = (before["timestep"] == 0)[:, None, None, None]
            return torch.cat([torch.where(begins, newest, before["frames"]), newest], dim=1)
        return (observation - self.state_mean) / self.state_std

    def _known(self, action: Tensor, started: Tensor) -> Tensor:
        """Return the previous action as the model sees it; none where the episode has not started."""
        if self.discrete:
            return torch.where(started, action - self.action_start, NO_ACTION)
        if self.action_mid is not None and self.action_scale is not None:
            action = (action - self.action_mid) / self.action_scale
        return torch.where(started[:, None], action, 0.0)

    def _action(self, predicted: Tensor) -> Tensor:
        """Return the action that predictions (b, act_dim) stand for."""
        if self.discrete:
            return predicted.argmax(dim=-1) + self.action_start
        if self.action_mid is not None and self.action_scale is not None:
            predicted = predicted * self.action_scale + self.action_mid
        return predicted if self.action_low is None else predicted.clamp(self.action_low, self.action_high)


class ImitationStep(DecisionStep):
    """One decision of a model without a condition."""

    def forward(self, observation: Tensor, previous_action: Tensor, *states: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Decide as `DecisionStep` does, without a return."""
        return self._decide(observation, {}, previous_action, states)

    def _asked_for(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {}


class GoalStep(DecisionStep):
    """One decision of a model that is asked for goals."""

    def forward(
        self, observation: Tensor, goal: Tensor, previous_action: Tensor, *states: Tensor
    ) -> tuple[Tensor, ...]:
        """Decide as `DecisionStep` does, for a goal (b, goal_dim) float32 in the environment's units."""
        condition = {"goals": ((goal - self.goal_mean) / self.goal_std)[:, None]}
        return self._decide(observation, condition, previous_action, states)

    def _asked_for(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"goal": (torch.float32, (self.config.condition_dim,))}


def decision_step(model: DecisionMambaModel, processor: DecisionMambaProcessor) -> DecisionStep:
    """Make the decision of a model, which takes what that model is asked for."""
    steps = {"returns_to_go": DecisionStep, "goals": GoalStep, None: ImitationStep}
    return steps[condition_of(model.config)[0]](model, processor)


def export_policy(policy: DecisionMambaPolicy, path: str | os.PathLike[str]) -> float | None:
    """Write one decision of a policy's recurrent mode as a file, after comparing it with torch.

    Args:
        policy: in either mode; its model and processor go into the file.
        path: where to write; the ending says what. `.onnx`: for onnxruntime, any number of rows. `.pte`: for ExecuTorch
            with its XNNPACK backend, one row. Inputs, outputs and states are `DecisionStep`'s. The settings that a
            runner needs are strings in the metadata of ONNX, and methods of the ExecuTorch program: `env_id`,
            `target_return`, `observation_parts`, `fps`, `states` (JSON: name, shape of one row, dtype), ...

    Returns:
        The largest difference from torch over a few random decisions, relative to numbers greater than 1; None where
        onnxruntime is not installed.

    Raises:
        TypeError: `policy` is no policy.
        ValueError: an unknown ending, or a model without a recurrent mode.
        FileNotFoundError: the folder to write to does not exist.
        ImportError: a package that writes such files is missing; the message has the command that installs it.
        RuntimeError: the result differs from torch. Nothing is written then.
    """
    check_policy(policy)
    path = Path(path)
    if path.suffix not in (".onnx", ".pte"):
        raise ValueError(f"{path} has an unknown ending; it must be .onnx, or .pte for ExecuTorch.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"The folder of {path} does not exist; make it first.")
    if not isinstance(policy.model, DecisionMambaModel):
        raise ValueError(
            f"{type(policy.model).__name__} carries no state between decisions, so there is no single decision to "
            "export; only a DecisionMambaModel has one."
        )
    step = decision_step(policy.model, policy.processor)
    metadata = metadata_of(step, policy.processor)
    with _quiet():
        content, run = (write_onnx if path.suffix == ".onnx" else write_executorch)(step, metadata)
    difference = None if run is None else _largest_difference(step, run, rows=3 if path.suffix == ".onnx" else 1)
    if difference is not None and not difference <= _TOLERANCE:
        raise RuntimeError(f"{path} was not written: it differs from torch by {difference:.1e}. Please report this.")
    with replacing(path) as draft:
        draft.write_bytes(content)
    return difference


def metadata_of(step: DecisionStep, processor: DecisionMambaProcessor) -> dict[str, str]:
    states = [{**state._asdict(), "dtype": str(state.dtype).removeprefix("torch.")} for state in step.states]
    views, env_kwargs = split_views(processor.env_kwargs)
    values = {
        "format_version": FORMAT_VERSION,
        "hf_decision_mamba_version": __version__,
        "env_id": processor.env_id,
        "env_kwargs": json.dumps(env_kwargs) if env_kwargs else None,
        "views": json.dumps(views) if views else None,
        "observation_parts": processor.observation_parts and json.dumps(processor.observation_parts),
        "action_start": processor.action_start or None,
        "target_return": processor.target_return if step.condition_input == "returns_to_go" else None,
        "return_scale": processor.return_scale if step.condition_input == "returns_to_go" else None,
        "context_length": processor.context_length,
        "fps": processor.fps,
        "max_ep_len": step.config.max_ep_len if step.config.use_timestep_embedding else None,
        "states": json.dumps(states),
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def write_onnx(step: DecisionStep, metadata: dict[str, str]) -> tuple[bytes, Run | None]:
    """Write the step as an ONNX file; return it, and what runs it."""
    _require(("onnx", "onnxscript"), 'pip install "hf_decision_mamba[export]"')
    from onnx import helper

    program = torch.onnx.export(
        _traced(step, rows=2, batch=Dim("batch")),  # of one example row torch would conclude that there is only one
        input_names=list(step.inputs(1)),
        output_names=step.outputs,
        dynamo=True,
        external_data=False,  # one file
        verbose=False,
    )
    assert program is not None
    rows_axis: Any = program.model.graph.inputs[0].shape  # which type, depends on what is installed
    program.rename_axes({rows_axis[0]: "batch"})
    model = program.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")  # where in the source it came from: half of the file
    helper.set_model_props(model, metadata)
    content = model.SerializeToString()
    if find_spec("onnxruntime") is None:
        return content, None
    from onnxruntime import InferenceSession

    session = InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Tensor]) -> list[Tensor]:
        outputs = session.run(step.outputs, {name: tensor.numpy() for name, tensor in inputs.items()})
        return [torch.from_numpy(output) for output in outputs]

    return content, run


def write_executorch(step: DecisionStep, metadata: dict[str, str]) -> tuple[bytes, Run]:
    """Write the step as an ExecuTorch program; return it, and what runs it."""
    _require(("executorch",), 'pip install "hf_decision_mamba[executorch]"')
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    program = to_edge_transform_and_lower(
        _traced(step, rows=1), partitioner=[XnnpackPartitioner()], constant_methods=metadata
    )
    content = program.to_executorch().buffer
    method = Runtime.get().load_program(content).load_method("forward")
    return content, lambda inputs: method.execute(list(inputs.values()))


def _require(packages: Sequence[str], command: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(f"Exporting needs {' and '.join(missing)}; install what is missing with: {command}")


def _traced(step: DecisionStep, rows: int, batch: Any = None) -> ExportedProgram:
    """Trace the step as a graph of torch's own operations, for so many rows, or any number of them."""
    shape = {0: batch} if batch is not None else None
    states = {state.name for state in step.states}
    shapes = {name: shape for name in step.inputs(1) if name not in states}
    program = torch.export.export(
        step,
        tuple(step.inputs(rows).values()),
        dynamic_shapes={**shapes, "states": tuple(shape for _ in step.states)},
    )
    return program.run_decompositions({getattr(torch.ops, NAMESPACE).selective_scan.default: _plain_scan})


def _plain_scan(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Scan as exporters can read it, without the last two arguments, which choose kernels."""
    y, final_state = reference_forward(ScanInputs(*inputs[:-2]))
    return y, final_state, y.new_empty(0)


@torch.inference_mode()
def _largest_difference(step: DecisionStep, run: Run, rows: int) -> float:
    """Measure how far `run` and torch differ on random observations, relative to numbers greater than 1."""
    generator = torch.Generator().manual_seed(0)
    inputs, largest = step.inputs(rows), 0.0
    for _ in range(_DECISIONS):
        noise = torch.randn(inputs["observation"].shape, generator=generator)
        image = step.config.state_type == "image"
        inputs["observation"] = (noise * 64 + 128).byte() if image else noise * step.state_std + step.state_mean
        if "return_to_go" in inputs:
            inputs["return_to_go"] = torch.rand(rows, 1, generator=generator) * step.return_scale
        expected = dict(zip(step.outputs, step(*inputs.values()), strict=True))
        for found, exact in zip(run(inputs), expected.values(), strict=True):
            difference = (found.double() - exact.double()).abs() / exact.double().abs().clamp(min=1)
            largest = max(largest, difference.max().item())
        inputs["previous_action"] = expected["action"]
        inputs |= {state.name: expected[f"next_{state.name}"] for state in step.states}
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters say to their own developers; users need not read it."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")  # torchvision's operations are missing
    before = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch.export copies its own tree specs in a way that torch has deprecated.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        registry.setLevel(before)
