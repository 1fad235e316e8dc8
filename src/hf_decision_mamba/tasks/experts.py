"""Experts for environments of other packages: what is right there, for data to learn from.

POPGym's memory games (Morad et al. 2023, arXiv 2303.01859): small policies that remember what they have seen, and are
always right. Each answers what is asked of the past, by the rules that popgym 1.0.7 plays by. Nothing but an
environment's rules and what it shows is looked at, so that it can be learned. Those of mazes stand in mazes.py, and
those of OGBench in oracles.py.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

from .mazes import point_maze
from .oracles import Navigate, Noisy, Play, Stitch

#: Returns the right action for what is seen now, its whole numbers in their order; made anew for each episode.
Expert: TypeAlias = Callable[[Sequence[int]], Any]

NOTHING_ASKED = 0  # what is answered then


def _repeat_previous(env: Any) -> Expert:
    """Answer with the suit that was seen k - 1 steps ago; the first k - 1 answers do not count."""
    seen: deque[int] = deque(maxlen=env.k)

    def act(observation: Sequence[int]) -> int:
        seen.append(observation[0])
        return seen[0] if len(seen) == env.k else NOTHING_ASKED

    return act


def _repeat_first(env: Any) -> Expert:
    """Answer with the suit that was seen first."""
    seen: list[int] = []

    def act(observation: Sequence[int]) -> int:
        seen.extend([] if seen else observation)
        return seen[0]

    return act


def _autoencode(env: Any) -> Expert:
    """Play all suits in reverse order, from the last one on, which is shown when the play begins."""
    seen: list[int] = []
    playing = False

    def act(observation: Sequence[int]) -> int:
        nonlocal playing
        watching, suit = observation
        if not playing:
            seen.append(suit)
        playing = not watching
        return seen.pop() if playing else NOTHING_ASKED

    return act


def _count_recall(env: Any) -> Expert:
    """Count how often the card that is asked for has been dealt, the one on the table included."""
    dealt: Counter[int] = Counter()

    def act(observation: Sequence[int]) -> int:
        card, asked = observation
        dealt[card] += 1
        return dealt[asked]

    return act


_ARM: dict[str, Callable[[Any], Expert]] = {"play": Play, "noisy": Noisy}
#: Experts by package and class of the environments that they are for, and by their kind, of which the first is taken
#: where none is named.
EXPERTS: dict[str, dict[str, dict[str, Callable[[Any], Expert]]]] = {
    "popgym": {
        "RepeatPrevious": {"": _repeat_previous},
        "RepeatFirst": {"": _repeat_first},
        "Autoencode": {"": _autoencode},
        "CountRecall": {"": _count_recall},
    },
    "gymnasium_robotics": {"PointMazeEnv": {"": point_maze}},
    "ogbench": {
        **dict.fromkeys(("CubeEnv", "SceneEnv", "PuzzleEnv"), _ARM),
        "PointEnv": {"navigate": Navigate, "stitch": Stitch},
    },
}
#: For whom there are experts, for those who ask for another one.
HAVE_EXPERTS = (
    f"popgym's {', '.join(EXPERTS['popgym'])}, the PointMaze of gymnasium-robotics, and OGBench's cube, scene, puzzle "
    "and pointmaze"
)


def expert_of(env: Any, kind: str = "") -> Callable[[], Expert] | None:
    """Return what makes an expert of an environment for each of its episodes; None where there is none.

    An environment of our own says what is right by itself, in its method `expert_action()`.

    Args:
        env: the environment, with whatever is around it.
        kind: which of several; the first where it is empty.

    Raises:
        ValueError: there are experts, but none of this kind.
    """
    kinds = _kinds(env)
    if kind and kinds and kind not in kinds:
        known = f"kinds {', '.join(kinds)}" if any(kinds) else "no kinds"
        raise ValueError(f"there is no expert {kind!r} here, whose expert has {known}")
    return kinds[kind or next(iter(kinds))] if kinds else None


def _kinds(env: Any) -> dict[str, Callable[[], Expert]]:
    """Return what makes the experts of an environment, by their kinds."""
    with suppress(AttributeError):
        knows = env.get_wrapper_attr("expert_action")
        return {"": lambda: lambda observation: knows()}
    for base in type(env.unwrapped).__mro__:
        found = EXPERTS.get(base.__module__.split(".")[0], {}).get(base.__name__)
        if found is not None:
            return {kind: partial(make, env.unwrapped) for kind, make in found.items()}
    return {}
