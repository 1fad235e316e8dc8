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
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .columns import find_columns, warn_of_no_rewards, without_spare_dones
from .formats.arrow import without_lists_of_one
from .formats.episode_rows import read_episode_rows
from .formats.hub import find_parquet
from .formats.rows import TableRows, check_unpacked, reading
from .formats.step_rows import RobotInfo, has_one_row_per_step, read_step_rows, step_columns
from .goals import GoalsFrom
from .metadata import SourceMetadata, agreed
from .request import Request, is_repository_id
from .sources import Named, joined_names, named_sources
from .trajectories import Trajectories, concatenate
from .views import DataViews
from .windows import WindowDataset

EPISODES_AT_ONCE = 8  # bounds what is unpacked at a time
STEPS_AT_ONCE = 4096  # the same, where a row is a step
_SAMPLED_FILES = 8  # what is known of a stream before it is read is known from so many of its files
_TURNOVER = 8  # a new part of the buffer comes in whenever so many windows have been drawn as it has steps


@dataclass(frozen=True)
class EpisodeStream:
    """Tables in parquet files, here or on the Hub, with a row an episode, or a row a step and episodes one by one.

    Args:
        source_name: what errors call it.
        name: what cards call it.
        files: paths, or hf:// on the Hub.
        columns: names of its columns by our names, where they differ.
        metadata: what else it says about itself.
        held_out: the number of episodes at the beginning of a file that are not in the stream, by file.
        views: in which its episodes are seen.
        goals: which numbers of its observations are goals; None where none is asked for.
    """

    source_name: str
    name: str
    files: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    metadata: SourceMetadata = field(default_factory=SourceMetadata)
    held_out: Mapping[str, int] = field(default_factory=dict)
    views: DataViews = field(default_factory=DataViews)
    goals: GoalsFrom | None = None

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
        stream = self
        for file in files:
            found: list[Trajectories] = []
            for piece in stream.episodes(file):
                found.append(piece)
                if sum(part.num_steps for part in found) >= steps / len(files):
                    break
            if not found:
                continue
            begun = concatenate(found)
            stream = replace(stream, metadata=replace(stream.metadata, action_type=begun.action_type))
            share = round(held_out_fraction * begun.num_episodes)
            counts[file] = max(share, int(held_out_fraction > 0 and not held_out))
            out = np.arange(begun.num_episodes) < counts[file]
            held_out += [begun.select(out)] if out.any() else []
            train += [] if out.all() else [begun.select(~out)]
        if not train:
            raise ValueError(
                f"data set {self.source_name!r} has too few episodes at the beginning of its files to learn from and "
                "hold out"
            )
        known = concatenate(train)
        if not known.has_rewards:
            with self._opened(files[0]) as table:
                warn_of_no_rewards(self.source_name, table.schema_arrow.names)
        metadata = replace(stream.metadata, num_actions=known.num_actions)
        return replace(stream, metadata=metadata, held_out=counts), known, concatenate(held_out) if held_out else None

    def episodes(self, file: str, part: int = 0, parts: int = 1) -> Iterator[Trajectories]:
        """Yield the episodes of a file, a few at a time; with `parts`, every so many-th one, from number `part` on.

        Raises:
            ValueError: the file cannot be read, or an episode is not what it should be.
        """
        first, metadata = 0, self.metadata
        for found, numbers in self._pieces(file):
            episodes = first + np.arange(numbers[-1] + 1)
            wanted = (episodes % parts == part) & (episodes >= self.held_out.get(file, 0))
            source_name = f"{self.source_name}, {Path(file).name} from episode {first}"
            first += len(episodes)
            rows = TableRows(found.filter(pa.array(wanted[numbers])))
            if "episodes" in self._names(found.schema):
                read = read_step_rows(rows, source_name, source_name, self.columns, metadata, RobotInfo(), warn=False)
            else:
                read = read_episode_rows(rows, source_name, source_name, self.columns, metadata, warn=False)
            if read is not None:
                read.check_finite()
                metadata = replace(metadata, action_type=read.action_type)  # of which only the first episodes are asked
                seen = self.views.of(replace(read, name=self.name))
                yield seen if self.goals is None else self.goals.of(seen)

    def _names(self, schema: pa.Schema) -> dict[str, str]:
        """Return the table's names of the columns that are read, by our names."""
        if has_one_row_per_step(schema, self.columns):
            return step_columns(self.source_name, schema, self.columns, RobotInfo())
        return without_spare_dones(find_columns(self.source_name, schema.names, self.columns))

    def _pieces(self, file: str) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
        """Yield whole episodes, a few rows at a time, and for each row which episode of them it is."""
        with self._opened(file) as table:
            names = self._names(table.schema_arrow)
            columns = sorted({*names.values()} & {*table.schema_arrow.names})
            at_once = STEPS_AT_ONCE if "episodes" in names else EPISODES_AT_ONCE
            begun = table.schema_arrow.empty_table().select(columns)
            for group in range(table.num_row_groups):
                groups: Any = {"row_groups": [group], "columns": columns, "use_threads": False}
                for batch in table.iter_batches(at_once, **groups):
                    piece = pa.Table.from_batches([batch]).select(columns)
                    if "episodes" not in names:
                        yield piece, np.arange(len(piece))
                        continue
                    piece = pa.concat_tables([begun, piece.cast(begun.schema)])
                    numbers = self._numbers(piece.column(names["episodes"]))
                    ended = int(np.searchsorted(numbers, numbers[-1]))  # the last episode may go on
                    begun = piece.slice(ended)
                    if ended:
                        yield piece.slice(0, ended), numbers[:ended]
            if len(begun):
                yield begun, np.zeros(len(begun), np.int64)

    def _numbers(self, episodes: pa.ChunkedArray) -> NDArray[np.int64]:
        """Return 0 for the rows of the first episode, 1 for those of the next, and so on."""
        values = without_lists_of_one(
            episodes, lambda row: f"data set {self.source_name!r}, an episode's number"
        ).to_numpy()
        return np.cumsum(np.concatenate([[False], values[1:] != values[:-1]]))

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
        with reading(self.source_name, f"the file {file}"):
            table = pq.ParquetFile(source, pre_buffer=True)
            check_unpacked(self.source_name, file, table.metadata)
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
                yield windows.__getitems__(random.integers(windows.num_items, size=self.batch_size))
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
                    f"data set {self.episodes.source_name!r} has fewer episodes to stream than the {parts} processes "
                    "and workers that read it; use fewer (--dataloader_num_workers)"
                )


def open_stream(
    source: Named,
    *,
    config: str | None = None,
    revision: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    action_type: str | None = None,
    rewards_from: str | None = None,
    observation_parts: Mapping[str, int] | None = None,
) -> EpisodeStream:
    """Find the episodes of parquet files, folders or Hub repositories, without reading or downloading them.

    Args: as `load_trajectories`; of several sources, the metadata has to agree.

    Raises:
        FileNotFoundError, ConnectionError: there is no such data set, or the Hub cannot be reached.
        TypeError: it has no name.
        ValueError: it is not one that can be streamed.
    """
    request = Request(split, config, revision, columns or {}, action_type, rewards_from, observation_parts)
    names = named_sources(source)
    if names is None:
        raise TypeError(f"a stream comes from paths or repositories of the Hub, not from {type(source).__name__}")
    found = [_find(str(name), request) for name in names]
    return EpisodeStream(
        source_name=" ".join(map(str, names)),
        name=joined_names([name for _, name, _ in found]),
        files=tuple(file for files, _, _ in found for file in files),
        columns=request.columns,
        metadata=request.metadata(agreed([metadata for _, _, metadata in found])),
    )


def _find(source: str, request: Request) -> tuple[list[str], str, SourceMetadata]:
    """Return the parquet files of a source, what cards call it, and what it says about itself."""
    path = Path(source).expanduser()
    if not path.exists() and not is_repository_id(source):
        raise FileNotFoundError(
            f"no data set to stream at {source!r}: there is no file or folder {path.absolute()}, and it is not a "
            "repository id of the Hub (organisation/name)"
        )
    return find_parquet(source, path, request)
