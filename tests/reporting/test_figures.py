"""What pictures and tables have in common: numbers that say something, however small they are."""

import pytest

from hf_decision_mamba.reporting.figures import number


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
