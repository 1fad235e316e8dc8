"""Data: a source of trajectories -> flat columns -> windows that a model trains on.

`sources` finds out what a source is, `formats` has an adaptor for each kind, `columns` the checks that all of them
share; `trajectories` are the checked columns, `windows` the gather and the sampler, `windows_on_device` the same on a
GPU; `cache` keeps on the disk what has been read, and `streaming` reads what no disk holds.
"""

from .sequences import SequenceDataset, SequencePass, SequenceSampler
from .sources import load_trajectories
from .statistics import TrajectoryStatistics
from .streaming import EpisodeStream, WindowStream, open_stream
from .trajectories import Trajectories
from .windows import WindowDataset, WindowSampler, collate
from .windows_on_device import DeviceWindowDataset

__all__ = [
    "DeviceWindowDataset",
    "EpisodeStream",
    "SequenceDataset",
    "SequencePass",
    "SequenceSampler",
    "Trajectories",
    "TrajectoryStatistics",
    "WindowDataset",
    "WindowSampler",
    "WindowStream",
    "collate",
    "load_trajectories",
    "open_stream",
]
