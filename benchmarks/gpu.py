"""Measure everything that a GPU is for, unattended: `python benchmarks/gpu.py`; results/gpu.json.

The scan beside mamba-ssm's where that is installed, a training step and a batched decision beside transformers'
Decision Transformer, the loop of train.py, and long sequences, of which docs/gpu_length.svg is drawn. Times are medians
between CUDA events, the peers in turn, in one process.
"""

import argparse
import contextlib
import functools
import importlib
import io
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from measuring import (
    DT,
    DT_NOTE,
    WIDE,
    Actor,
    decision_mamba,
    decision_transformer,
    milliseconds,
    save,
    spread,
    target,
    training_step,
    windows,
)
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from training_step import matrix_products
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from hf_decision_mamba.model.selective_scan import selective_scan
from hf_decision_mamba.training.run import main as train

BATCHES, TOKENS, WIDTHS, STATES = (64, 512), (24, 60, 300, 3000), (128, 256), (16, 64)
LONG = (1000, 3000, 10_000, 30_000, 100_000)
ROWS = (1, 64, 4096)
IN_A_ROW = 10  # calls between two events, so that the events cost nothing
OURS, MAMBA, COPY, ATTENTION = "ours (Triton)", "mamba-ssm", "copy of 1 GiB", "attention (SDPA)"
MODEL, FLOOR = "dema-b3ld, width 128, N 16", "its matrix products alone"
ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "gpu_length.svg"
LOOP_STEPS, LOOP_WARM_UP = 400, 100
LOOPS = {  # what train.py is told
    "data on the host": ["--data_on_device=false"],
    "data on the GPU": [],
    "bf16": ["--bf16=true"],
    "torch.compile": ["--torch_compile=true"],
    "torch.compile, CUDA graphs": ["--torch_compile=true", "--torch_compile_mode=reduce-overhead"],
}
COMPILED = {"eager": None, "torch.compile": "default", "torch.compile, CUDA graphs": "reduce-overhead"}
Passes = Mapping[str, Callable[[], object]]


def device_milliseconds(passes: Passes, rounds: int, calls: int = IN_A_ROW) -> dict[str, list[float]]:
    """Milliseconds of one call of every pass by the GPU's clock, interleaved round by round, after a warm-up."""
    for run in passes.values():
        for _ in range(3):
            run()
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            for _ in range(calls):
                run()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end) / calls)
    return times


@functools.cache
def mamba_ssm() -> Callable[..., Any] | None:
    """mamba-ssm's scan, where it is installed and works."""
    try:
        importlib.import_module("selective_scan_cuda")
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except Exception as error:  # whatever is wrong with it: the others are measured
        print(f"mamba-ssm is not measured: {type(error).__name__}: {error}")
        return None


def both_ways(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    """Forward and backward of a function."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    gradient = torch.randn_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, gradient)


def scans(b: int, l: int, c: int, n: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Forward and backward of every scan, each on tensors in the layout that it likes best."""
    u, delta, z = (torch.randn(b, l, c, device="cuda", dtype=dtype) for _ in range(3))
    B, C = (torch.randn(b, l, n, device="cuda", dtype=dtype) for _ in range(2))
    A, D, bias = -torch.rand(c, n, device="cuda"), torch.randn(c, device="cuda"), torch.randn(c, device="cuda")

    def ours(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        return selective_scan(u, delta, A, B, C, D, z, bias, backend="triton")[0]

    passes = {OURS: both_ways(ours, u, delta, A, B, C, D, z, bias)}
    theirs = mamba_ssm()
    if theirs is not None:
        u, delta, B, C, z = (tensor.mT.contiguous() for tensor in (u, delta, B, C, z))
        passes[MAMBA] = both_ways(lambda *inputs: theirs(*inputs, delta_softplus=True), u, delta, A, B, C, D, z, bias)
    return passes


def bytes_at_least(b: int, l: int, c: int, n: int, dtype: torch.dtype) -> int:
    """What forward and backward must move: each input read once and each output written once, in each of them.

    Forward reads u, delta, z, B, C and writes y; backward reads these and dy, and writes the gradients of the five.
    """
    return dtype.itemsize * b * l * (c * (3 + 1 + 4 + 3) + n * (2 + 2 + 2))


def copy_bandwidth(rounds: int) -> float:
    """Bytes per second of a large copy, read and written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(source)
    times = device_milliseconds({COPY: lambda: copy.copy_(source)}, rounds)[COPY]
    return 2 * source.numel() / (1e-3 * spread(times)["median"])


def as_graph(run: Callable[[], object]) -> Callable[[], object]:
    """The same work as a CUDA graph, which the host launches as one: its time is the GPU's alone."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def graphs_of_scans(*size: Any) -> Passes:
    """Every scan as a CUDA graph."""
    return {name: as_graph(run) for name, run in scans(*size).items()}


def measured(rounds: int, calls: int, make: Callable[..., Passes], *arguments: Any) -> dict[str, Any]:
    """Spread of the times of each pass that `make` makes, and the bytes by which it grows what is allocated."""
    try:
        passes = make(*arguments)
        times = device_milliseconds(passes, rounds, calls)
        return {name: {**spread(times[name]), "bytes": peak_growth(run)} for name, run in passes.items()}
    except torch.OutOfMemoryError:
        return {"note": "out of memory"}
    finally:
        torch.cuda.empty_cache()


def peak_growth(run: Callable[[], object]) -> int:
    """Bytes on the GPU at the peak of a call, beyond what is held before."""
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - held


def scan_rows(rounds: int) -> list[dict[str, Any]]:
    """Every size of the scan, with the share of the copy bandwidth that ours achieves."""
    bandwidth = copy_bandwidth(rounds)
    sizes = [(b, l, c, n, t) for t in (torch.float32, torch.bfloat16) for l in TOKENS for b in BATCHES for c in WIDTHS
             for n in STATES]  # fmt: skip
    rows = []
    for b, l, c, n, dtype in tqdm(sizes, unit="size"):
        size = b, l, c, n, dtype
        times = measured(rounds, IN_A_ROW, graphs_of_scans, *size)
        row: dict[str, Any] = {"batch": b, "tokens": l, "channels": c, "states": n, "dtype": str(dtype), **times}
        row["called one by one"] = eager = measured(rounds, IN_A_ROW, scans, *size)
        if OURS in times:
            row["bytes_per_second"] = bytes_at_least(*size) / (1e-3 * times[OURS]["median"])
            row["of_copy_bandwidth"] = row["bytes_per_second"] / bandwidth
        for name, found in (("speedup", times), ("speedup_one_by_one", eager)):
            if MAMBA in found:
                row[name] = found[MAMBA]["median"] / found[OURS]["median"]
        rows.append(row)
    return rows


def on_gpu(model: Any) -> Any:
    """A model there."""
    return model.to("cuda")


def training_steps(mode: str | None) -> Passes:
    """A whole training step, ours and Decision Transformer's, compiled in some mode or not; and the floor."""
    torch.compiler.reset()
    batch = {name: values.cuda() for name, values in windows(64, 20).items()}
    ours = decision_mamba("dema-b3ld", **WIDE)
    with torch.device("cuda"):
        floor, _ = matrix_products(on_gpu(ours), batch)
    models = {MODEL: ours, DT: on_gpu(decision_transformer())}
    for model in models.values():
        if mode is not None:
            model.compile(mode=mode)
    return {FLOOR: floor, **{name: training_step(model, batch) for name, model in models.items()}}


def training_rows(rounds: int) -> list[dict[str, Any]]:
    """A training step in each compile setting."""
    return [
        {"setting": setting, **measured(rounds, IN_A_ROW, training_steps, mode)} for setting, mode in COMPILED.items()
    ]


class Stopwatch(TrainerCallback):
    """The time that passes from the end of a training's warm-up to its last step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the clock twice."""
        if state.global_step in (LOOP_WARM_UP, LOOP_STEPS):
            torch.cuda.synchronize()
            self.times.append(time.perf_counter())


def loop_rows(rounds: int) -> list[dict[str, Any]]:
    """A step of train.py's loop with everything around it, by the wall clock: the mean over a run, of several runs."""
    milliseconds_: dict[str, list[float]] = {name: [] for name in LOOPS}
    stopwatch = Stopwatch()
    DEFAULT_CALLBACKS.append(stopwatch)  # type: ignore[arg-type]
    settings = {"context_length": 20, "hidden_size": 128, "embedding_size": 128, "max_steps": LOOP_STEPS,
                "save_strategy": "no", "eval_strategy": "no", "eval_episodes": 0, "disable_tqdm": True}  # fmt: skip
    for _ in range(max(rounds // 5, 1)):
        for name, words in LOOPS.items():
            torch.compiler.reset()
            stopwatch.times.clear()
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                told = [f"--{setting}={value}" for setting, value in settings.items()]
                train([str(ROOT / "configs" / "hopper-medium-replay.yaml"), f"--output_dir={folder}", *told, *words])
            start, end = stopwatch.times
            milliseconds_[name].append(1e3 * (end - start) / (LOOP_STEPS - LOOP_WARM_UP))
    DEFAULT_CALLBACKS.remove(stopwatch)  # type: ignore[arg-type]
    return [{"setting": name, "step": spread(values)} for name, values in milliseconds_.items()]


def decision_rows(rounds: int) -> list[dict[str, Any]]:
    """One decision for many environments at once, by the wall clock: its action is a numpy array."""
    rows = []
    for count in ROWS:
        actors = {
            f"{MODEL}, window": Actor(on_gpu(decision_mamba("dema-b3ld", **WIDE)), "window", count),
            f"{MODEL}, recurrent": Actor(on_gpu(decision_mamba("dema-b3ld", **WIDE)), "recurrent", count),
            f"{DT}, window": Actor(on_gpu(decision_transformer()), "window", count),
        }
        for actor in actors.values():
            actor.restart(20)
        times = milliseconds(actors, rounds, calls=3)
        rows.append({"environments": count, **{name: spread(values) for name, values in times.items()}})
    return rows


def long_passes(l: int) -> Passes:
    """Forward and backward over one long sequence: the scans, and attention of the same width."""
    q, k, v = (torch.randn(1, 8, l, 32, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    attention = both_ways(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), q, k, v)
    return {**scans(1, l, 256, 16, torch.bfloat16), ATTENTION: attention}


def long_rows(rounds: int) -> list[dict[str, Any]]:
    """Time and memory against the length of a sequence."""
    return [{"tokens": l, **measured(rounds, 1, long_passes, l)} for l in tqdm(LONG, unit="length")]


def draw_long(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time against length, a line for each peer and one that is linear."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.subplots()
    for name, style in ((OURS, "o-"), (MAMBA, "s-"), (ATTENTION, "^-")):
        measured_ = [(row["tokens"], row[name]["median"]) for row in rows if name in row]
        if measured_:
            panel.loglog(*zip(*measured_, strict=True), style, label=name)
            if name == OURS:
                length, last = measured_[-1]
                panel.loglog([row["tokens"] for row in rows], [last * row["tokens"] / length for row in rows],
                             ":", color="#888888", label="linear")  # fmt: skip
    panel.set_xlabel("tokens of one sequence")
    panel.set_ylabel("forward and backward, milliseconds")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter("{x:,g}")
    panel.grid(color="#e6e8eb")
    panel.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def targets(report: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The worst case of each ratio, as far as its peers were there."""
    lines = []
    for what, limit, chosen in (("at most 300", 2.0, (24, 60, 300)), ("3000", 0.9, (3000,))):
        for name, how in (("speedup", ""), ("speedup_one_by_one", ", called one by one")):
            ratios = [row[name] for row in report["scan"] if name in row and row["tokens"] in chosen]
            if ratios:
                told = f"scan, {what} tokens{how}, at worst: {MAMBA} / {OURS}"
                lines.append(target(told, min(ratios), limit, at_least=True))
    for row in report["training"]:
        if "note" not in row:
            ours, theirs, floor = (row[name]["median"] for name in (MODEL, DT, FLOOR))
            lines.append(target(f"training step, {row['setting']}: {DT} / {MODEL}", theirs / ours, 1.5, at_least=True))
            lines.append(target(f"training step, {row['setting']}: {MODEL} / {FLOOR}", ours / floor, 2.0))
    for row in report["decisions"]:
        ratio = row[f"{DT}, window"]["median"] / row[f"{MODEL}, recurrent"]["median"]
        what = f"decision, {row['environments']} environments: {DT} / {MODEL}, recurrent"
        lines.append(target(what, ratio, 1.0, at_least=True))
    memory = {row["tokens"]: row[OURS]["bytes"] for row in report["long"] if OURS in row}
    if {LONG[-1], LONG[-1] // 10} <= memory.keys():
        ratio = memory[LONG[-1]] / memory[LONG[-1] // 10]
        lines.append(target(f"memory of {LONG[-1]:,} tokens / of {LONG[-1] // 10:,}", ratio, 10.5))
    return lines


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs a CUDA device, and torch sees none here: nothing was measured.")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    properties = torch.cuda.get_device_properties(0)
    report: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    sections = {"scan": scan_rows, "training": training_rows, "loop": loop_rows, "decisions": decision_rows,
                "long": long_rows}  # fmt: skip
    for name, measure in sections.items():
        try:
            report[name] = measure(rounds)
        except Exception as error:  # one failure must not cost what the others have measured
            report[name], failed[name] = [], f"{type(error).__name__}: {error}"
        for row in report[name]:
            print(
                name,
                {k: f"{v['median']:.3f} ms" if isinstance(v, dict) and "median" in v else v for k, v in row.items()},
            )
    save(
        "what a GPU is for: scan, training step, decisions, long sequences; milliseconds",
        {
            DT: DT_NOTE,
            OURS: "forward and backward, on (batch, tokens, channels)",
            "scan": "as CUDA graphs, which leave the GPU's time alone; one by one the host may hold it up",
            MAMBA: "selective_scan_fn, forward and backward, on contiguous (batch, channels, tokens), as it likes best",
            "bytes_per_second": bytes_at_least.__doc__ or "",
            "decisions": "by the wall clock, as the loop; all others by CUDA events",
            "loop": "train.py's default run with K = 20 and width 128: a step with its data and its logging",
            FLOOR: "every call of F.linear, forward and backward, into memory that is already there",
            "matrix products": "of float32 with TF32, in all models",
        },
        device={"name": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda},
        copy_bytes_per_second=copy_bandwidth(rounds),
        results=report,
        targets=targets(report),
        failed=failed,
    )
    draw_long(report["long"], PICTURE)
    if failed:
        raise SystemExit(f"Not measured: {failed}")


if __name__ == "__main__":
    main()
