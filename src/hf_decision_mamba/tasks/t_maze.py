"""A corridor between a clue and the decision that needs it: how far does a memory reach?

Source: the passive T-Maze of Ni et al. 2023 (arXiv 2307.03864, section 4.1), after Bakker 2001; several clues, more
kinds of them and lures are ours. Whoever goes straight on loses nothing, so that memory alone decides the return.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

#: gymnasium id of `TMaze`.
T_MAZE = "hf_decision_mamba/TMaze-v0"

FORWARD = 0


class TMaze(gymnasium.Env[NDArray[np.float32], np.int64]):
    """One clue or several, a corridor in which nothing tells them apart, and a junction for each.

    An episode of a corridor of L steps with M clues: at steps 0 to M - 1 the clues are shown, at steps L to L + M - 1
    the junctions ask for them, in the same order. Right everywhere else is action 0, `forward`; at a junction it is
    action 1 + c for the clue c. It takes L + M decisions, and is over then, whatever was done.

    - observation (C + 2,): the clue shown, one of C; whether it counts, which a lure does not; whether this is a
      junction. Noise is added to all of them.
    - reward: 1 / M for each junction answered rightly; -1 / L for each step of the corridor that was not walked. So the
      best return is 1, and one clue of two that is guessed gives 1/2 on average.
    - info: `junction`, whether the decision just taken was at one, and `correct`, whether it was right; at the end of
      an episode `success`, whether all were.

    Args:
        length: L, steps from the first clue to the first junction; or the shortest and the longest, of which each
            episode draws one.
        clues: C, the kinds of clues, and of branches.
        told: M, the clues of an episode; at most the shortest corridor.
        noise: standard deviation of what is added to each observation.
        lures: probability of each step of the corridor to show a clue that does not count.

    Raises:
        ValueError: an argument is out of range.
    """

    metadata = {"render_modes": []}

    def __init__(
        self,
        length: int | tuple[int, int] = 10,
        clues: int = 2,
        told: int = 1,
        noise: float = 0.0,
        lures: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        shortest, longest = (length, length) if isinstance(length, int) else length
        for name, right in (
            (f"length={length}", 1 <= shortest <= longest),
            (f"clues={clues}", clues >= 2),
            (f"told={told}", 1 <= told <= shortest),
            (f"noise={noise}", 0 <= noise < np.inf),
            (f"lures={lures}", 0 <= lures <= 1),
        ):
            if not right:
                raise ValueError(
                    f"{name} makes no T-Maze: a corridor has 1 step or more, and two numbers are the shortest and the "
                    "longest; there are 2 kinds of clues or more, 1 clue or more that the shortest corridor holds, "
                    "noise of 0 or more, and a probability of lures"
                )
        self.length, self.clues, self.told = (shortest, longest), clues, told
        self.noise, self.lures, self.render_mode = noise, lures, render_mode
        low, high = (-np.inf, np.inf) if noise else (0, 1)
        self.observation_space = spaces.Box(low, high, (clues + 2,), np.float32)
        self.action_space = spaces.Discrete(1 + clues)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw a corridor and its clues."""
        super().reset(seed=seed)
        self._corridor = int(self.np_random.integers(self.length[0], self.length[1] + 1))
        self._clues = self.np_random.integers(self.clues, size=self.told)
        self._step, self._all_right = 0, True
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one decision."""
        junction, correct = self._step >= self._corridor, int(action) == self.expert_action()
        self._all_right &= correct
        info = {"junction": junction, "correct": correct}
        reward = correct / self.told if junction else (correct - 1) / self._corridor
        self._step += 1
        over = self._step == self._corridor + self.told
        if over:
            info["success"] = self._all_right
        return self._observation(), reward, over, False, info

    def expert_action(self) -> int:
        """Return the right action now, of one who remembers everything."""
        question = self._step - self._corridor
        return FORWARD if question < 0 else 1 + int(self._clues[min(question, self.told - 1)])

    def _observation(self) -> NDArray[np.float32]:
        seen = np.zeros(self.clues + 2, np.float32)
        if self._step < self.told:
            seen[self._clues[self._step]] = seen[-2] = 1
        elif self._step >= self._corridor:
            seen[-1] = 1
        elif self.lures and self.np_random.random() < self.lures:
            seen[self.np_random.integers(self.clues)] = 1
        if self.noise:
            seen += self.np_random.normal(0, self.noise, seen.shape).astype(np.float32)
        return seen


def register_tasks() -> None:
    """Make the environments known to gymnasium."""
    if T_MAZE not in gymnasium.registry:
        gymnasium.register(T_MAZE, entry_point=f"{__name__}:TMaze")
