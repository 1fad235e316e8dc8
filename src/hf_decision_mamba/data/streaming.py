"""Streams: training from tables that are neither downloaded nor held in memory, but read again and again as it goes.

Episodes are read whole, so that their returns-to-go are those of the whole; windows are drawn from a bounded buffer of
them. What is drawn is a function of the seed, so that a run that reads the stream again draws it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfFileSystem
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .columns import find_columns, without_spare_dones
from .facts import SourceFacts
from .formats.episode_rows import read_episode_rows
from .formats.hub import Request, find_parquet, is_repository_id
from .formats.rows import TableRows, reading
from .formats.step_rows import has_one_row_per_step
from .trajectories import Trajectories, concatenate
from .windows import WindowDataset

_EPISODES_AT_ONCE = 8  # bounds what is unpacked at a time
_SAMPLED_FILES = 8  # what is known of a stream before it is read is known from so many of its files
_TURNOVER = 8  # a new part of the buffer comes in whenever so many windows have been drawn as it has steps


@dataclass(frozen=True)
class EpisodeStream:
    """Tables with one row per episode in parquet files, here or on the Hub.

    Args:
        label: what errors call it.
        name: what cards call it.
        files: paths, or hf:// on the Hub.
        columns: names of its columns by ours, where they differ.
        facts: what else it says about itself.
        held_out: the number of episodes at the beginning of a file that are not in the stream, by file.
    """

    label: str
    name: str
    files: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    facts: SourceFacts = field(default_factory=SourceFacts)
    held_out: Mapping[str, int] = field(default_factory=dict)

    def sample(self, steps: int, held_out_fraction: float) -> tuple[EpisodeStream, Trajectories, Trajectories | None]:
        """Read the beginnings of some files, of which the first episodes are held out.

        Args:
            steps: transitions to read, or a little more.
            held_out_fraction: share of these episodes to hold out, at least one; 0 for none.

        Returns:
            The stream without what is held out, the rest of the sample, and what is held out.

        Raises:
            ValueError: a file cannot be read, or there are too few episodes.
        """
        files = self.files[:: -(-len(self.files) // _SAMPLED_FILES)]
        train: list[Trajectories] = []
        held_out: list[Trajectories] = []
        counts: dict[str, int] = {}
        for file in files:
            found: list[Trajectories] = []
            for piece in self.episodes(file):
                found.append(piece)
                if sum(part.num_steps for part in found) >= steps / len(files):
                    break
            if not found:
                continue
            begun = concatenate(found)
            share = round(held_out_fraction * begun.num_episodes)
            counts[file] = max(share, int(held_out_fraction > 0 and not held_out))
            out = np.arange(begun.num_episodes) < counts[file]
            held_out += [begun.select(out)] if out.any() else []
            train += [] if out.all() else [begun.select(~out)]
        if not train:
            raise ValueError(
                f"data set {self.label!r} has too few episodes at the beginning of its files to learn from and hold out"
            )
        known = concatenate(train)
        facts = replace(self.facts, num_actions=known.num_actions)
        return replace(self, facts=facts, held_out=counts), known, concatenate(held_out) if held_out else None

    def episodes(self, file: str, part: int = 0, parts: int = 1) -> Iterator[Trajectories]:
        """Yield the episodes of a file, a few at a time; with `parts`, every so many-th one, from number `part` on.

        Raises:
            ValueError: the file cannot be read, or an episode is not what it should be.
        """
        with self._opened(file) as table:
            if has_one_row_per_step(table.schema_arrow, self.columns):
                raise ValueError(
                    f"data set {self.label!r} cannot be streamed: {Path(file).name} has one row per step, and only "
                    "tables with one row per episode can; load it without streaming"
                )
            names = without_spare_dones(find_columns(self.label, table.schema_arrow.names, self.columns))
            first = 0
            for group in range(table.num_row_groups):
                groups: Any = {"row_groups": [group], "columns": sorted({*names.values()}), "use_threads": False}
                for batch in table.iter_batches(_EPISODES_AT_ONCE, **groups):
                    rows = np.arange(first, first + len(batch))
                    first += len(batch)
                    wanted = (rows % parts == part) & (rows >= self.held_out.get(file, 0))
                    chosen = pa.Table.from_batches([batch]).filter(pa.array(wanted))
                    label = f"{self.label}, {Path(file).name} from row {rows[0]}"
                    found = read_episode_rows(TableRows(chosen), label, label, self.columns, self.facts)
                    if found is not None:
                        found.check_finite()
                        yield replace(found, name=self.name)

    def shard(self, order: np.ndarray, part: int, parts: int) -> Iterator[Trajectories]:
        """Yield one of several `parts` of all episodes: whole files if there are enough, or else rows of each.

        Args:
            order: of the files.
            part: which one.
            parts: how many.
        """
        by_file = len(self.files) >= parts
        for number in order[part::parts] if by_file else order:
            yield from self.episodes(self.files[number], *(() if by_file else (part, parts)))

    @contextmanager
    def _opened(self, file: str) -> Iterator[pq.ParquetFile]:
        # What is asked for is what is fetched: Arrow knows best which parts of a file it needs.
        source: Any = HfFileSystem().open(file, cache_type="none") if file.startswith("hf://") else file
        with reading(self.label, file):
            table = pq.ParquetFile(source, pre_buffer=True)
            try:
                yield table
            finally:
                table.close(force=True)


class WindowStream(IterableDataset[dict[str, Tensor]]):
    """Endless finished batches of windows (see `WindowDataset`) of a stream; each transition begins as many windows.

    The stream is read pass after pass, its files in another order each time. Processes and the workers of a DataLoader
    read different episodes. Windows are drawn uniformly from a buffer, as many as transitions come into it.

    Args:
        episodes: the stream.
        context_length: K, steps in a window.
        batch_size: windows in a batch.
        buffer_steps: transitions in the buffer of each process or worker; a longer episode is a buffer alone.
        seed: not negative.
        rank: of this process.
        world_size: number of processes.
        windows: how the windows are cut, as `WindowDataset` takes it.
    """

    def __init__(
        self,
        episodes: EpisodeStream,
        context_length: int,
        *,
        batch_size: int,
        buffer_steps: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        **windows: Any,
    ) -> None:
        self.episodes = episodes
        self.context_length = context_length
        self.batch_size = batch_size
        self.buffer_steps = buffer_steps
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.windows = windows

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        workers = 1 if worker is None else worker.num_workers
        part = self.rank * workers + (0 if worker is None else worker.id)
        random = np.random.default_rng([self.seed, 1, part])
        buffer: list[Trajectories] = []
        owed = 0
        for fresh in self._arrivals(part, self.world_size * workers):
            buffer += fresh
            while len(buffer) > len(fresh) and sum(piece.num_steps for piece in buffer) > self.buffer_steps:
                del buffer[0]
            windows = WindowDataset(concatenate(buffer), self.context_length, **self.windows)
            owed += sum(piece.num_steps for piece in fresh)
            for _ in range(owed // self.batch_size):
                yield windows.__getitems__(random.integers(len(windows), size=self.batch_size))
            owed %= self.batch_size

    def _arrivals(self, part: int, parts: int) -> Iterator[list[Trajectories]]:
        """Yield new episodes: first as many as the buffer holds, then a part of it at a time, or what a pass leaves."""
        wanted = self.buffer_steps
        for number in count():
            order = np.random.default_rng([self.seed, 0, number]).permutation(len(self.episodes.files))
            fresh: list[Trajectories] = []
            steps = total = 0
            for piece in self.episodes.shard(order, part, parts):
                fresh.append(piece)
                steps, total = steps + piece.num_steps, total + piece.num_steps
                if steps >= wanted:
                    yield fresh
                    fresh, steps, wanted = [], 0, self.buffer_steps // _TURNOVER
            if fresh:
                yield fresh
            if not total:
                raise ValueError(
                    f"data set {self.episodes.label!r} has fewer episodes to stream than the {parts} processes and "
                    "workers that read it; use fewer (--dataloader_num_workers)"
                )


def open_stream(
    source: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
) -> EpisodeStream:
    """Find the episodes of a parquet file, a folder or a Hub repository, without reading or downloading them.

    Args: as `load_trajectories`.

    Raises:
        FileNotFoundError, ConnectionError: there is no such data set, or the Hub cannot be reached.
        ValueError: it is not one that can be streamed.
    """
    path = Path(source).expanduser()
    if not path.exists() and not is_repository_id(source):
        raise FileNotFoundError(
            f"no data set to stream at {source!r}: there is no file or folder {path.absolute()}, and it is not a "
            "repository id of the Hub (organisation/name)"
        )
    request = Request(split, config, revision, columns or {})
    files, name, facts = find_parquet(source, path, request)
    return EpisodeStream(source, name, tuple(files), request.columns, facts)
