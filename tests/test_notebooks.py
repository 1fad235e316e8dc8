"""The notebooks run from top to bottom, in less of everything, and keep small outputs."""

import json
from pathlib import Path

import matplotlib
import pytest
from factories import ROOT
from matplotlib.figure import Figure

NOTEBOOKS = ROOT / "notebooks"


def cells(name: str) -> list[str]:
    """The programs of a notebook, cell by cell."""
    notebook = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(programs: list[str], less: dict[str, str]) -> tuple[dict, list]:
    """Run cells in one namespace, with `less` in the place of texts that cost time; return it, and what cells show."""
    names, shown = {"__name__": "__main__"}, []
    for program in programs:
        for text in [text for text in less if text in program]:
            program = program.replace(text, less.pop(text))
        *_, last = program.splitlines()
        exec(program, names)
        is_shown = not last.startswith((" ", ")", "import", "print")) and "=" not in last.split("(")[0]
        shown.append(eval(last, names) if is_shown else None)
    assert not less, "the notebook has no such text"
    return names, shown


@pytest.fixture(autouse=True)
def without_a_display(tmp_path, monkeypatch):
    """In a folder from which, as from the repository's, the checkpoint is found."""
    matplotlib.use("Agg")
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    monkeypatch.chdir(tmp_path)


def test_the_quickstart_ends_with_a_saved_policy_that_acts(tmp_path, capsys):
    programs = cells("quickstart.ipynb")
    assert len(programs) <= 10
    less = {
        "range(60)": "range(8)",
        "hidden_size=32": "hidden_size=8",
        "max_steps=300": "max_steps=6",
        "eval_steps=100": "eval_steps=3, logging_steps=2, disable_tqdm=True, use_cpu=True",
        "warmup_steps=30": "warmup_steps=2",
        "eval_episodes=10": "eval_episodes=2, eval_max_episode_steps=4",
        "episodes=8": "episodes=1, max_episode_steps=4",
    }
    names, shown = run(programs, less)
    assert sum(isinstance(value, Figure) for value in shown) == 4
    assert (tmp_path / "runs" / "pendulum" / "model.safetensors").is_file()
    assert names["result"].evaluation.env_id == "Pendulum-v1" and names["total"] < 0
    assert "model.safetensors" in capsys.readouterr().out


def test_somebody_elses_checkpoint_is_looked_into():
    less = {
        "gymnasium.make(policy.processor.env_id)": "gymnasium.make(policy.processor.env_id, max_episode_steps=60)",
        "episodes=2, target_returns=[1800, 3600]": "episodes=1, target_returns=[1800]",
    }
    names, shown = run(cells("look_inside.ipynb"), less)
    assert sum(isinstance(value, Figure) for value in shown) == 4
    assert names["by_steps"].shape == (3, 3, 10, 3) and names["context"].older_removed.shape == (3, 9)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_was_run_and_is_small(path: Path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    programs = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in programs] == [*range(1, len(programs) + 1)]
    assert sum("image/png" in output.get("data", {}) for cell in programs for output in cell["outputs"]) == 4
    assert not any(output["output_type"] == "error" for cell in programs for output in cell["outputs"])
    assert path.stat().st_size < 250_000
    assert str(Path.home()) not in path.read_text(encoding="utf-8")
