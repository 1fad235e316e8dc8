"""Statistics over seeds and data sets, against numbers of rliable, the authors' own program (version 1.2.0)."""

import numpy as np
import pytest

from hf_decision_mamba.study.statistics import (
    interquartile_mean,
    probability_of_improvement,
    share_above,
    with_interval,
)

# Scores of five and of four seeds on three data sets, as rliable has them: (seeds, data sets).
X = np.array([[54.1, -1.1, 58.4], [38.6, 40.9, 45.7], [9.6, 45.4, 32.7], [116.5, 54.5, 42.9], [44.4, 36.6, 28.9]]).T
Y = np.array([[54.1, 67.2, 56.4], [74.4, 57.0, 60.4], [83.2, 68.2, 52.4], [57.3, 68.1, 89.0]]).T
#: How far the ends of rliable's own intervals of 50,000 resamples move from one seed to another, and a little more.
_MOVES = 0.4


def test_interquartile_means_are_rliables_and_their_intervals_too():
    for scores, value, low, high in ((X, 42.366667, 33.0, 49.25), (Y, 63.033333, 57.3, 72.3)):
        found = with_interval(interquartile_mean, scores)
        assert found[0] == pytest.approx(value, abs=1e-6)
        assert found[1:] == pytest.approx((low, high), abs=_MOVES)


def test_the_probability_of_improvement_is_rliables_with_a_tie_as_half():
    value, low, high = with_interval(probability_of_improvement, X, Y)
    assert value == pytest.approx(0.10833333)
    assert (low, high) == pytest.approx((0, 0.266667), abs=0.02)
    assert with_interval(probability_of_improvement, Y, X)[0] == pytest.approx(1 - value)


def test_performance_profiles_are_rliables():
    thresholds = np.array([20.0, 40.0, 50.0, 60.0, 80.0])
    share, low, high = with_interval(share_above, X, thresholds=thresholds)
    np.testing.assert_allclose(share, [0.86666667, 0.6, 0.26666667, 0.06666667, 0.06666667])
    assert (low <= share).all() and (share <= high).all() and (high - low).max() < 0.6
    np.testing.assert_allclose(
        with_interval(share_above, Y, thresholds=thresholds)[0], [1, 1, 1, 0.58333333, 0.16666667]
    )


def test_data_sets_may_have_different_numbers_of_seeds():
    scores = [[1.0, 3.0], [2.0, 4.0, 100.0, 0.0]]
    assert with_interval(interquartile_mean, scores)[0] == pytest.approx(np.mean([1, 2, 3, 4]))
    # of the first data set 1 of 2, of the second 2 of 4
    assert with_interval(share_above, scores, thresholds=np.array([2.0]))[0] == pytest.approx([0.5])


def test_a_single_seed_everywhere_has_no_interval():
    assert with_interval(interquartile_mean, [[1.0], [3.0]]) == (2.0, None, None)


def test_resampling_keeps_to_the_data_sets():
    value, low, high = with_interval(interquartile_mean, [[0.0, 0.0], [100.0, 100.0]])
    assert value == low == high == 50  # mixed, resamples would be anything between
