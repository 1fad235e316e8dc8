"""The documents say what is: snippets run as printed, generated pages are up to date, links lead somewhere."""

import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHECKPOINT = "dema-b3ld-hopper-medium-replay"


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder in which the default run has ended (its checkpoint is the one that the repository publishes)."""
    shutil.copytree(ROOT / "model_cards" / CHECKPOINT, tmp_path / "runs" / CHECKPOINT)
    monkeypatch.chdir(tmp_path)


def test_the_python_snippets_of_the_readme_run_as_printed(clone):
    act, loop, model = snippets("python")
    names = {"observation": np.zeros(11, dtype=np.float32)}
    exec(act, names)
    assert names["action"].shape == (3,)
    exec(loop.replace('"Hopper-v5"', '"Hopper-v5", max_episode_steps=30'), names)
    assert names["truncated"]
    exec(model, names)
    assert names["output"].action_preds.shape == (2, 20, 3)


def test_the_presets_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_presets", ROOT / "docs" / "make_presets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PATH.read_text(encoding="utf-8") == module.render(), "run python docs/make_presets.py"


def test_every_file_that_the_readme_names_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and [link for link in links if not (ROOT / link).exists()] == []
