"""Data: a source of trajectories -> flat columns -> windows that a model trains on.

`sources` finds out what a source is, `formats` has an adaptor for each kind, `columns` the checks that all of them
share; `trajectories` are the checked columns, `windows` the gather and the sampler.
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
