"""Observations that are no vectors become what gymnasium's FlattenObservation makes of them, wherever that is done."""

import json
import re

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array

from hf_decision_mamba import DecisionMambaProcessor
from hf_decision_mamba.data.formats.minari import observations_of
from hf_decision_mamba.data.metadata import describe_observations
from hf_decision_mamba.model.observations_decision_mamba import describe_parts, flatten_observations

BOX = spaces.Box(-1, 1, (2,), np.float32)
SPACES = {
    "one of n": spaces.Discrete(5),
    "one of n from -2 on": spaces.Discrete(3, start=-2),
    "several of n": spaces.MultiDiscrete([2, 3]),
    "several of n, in rows": spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[0, 1], [2, 0]]),
    "bits": spaces.MultiBinary((2, 3)),
    "a matrix": spaces.Box(-1, 1, (3, 4), np.float32),
    "a matrix of one row": spaces.Box(-1, 1, (1, 3), np.float32),
    "a number": spaces.Box(-1, 1, (), np.float64),
    "small pixels": spaces.Box(0, 255, (7, 7, 3), np.uint8),
    "whole numbers": spaces.Box(0, 9, (2, 2), np.int64),
    "a tuple": spaces.Tuple((spaces.Discrete(32), spaces.Discrete(11), spaces.Discrete(2))),
    "goals": spaces.Dict({"observation": BOX, "desired_goal": BOX, "achieved_goal": BOX}),
    "in the order given": spaces.Dict([("b", BOX), ("a", spaces.Discrete(3))]),
    "nested": spaces.Dict(
        {
            "sensors": spaces.Tuple((spaces.Box(-1, 1, (), np.float64), spaces.Dict({"on": spaces.MultiBinary(3)}))),
            "pixels": spaces.Box(0, 255, (2, 2), np.uint8),
            "mode": spaces.Discrete(4, start=1),
        }
    ),
}


def batched(space: spaces.Space, values: list) -> object:
    """Values as gymnasium's vector environments batch them."""
    return concatenate(space, values, create_empty_array(space, n=len(values)))


@pytest.mark.parametrize("name", SPACES)
def test_they_are_flattened_as_gymnasium_does(name):
    space = SPACES[name]
    space.seed(0)
    parts = json.loads(json.dumps(describe_observations("here", space)))
    values = [space.sample() for _ in range(4)]
    expected = np.stack([spaces.flatten(space, value) for value in values]).astype(np.float32)
    for value, vector in zip(values, expected, strict=True):
        found = flatten_observations(value, parts)
        np.testing.assert_array_equal(found, vector)
        assert found.dtype == np.float32
    np.testing.assert_array_equal(flatten_observations(batched(space, values), parts), expected)
    np.testing.assert_array_equal(flatten_observations(expected, parts), expected)  # vectors already
    np.testing.assert_array_equal(observations_of("here", space, batched(space, values)), expected)
    processor = DecisionMambaProcessor([0.0] * expected.shape[1], [1.0] * expected.shape[1], observation_parts=parts)
    assert processor.observation_parts == parts


@pytest.mark.parametrize(
    "space",
    [
        BOX,
        spaces.Box(0, 255, (6,), np.uint8),
        spaces.Box(-1, 1, (3,), np.float64),
        spaces.Box(0, 255, (84, 84), np.uint8),
    ],
)
def test_vectors_and_frames_stay_as_they_are(space):
    assert describe_observations("here", space) is None


def test_in_words():
    parts = describe_observations("here", SPACES["nested"])
    assert describe_parts(parts) == ("a dictionary of mode (one of 4), pixels (2, 2), sensors.0 (), sensors.1.on (3,)")
    assert describe_parts(describe_observations("here", SPACES["a matrix"])) == "(3, 4)"
    assert describe_parts(describe_observations("here", SPACES["a tuple"])).startswith("a tuple of 0 (one of 32), 1")


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Dict({"words": spaces.Text(5), "numbers": BOX}),
        spaces.Dict({"nothing": spaces.Dict({}), "numbers": BOX}),
        spaces.Sequence(BOX),
        spaces.Box(0, 255, (64, 64, 3), np.uint8),
        spaces.Box(0, 255, (3, 64, 64), np.uint8),
        spaces.Dict({1: BOX}),
    ],
)
def test_what_no_vector_is_made_of_is_refused_by_name(space):
    with pytest.raises(ValueError, match=r"Some-v0, 'observations.*': observations from .* are not read, only numbers"):
        describe_observations("Some-v0", space)


NESTED = {"mode": 1, "pixels": np.zeros((2, 2)), "sensors": (0.5, {"on": np.ones(3)})}


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({**NESTED, "extra": 1}, "observation has an additional 'extra'; it must be a dictionary of mode, pixels, sen"),
        ({"mode": 1, "sensors": NESTED["sensors"]}, "observation has no 'pixels'; it must be a dictionary of mode,"),
        ({"mode": 1, "pixel": 1, "sensors": ()}, "observation has no 'pixels' and an additional 'pixel'"),
        ({**NESTED, "pixels": np.zeros((2, 3))}, "observation['pixels'] has shape (2, 3); it must be (2, 2), or (n, 2"),
        ({**NESTED, "sensors": (1.0,)}, "observation['sensors'] is a tuple of 1; it must be a tuple of 2"),
        ({**NESTED, "sensors": 3.0}, "observation['sensors'] is a float; it must be a tuple of 2"),
        ({**NESTED, "sensors": (1.0, np.ones(3))}, "observation['sensors'][1] is of type ndarray; it must be a dictio"),
        ({**NESTED, "sensors": (1.0, {})}, "observation['sensors'][1] has no 'on'"),
        ({**NESTED, "mode": 0}, "observation['mode'] is 0; it must be a whole number from 1 to 4"),
        ({**NESTED, "mode": 1.0}, "observation['mode'] is float64; it must be whole numbers"),
        ({**NESTED, "pixels": "black"}, "observation['pixels'] has shape (); it must be (2, 2)"),
        (
            {**NESTED, "sensors": (None, {"on": np.ones(3)})},
            "observation['sensors'][0] is NoneType; it must be n",
        ),
        ({**NESTED, "pixels": [[1, 2], [3]]}, "observation['pixels'] is no array of numbers"),
        ({**NESTED, "mode": [1, 2]}, "observation['mode'] and observation['pixels'] have 2 rows and no rows"),
        ((1, 2, 3), "observation is of type tuple; it must be a dictionary of mode, pixels, sensors"),
    ],
)
def test_a_part_that_is_wrong_is_named(observation, message):
    parts = describe_observations("here", SPACES["nested"])
    with pytest.raises(ValueError, match=re.escape(message)):
        flatten_observations(observation, parts)


def test_whole_numbers_are_rows_and_floats_are_vectors():
    """An array of n whole numbers is what n environments observe, not the vector of one of n that one observes."""
    parts = describe_observations("here", spaces.Discrete(3))
    np.testing.assert_array_equal(flatten_observations(np.array([0, 1, 0]), parts), [[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(flatten_observations(np.float32([0, 1, 0]), parts), [0, 1, 0])
    np.testing.assert_array_equal(flatten_observations(True, parts), [0, 1, 0])
    with pytest.raises(ValueError, match="observation is 3; it must be a whole number from 0 to 2"):
        flatten_observations(3, parts)


def test_a_dictionary_needs_an_order():
    processor = DecisionMambaProcessor([0.0, 0.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="is a dictionary of b, a, but this checkpoint has no observation_parts"):
        processor.flatten_observations({"b": 1.0, "a": 2.0})
    assert processor.flatten_observations([1.0, 2.0]) == [1.0, 2.0]


NUMBERS = {"path": ["a"], "shape": [2], "size": 2}
MODE = {"path": ["b"], "shape": [], "size": 3, "counts": [3], "starts": [0]}


@pytest.mark.parametrize(
    "parts",
    [
        [NUMBERS],  # of five numbers
        [NUMBERS, {**MODE, "path": ["a"]}],
        [NUMBERS, {**MODE, "path": ["a", "b"]}],
        [NUMBERS, {**MODE, "path": [0]}],
        [{**NUMBERS, "path": [1]}, {**MODE, "path": [0]}],
        [NUMBERS, {**MODE, "path": []}],
        [NUMBERS, {**MODE, "counts": [2]}],
        [NUMBERS, {**MODE, "starts": []}],
        [NUMBERS, {**MODE, "starts": [None]}],
        [NUMBERS, {"path": ["b"], "shape": [3], "size": 4}],
        [NUMBERS, {"path": ["b"], "shape": [-3], "size": -3}],
        [NUMBERS, {"path": ["b"], "shape": [3.0], "size": 3}],
        [NUMBERS, {"path": ["b"], "size": 3}],
        [NUMBERS, {"path": ["b"], "shape": [3], "size": 3, "dtype": "float32"}],
        [NUMBERS, "b"],
        [],
        5,
        {"a": 2, "b": 3},
    ],
)
def test_a_damaged_description_is_refused(parts):
    with pytest.raises(ValueError, match=r"^observation_parts (must be a list of|describes 2 numbers, but an)"):
        DecisionMambaProcessor([0.0] * 5, [1.0] * 5, observation_parts=parts)


def test_images_have_no_parts():
    with pytest.raises(ValueError, match="observation_parts has no meaning for images"):
        DecisionMambaProcessor(observation_parts=[NUMBERS])
