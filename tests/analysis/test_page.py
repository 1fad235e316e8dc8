"""The page of an inspection: one file that needs nothing else, its pictures, and the numbers."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from factories import pendulum_policy, pendulum_transformer

from hf_decision_mamba.analysis.hidden_attention import Decay
from hf_decision_mamba.analysis.inspection import inspect_checkpoint
from hf_decision_mamba.analysis.page import write_inspection

PICTURES = ["attention", "decay", "effective_context", "return_conditioning", "time_constants"]


def inspection(model=None, **options):
    return inspect_checkpoint(pendulum_policy(model), "me/<pendulum>", episodes=2, progress=False, **options)


@pytest.fixture(scope="module")
def found():
    return inspection(target_returns=[-900, -300], timesteps=(20, 49))


def test_pictures_show_what_was_measured(found, drawn, tmp_path):
    write_inspection(found, tmp_path)
    assert [*drawn] == [f"{name}.png" for name in PICTURES]
    axes = {name: drawn[f"{name}.png"].axes for name in PICTURES}

    *panels, bar = axes["attention"]
    for panel, values in zip(panels, np.moveaxis(found.surface.mean(0), 2, 0), strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array().filled(0), values.T)  # white where nothing is read
        assert panel.images[0].get_extent()[:2] == [19.5, 49.5]
    assert bar.get_ylabel() == "mean |α| (log scale)"

    for panel, curve, fit in zip(axes["decay"], found.curves, found.decays, strict=True):
        measured, fitted = panel.lines
        np.testing.assert_array_equal(np.nan_to_num(measured.get_ydata()), curve)
        np.testing.assert_allclose(fitted.get_ydata(), fit.scale * np.exp(-fit.rate * np.arange(len(curve))))
        assert panel.get_yscale() == "log"

    top, shares, *_ = axes["effective_context"]
    for line, changes in zip(top.lines, (found.context.older_removed, found.context.step_removed), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), found.context.steps_ago)
        np.testing.assert_allclose(line.get_ydata(), np.nanmean(changes, axis=0))
    own = np.mean([100 * curve / curve.sum() for curve in found.curves], axis=0)
    np.testing.assert_allclose([bar.get_height() for bar in shares.patches], own[1:], rtol=1e-5)

    (panel,) = axes["return_conditioning"]
    episodes = found.conditioning.episodes
    np.testing.assert_array_equal(panel.lines[0].get_xydata(), [[r["target_return"], r["return"]] for r in episodes])
    means = [[row["target_return"], row["return_mean"]] for row in found.conditioning.summary()]
    np.testing.assert_array_equal(panel.containers[0][0].get_xydata(), means)

    left, right = axes["time_constants"]
    for panel, values in ((left, found.time_constants.step_sizes), (right, found.time_constants.steps)):
        medians = [line.get_xdata()[0] for line in panel.lines if line.get_marker() == "o"]
        np.testing.assert_array_equal(medians, values[:, 2])
    assert right.lines[-1].get_xdata() == [5, 5]  # the context length


def test_page_pictures_and_numbers(found, tmp_path):
    written = write_inspection(found, tmp_path / "new" / "folder")
    assert [path.name for path in written] == [
        "inspection.html",
        *(f"{name}.png" for name in PICTURES),
        "inspection.json",
    ]
    assert all(path.is_file() for path in written)
    page = written[0].read_text()
    assert page.count("data:image/png;base64,") == 5 and not re.search(r'(src|href)="(?!data:)', page)
    assert "me/&lt;pendulum&gt;" in page and "<pendulum>" not in page
    for stated in (
        "Pendulum-v1",
        "target return -300, seeds 0, 1",
        "window, context length 5",
        "2 episodes, seeds from 0",
    ):
        assert stated in page
    assert f"<td>{found.decays[0].rate:.3f}</td>" in page and f"<td>{found.decays[0].r_squared:.3f}</td>" in page
    assert json.loads(written[-1].read_text())["protocol"]["checkpoint"] == "me/<pendulum>"


def test_the_same_numbers_give_the_same_bytes(found, tmp_path):
    first, again = write_inspection(found, tmp_path / "first"), write_inspection(found, tmp_path / "again")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_what_is_left_out_has_a_sentence_and_no_picture(tmp_path):
    (tmp_path / "attention.png").write_bytes(b"of an earlier inspection")
    written = write_inspection(inspection(pendulum_transformer(), target_returns=[-300]), tmp_path)
    assert [path.stem for path in written] == ["inspection", "effective_context", "return_conditioning", "inspection"]
    assert not (tmp_path / "attention.png").exists()
    assert written[0].read_text().count("Left out. DecisionTransformerModel has no Mamba layers") == 3


def test_the_page_says_whether_decay_is_exponential(found, tmp_path):
    fits = [
        Decay(0.2, (0.1, 0.3), 1.0, 0.99),
        Decay(0.2, (0.1, 0.3), 1.0, 0.9),
        Decay(-0.2, (-0.3, -0.1), 1.0, 0.3),
        None,
    ]
    changed = replace(found, curves=np.repeat(found.curves[:1], 4, axis=0), decays=fits)
    page = write_inspection(changed, tmp_path)[0].read_text()
    for words in ("exponential", "not quite exponential", "not exponential", "attends to one step at most"):
        assert page.count(f"<td>{words}</td>") == 1
