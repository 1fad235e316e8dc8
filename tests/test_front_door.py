"""The front door: every step of the road has a name there, nothing is loaded before it is asked for."""

import re
import subprocess
import sys

import numpy as np
import pytest
from factories import HOPPER, ROOT, make_model, pendulum_policy

import hf_decision_mamba as hdm
from hf_decision_mamba import cli


def test_importing_registers_the_models_and_loads_nothing_else():
    program = """
import sys
import hf_decision_mamba as hdm
late = ("datasets", "pyarrow", "gymnasium", "matplotlib", "numba", "transformers.trainer", "hf_decision_mamba.acting")
print([name for name in late if name in sys.modules])
from transformers import AutoConfig
print([type(AutoConfig.for_model(kind)).__name__ for kind in ("decision_mamba", "decision_mlp")])
from hf_decision_mamba.model import causal_conv, selective_scan_cpu
print("numba" in sys.modules, selective_scan_cpu.why_no_numba(), "numba" in sys.modules)
print({*hdm.__all__} <= {*dir(hdm)}, hdm.data.load_trajectories is hdm.load_trajectories)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    models, numba = "['DecisionMambaConfig', 'DecisionMLPConfig']", "False None True"
    assert done.stdout.splitlines() == ["[]", models, numba, "True True"], done.stderr


def test_one_page_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert {*hdm.__all__} == {"__version__", *re.findall(r"^\* `(\w+)\(", page, re.MULTILINE)}


@pytest.mark.parametrize("name", [name for name in hdm.__all__ if name != "__version__"])
def test_every_public_name_is_documented(name):
    assert getattr(hdm, name).__name__ == name
    assert getattr(hdm, name).__doc__


def test_an_unknown_name_is_refused_and_says_where_the_others_are():
    with pytest.raises(AttributeError, match=r"no attribute 'load_data'; docs/api\.md"):
        hdm.load_data  # noqa: B018


def test_the_command_line_uses_the_front_doors_functions():
    names = ("collect", "evaluate_policy", "export_policy", "inspect_checkpoint", "push_to_hub", "write_model_card")
    assert all(getattr(cli, name) is getattr(hdm, name) for name in names)


def pendulum_result(*targets: float) -> hdm.EvaluationResult:
    rows = [
        {
            "target_return": target,
            "episode": n,
            "seed": n,
            "return": -100.0 * (n + 1),
            "length": 200,
            "terminated": False,
        }
        for target in targets
        for n in range(3)
    ]
    return hdm.EvaluationResult("Pendulum-v1", "window", 5, 0, [{**row, "normalized_score": None} for row in rows])


def test_results_and_data_are_plotted_as_they_are():
    (axes,) = pendulum_result(-120.0).plot(dataset_return_mean=-150.0).axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert [*lines["one episode"]] == [-100, -200, -300]
    assert [*lines["mean: -200"]] == [-200, -200] and [*lines["target return: -120"]] == [-120, -120]
    (axes,) = pendulum_result(-120.0, -500.0).plot().axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["-120", "-500"]

    data = hdm.load_trajectories(HOPPER)
    returns, lengths = data.plot().axes
    assert sum(bar.get_height() for bar in returns.patches) == data.num_episodes
    assert lengths.lines[0].get_xdata()[0] == np.median(data.lengths)


EPISODE = {name: np.zeros((4, 3)) for name in ("observations", "actions", "rewards")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: hdm.evaluate_policy(make_model()),
            "^policy is a DecisionMambaModel; pass a policy: .*from_pretrained",
        ),
        (lambda: hdm.evaluate_policy("runs/mine"), "^policy='runs/mine' is a str; pass a policy"),
        (lambda: hdm.inspect_checkpoint("runs/mine", "runs/mine"), "^policy='runs/mine' is a str"),
        (lambda: hdm.export_policy(make_model(), "x.onnx"), "^policy is a DecisionMambaModel"),
        (
            lambda: hdm.DecisionMambaPolicy("runs/mine", None),
            "^model='runs/mine' is a str; .* from_pretrained|loads both",
        ),
        (
            lambda: hdm.DecisionMambaPolicy(make_model(), None),
            "^processor is a NoneType; pass the DecisionMambaProcessor",
        ),
        (lambda: hdm.hidden_attention(pendulum_policy(), {}), r"^model is a DecisionMambaPolicy; .*policy\.model"),
        (lambda: hdm.effective_context(make_model(), EPISODE["observations"]), "^batch is a ndarray; pass windows"),
        (lambda: hdm.WindowDataset([EPISODE], 4), "^trajectories is a list; pass Trajectories, as load_trajectories"),
        (lambda: hdm.push_to_hub(pendulum_policy(), "me/x"), "^folder is a DecisionMambaPolicy; pass the folder"),
        (lambda: hdm.write_model_card(None), "^folder is a NoneType; pass the folder"),
        (lambda: hdm.collect("Pendulum-v1", "out"), "^settings='Pendulum-v1' is a str; pass CollectSettings"),
        (lambda: hdm.convert_official_checkpoint("x.pt", "dmm"), "^state_dict='x.pt' is a str; pass the weights"),
        (lambda: hdm.plot_inspection({}, "decay"), "^found is a dict; pass what inspect_checkpoint"),
        (lambda: hdm.plot_learning_curve([0.5, 0.4]), "^run is a list; pass the folder of a run, or a history"),
    ],
)
def test_a_wrong_type_says_what_to_pass(call, message):
    with pytest.raises(TypeError, match=message):
        call()
