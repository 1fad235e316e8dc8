"""What pictures and tables have in common: numbers that say something, however small they are."""

import logging
from pathlib import Path

import pytest

from hf_decision_mamba.reporting.figures import drawing, new_figure, number, save_figure


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (1234.56, 1, "1,234.6"),
        (511.53, 0, "512"),
        (54.31, 0, "54.3"),
        (5.0, 1, "5.0"),
        (9.97, 1, "9.97"),
        (0.5, 0, "0.5"),
        (-0.01234, 1, "-0.0123"),
        (1.0, 0, "1"),
        (9.999, 1, "10.0"),
        (1e-9, 2, "1e-09"),
        (0.0, 1, "0.0"),
        (1e7, None, "10000000"),
        (float("nan"), 1, "n/a"),
        (None, 1, "n/a"),
    ],
)
def test_numbers_keep_three_digits(value: float | None, decimals: int | None, text: str) -> None:
    assert number(value, decimals) == text


def test_thousands_may_stand_together() -> None:
    assert number(1234.56, 1, thousands="") == "1234.6"


def test_numbers_that_stand_together_end_at_the_same_digit() -> None:
    values = [-0.012, 0.0015, 0.01]
    assert [number(value, 1, beside=values) for value in values] == ["-0.012", "0.0015", "0.01"]
    assert [number(value, 1, beside=[3234.66]) for value in (3234.66, 8.0123, 0.0)] == ["3,234.7", "8.0", "0.0"]


def test_a_notebook_shows_a_figure_and_its_file_is_finer(tmp_path: Path) -> None:
    figure = new_figure(2.0, 1.0)
    shown = figure._repr_png_()
    save_figure(figure, tmp_path / "a.png")
    save_figure(figure, tmp_path / "b.png")
    width = [int.from_bytes(png[16:20], "big") for png in (shown, (tmp_path / "a.png").read_bytes())]
    assert width == [144, 300]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_without_matplotlib_work_goes_on_and_a_warning_says_what_is_missing(caplog) -> None:
    with caplog.at_level(logging.WARNING), drawing("returns.png", "pip install matplotlib"):
        raise ImportError("No module named 'matplotlib'")
    assert "returns.png was not drawn: matplotlib is not installed (pip install matplotlib)" in caplog.text
