"""Experts of mazes: the shortest way over the free cells to the goal, and a controller that follows it.

Source: the waypoint controllers that made D4RL's maze2d (Fu et al. 2020, arXiv 2004.07219) and Minari's pointmaze.
Theirs keep a path; this one looks its way up anew at every step, so that it finds back from wherever noise pushed it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Cell: TypeAlias = tuple[int, int]

#: Of position and velocity. Source: Minari's waypoint controller of pointmaze.
GAIN, DAMPING = 10.0, 1.0


class Ways:
    """The shortest ways over the free cells of a maze.

    Args:
        walls: (rows, columns) where nobody can go.
    """

    def __init__(self, walls: NDArray[np.bool_]):
        self._walls, self._distances = walls, dict[Cell, dict[Cell, int]]()

    def next_cell(self, here: Cell, goal: Cell) -> Cell:
        """Return the neighbour of a cell that is nearest to the goal; the cell itself at the goal, or without a way."""
        if goal not in self._distances:
            self._distances[goal] = self._spread(goal)
        distances = self._distances[goal]
        return min((here, *self._neighbours(here)), key=lambda cell: distances.get(cell, self._walls.size))

    def cells_at(self, here: Cell, steps: int) -> list[Cell]:
        """Return the cells whose shortest way from here has so many steps."""
        return [cell for cell, distance in self._spread(here).items() if distance == steps]

    def _spread(self, goal: Cell) -> dict[Cell, int]:
        """Return the steps from each cell that the goal can be reached from, breadth-first."""
        distances, waiting = {goal: 0}, deque([goal])
        while waiting:
            cell = waiting.popleft()
            for neighbour in self._neighbours(cell):
                if neighbour not in distances:
                    distances[neighbour] = distances[cell] + 1
                    waiting.append(neighbour)
        return distances

    def _neighbours(self, cell: Cell) -> list[Cell]:
        row, column = cell
        around = ((row - 1, column), (row, column - 1), (row + 1, column), (row, column + 1))
        rows, columns = self._walls.shape
        return [(r, c) for r, c in around if 0 <= r < rows and 0 <= c < columns and not self._walls[r, c]]


def point_maze(env: Any) -> Callable[[Sequence[int]], NDArray[np.float32]]:
    """Return an expert of gymnasium-robotics' PointMaze: it pushes the ball to the goal, and keeps it there."""
    maze = env.maze
    ways = Ways(np.array([[cell == 1 for cell in row] for row in maze.maze_map]))  # other cells are 0 or letters

    def cell_of(position: NDArray[np.float64]) -> Cell:
        row, column = maze.cell_xy_to_rowcol(position)
        return int(row), int(column)

    def act(observation: Sequence[int]) -> NDArray[np.float32]:
        position, velocity, goal = env.data.qpos[:2], env.data.qvel[:2], env.goal
        here, there = cell_of(position), cell_of(goal)
        following = ways.next_cell(here, there)
        target = goal if following == there else maze.cell_rowcol_to_xy(np.array(following))
        push = GAIN * (target - position) - DAMPING * velocity
        return np.clip(push, -1, 1).astype(np.float32)

    return act
