"""The front door: every step of the road has a name there, nothing is loaded before it is asked for."""

import re
import subprocess
import sys

import pytest
from factories import ROOT

import hf_decision_mamba as hdm
from hf_decision_mamba import cli


def test_importing_registers_the_models_and_loads_nothing_else():
    program = """
import sys
import hf_decision_mamba as hdm
late = ("datasets", "pyarrow", "gymnasium", "matplotlib", "numba", "transformers.trainer", "hf_decision_mamba.acting")
print([name for name in late if name in sys.modules])
from transformers import AutoConfig
print([type(AutoConfig.for_model(kind)).__name__ for kind in ("decision_mamba", "decision_bc")])
print({*hdm.__all__} <= {*dir(hdm)}, hdm.data.load_trajectories is hdm.load_trajectories)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["[]", "['DecisionMambaConfig', 'DecisionBCConfig']", "True True"], done.stderr


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
