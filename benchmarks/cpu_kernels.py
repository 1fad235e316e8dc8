"""Time the CPU kernels against what would be simpler: `python benchmarks/cpu_kernels.py`; results/cpu_kernels.json.

* vectors: the kernels' vector type against plain numba loops, for scan and convolution of a training step and for
  decisions. One thread, milliseconds of its processor time.
* decision: the fused call against the file that `hf-decision-mamba export` writes, run by onnxruntime. The same clock.
* threads: a training step with the scan and the convolution on torch's own OpenMP team, on numba's parallel threads, on
  threads of our own and on one. Milliseconds that pass.

What is within 10% of something simpler goes.
"""

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import plain_kernels
import torch
from measuring import Actor, Passes, decision_mamba, save, spread, target, training_step, windows
from numba import njit, prange
from numba import set_num_threads as set_numba_threads

from hf_decision_mamba.acting import compiled_kernels
from hf_decision_mamba.acting.compiled import FusedModel, fuse
from hf_decision_mamba.acting.export import DecisionStep, export_policy
from hf_decision_mamba.model import causal_conv_cpu, selective_scan_cpu, threads_cpu, vector_cpu
from hf_decision_mamba.model.scan_inputs import ScanInputs

WIDTHS, STATES, STEPS = (64, 128, 256, 512), 16, 20
QUESTIONS = ("vectors", "decision", "threads")
SIMPLER = 1.1  # how much slower a simpler way must be not to be taken


def median_milliseconds(
    passes: Passes, rounds: int, calls: int, clock: Callable[[], float] = time.thread_time
) -> dict[str, dict[str, float]]:
    """Time the passes in turn, `calls` of each a round; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(rounds + 1):
        for name, run in passes.items():
            start = clock()
            for _ in range(calls):
                run()
            if number:
                times[name].append(1e3 * (clock() - start) / calls)
    return {name: spread(values) for name, values in times.items()}


def training_kernels(width: int) -> tuple[dict[str, Callable[[], Any]], int]:
    """Scan and convolution, forward and backward, over some windows of a model of this width, in both ways."""
    rows, length, channels, n, taps = max(1, 1024 // width), 3 * STEPS, 2 * width, STATES, 4
    u, raw, z, dy = (torch.randn(rows, length, channels) for _ in range(4))
    B, C = (torch.randn(rows, length, n) for _ in range(2))
    A, D, bias = -torch.rand(channels, n), torch.randn(channels), torch.randn(channels)
    weight = torch.randn(channels, taps)
    inputs = ScanInputs(u, raw, A, B, C, D, z, bias)

    def vectors() -> list[Any]:
        y, final, saved = selective_scan_cpu.scan_forward(inputs, True)
        gradients = selective_scan_cpu.scan_backward(dy, None, inputs, saved)
        out = causal_conv_cpu.conv_forward(u, weight, bias, 0)
        return [y, final, *gradients[:-1], out, *causal_conv_cpu.conv_backward(dy, u, weight, bias, 0)]

    u_, raw_, A_, B_, C_, D_, z_, bias_ = (x.numpy() for x in (u, raw, A, B, C, D, z, bias))

    def plain() -> list[Any]:
        y, final = np.empty_like(u_), np.empty((rows, channels, n), np.float32)
        tiles = rows, -(-length // plain_kernels.CHUNK), channels // plain_kernels.WIDE, n, plain_kernels.WIDE
        saved = np.empty(tiles, np.float32)
        plain_kernels.scan_forward(u_, raw_, A_, B_, C_, D_, z_, bias_, y, final, saved)
        du, draw, dz = (np.empty_like(u_) for _ in range(3))
        dA, dB, dC, dD, dbias = (np.zeros_like(x) for x in (A_, B_, C_, D_, bias_))
        plain_kernels.scan_backward(
            dy.numpy(), u_, raw_, A_, B_, C_, D_, z_, bias_, saved, du, draw, dA, dB, dC, dD, dz, dbias
        )
        out, dx, dweight, dshift = (
            np.empty_like(u_),
            np.empty_like(u_),
            np.zeros_like(weight.numpy()),
            np.zeros_like(D_),
        )
        plain_kernels.conv_forward(u_, weight.numpy(), bias_, out)
        plain_kernels.conv_backward(dy.numpy(), u_, weight.numpy(), bias_, dx, dweight, dshift)
        return [y, final, du, draw, dA, dB, dC, dD, dz, dbias, out, dx, dweight, dshift]

    for ours, theirs in zip(vectors(), plain(), strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-4 * ours.abs().max().item())
    return {"vectors": vectors, "plain loops": plain}, rows


def plain_compiled_kernels() -> ModuleType:
    """A copy of `compiled_kernels` with plain loops where nearly all of its time goes; it is never kept on the disk."""
    spec = importlib.util.spec_from_file_location(
        f"{compiled_kernels.__package__}.plain", str(compiled_kernels.__file__)
    )
    assert spec is not None and spec.loader is not None
    copy, compiled = importlib.util.module_from_spec(spec), vector_cpu.compiled
    vector_cpu.compiled = njit(**vector_cpu.OPTIONS)
    spec.loader.exec_module(copy)
    vector_cpu.compiled = compiled
    copy.linear, copy.scan = plain_kernels.linear, plain_kernels.scan  # type: ignore[attr-defined]
    return copy


def fused_decision(fused: FusedModel, kernels: Any, rows: int, steps: int) -> Callable[[], Any]:
    """A decision in so many environments: a recurrent one, or one over a window of several steps."""
    draw = np.random.default_rng(0)
    sizes = (fused.state_width,), (), (3,)
    states, returns, actions = (draw.normal(size=(rows, steps, *size)).astype(np.float32) for size in sizes)
    recurrent_state = fused.new_recurrent_state(rows) if steps == 1 else None
    times, lengths = np.zeros((rows, steps), np.int64), np.full(rows, steps)

    def decide() -> Any:
        fused.kernels = kernels
        return fused.predict(states, returns, actions, times, lengths, recurrent_state)

    return decide


def exported_decision(actor: Actor, rows: int) -> Callable[[], Any]:
    """The same recurrent decision by onnxruntime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with TemporaryDirectory() as folder:
        export_policy(actor.policy, Path(folder, "policy.onnx"))
        session = onnxruntime.InferenceSession(Path(folder, "policy.onnx"), options, ["CPUExecutionProvider"])
    step = DecisionStep(actor.policy.model, actor.policy.processor)  # type: ignore[arg-type]
    seen = {name: tensor.numpy() for name, tensor in step.inputs(rows).items()}

    def decide() -> Any:
        action, *states = session.run(None, seen)
        seen.update(zip([state.name for state in step.states], states, strict=True), previous_action=action)
        return action

    return decide


def on_numbas_threads(kernel: Any, cached: dict[Any, Any] = {}) -> Any:  # noqa: B006
    """A kernel's work items as a parallel loop of numba's."""
    if kernel not in cached:
        names = ", ".join(kernel.py_func.__code__.co_varnames[2 : kernel.py_func.__code__.co_argcount])
        source = f"def run(items, {names}):\n    for i in prange(items):\n        kernel(i, i + 1, {names})"
        scope: dict[str, Any] = {"prange": prange, "kernel": kernel}
        exec(source, scope)
        cached[kernel] = njit(parallel=True, nogil=True)(scope["run"])
    return cached[kernel]


def threads(width: int, rows: int) -> dict[str, Callable[[], None]]:
    """A whole training step, its kernels on each kind of threads."""
    step = training_step(decision_mamba("dema-b3ld", hidden_size=width, state_size=STATES), windows(rows, STEPS))
    run_items = threads_cpu.run_items

    def many(wanted: int, items: int) -> int:
        return min(torch.get_num_threads(), items, wanted)

    def one(kernel: Any, items: int, wanted: int, *arrays: np.ndarray) -> None:
        kernel(0, items, *arrays)

    def numbas(kernel: Any, items: int, wanted: int, *arrays: np.ndarray) -> None:
        if many(wanted, items) > 1:
            on_numbas_threads(kernel)(items, *arrays)
        else:
            kernel(0, items, *arrays)

    def pool(kernel: Any, items: int, wanted: int, *arrays: np.ndarray) -> None:
        if many(wanted, items) > 1:
            threads_cpu._run_on_pool(kernel, items, many(wanted, items), arrays)
        else:
            kernel(0, items, *arrays)

    def with_(way: Callable[..., None]) -> Callable[[], None]:
        def run() -> None:
            selective_scan_cpu.run_items = causal_conv_cpu.run_items = way
            step()
            selective_scan_cpu.run_items = causal_conv_cpu.run_items = run_items

        return run

    return {"team": with_(run_items), "numba's threads": with_(numbas), "own pool": with_(pool), "one": with_(one)}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument(
        "--questions", nargs="+", default=QUESTIONS, choices=QUESTIONS, help="threads: on an idle machine"
    )
    arguments = parser.parse_args()
    rounds, widths, questions = arguments.rounds, arguments.widths, arguments.questions
    torch.manual_seed(0)
    results: list[dict[str, Any]] = []

    def note(question: str, what: str, width: int, ours: str, times: dict[str, dict[str, float]]) -> None:
        ratios = {name: values["median"] / times[ours]["median"] for name, values in times.items() if name != ours}
        line = {"question": question, "what": what, "width": width, "ours": ours, "times": times, "ratios": ratios}
        results.append(line)
        print(json.dumps({**line, "times": {name: values["median"] for name, values in times.items()}}), flush=True)

    with_threads = torch.get_num_threads()
    set_numba_threads(min(with_threads, os.cpu_count() or 1))
    for width in widths[:2] if "threads" in questions else ():
        passes = threads(width, rows=16)
        note("threads", "training step, 16 windows", width, "team",
             median_milliseconds(passes, rounds, 1, time.perf_counter))  # fmt: skip
    torch.set_num_threads(1)
    plain = plain_compiled_kernels()
    for width in widths:
        if "vectors" in questions:
            both, rows = training_kernels(width)
            what = f"scan and convolution, {rows} windows"
            note("vectors", what, width, "vectors", median_milliseconds(both, rounds, 1))
        model = decision_mamba("dema-b3ld", hidden_size=width, state_size=STATES).eval()
        fused = fuse(model)
        assert fused is not None
        for count, steps in ((1, 1), (1, STEPS), (64, 1), (64, STEPS)):
            if count * steps * width > 64 * STEPS * 128:
                continue  # seconds a call, and nothing new
            if "vectors" in questions:
                passes = {
                    "vectors": fused_decision(fused, compiled_kernels, count, steps),
                    "plain loops": fused_decision(fused, plain, count, steps),
                }
                what = f"{'recurrent decision' if steps == 1 else 'decision over a window'}, {count} at once"
                calls = max(1, 100 // (count * steps))
                note("vectors", what, width, "vectors", median_milliseconds(passes, rounds, calls))
            if "decision" in questions and steps == 1:
                actor = Actor(model, "recurrent", count)
                passes = {
                    "fused": fused_decision(fused, compiled_kernels, count, 1),
                    "onnxruntime": exported_decision(actor, count),
                }
                what, calls = f"recurrent decision, {count} at once", max(1, 100 // count)
                note("decision", what, width, "fused", median_milliseconds(passes, rounds, calls))

    def slowdown(question: str, simpler: str, of: Callable[[list[float]], float]) -> dict[str, Any]:
        ratios = [line["ratios"][simpler] for line in results if line["question"] == question]
        what = f"{question}: {simpler} / ours, {of.__name__} of {len(ratios)}"
        return target(what, of(ratios), SIMPLER, at_least=True)

    asked: list[tuple[str, str, Callable[[list[float]], float]]] = [
        ("vectors", "plain loops", min),
        ("decision", "onnxruntime", min),
        *(("threads", simpler, statistics.median) for simpler in ("numba's threads", "own pool", "one")),
    ]
    save(
        "milliseconds of the CPU kernels and of what would be simpler",
        {
            "plain loops": "numba's loops over neighbouring channels, without branches, the same polynomials; of a "
            "decision the matrix products and the scan",
            "onnxruntime": "the file of `hf-decision-mamba export`, one thread",
            "numba's threads": "prange; the whole training step is timed, so that torch's threads are awake",
        },
        size={"states": STATES, "steps": STEPS},
        results=results,
        targets=[slowdown(*one) for one in asked if one[0] in questions],
    )


if __name__ == "__main__":
    main()
