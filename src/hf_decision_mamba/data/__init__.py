"""Data: a source of trajectories -> flat columns -> windows that a model trains on.

`sources` opens what there is, `rows` and `facts` read it, `episode_rows` flattens it; `trajectories` are the checked
columns, `windows` the gather and the sampler.
"""

from .sources import load_trajectories
from .trajectories import Trajectories, TrajectoryStatistics
from .windows import WindowDataset, WindowSampler, collate

__all__ = [
    "Trajectories",
    "TrajectoryStatistics",
    "WindowDataset",
    "WindowSampler",
    "collate",
    "load_trajectories",
]
