"""What to read of a source, and which commit of a Hub repository that is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError

from .metadata import SourceMetadata

#: The Hub keeps a parquet copy of many data sets, also of those made by a script, at this revision.
PARQUET_REVISION = "refs/convert/parquet"

_SECONDS_TO_ANSWER = 10.0
_REPOSITORY_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def is_repository_id(source: str) -> bool:
    """Return whether this could be a repository of the Hub, `organisation/name`."""
    return _REPOSITORY_ID.fullmatch(source) is not None


def resolved_commit(repo_id: str, revision: str | None) -> str | None:
    """Return the commit that a revision is; without a connection, that of what has been downloaded.

    Returns:
        None if it cannot be found out.
    """
    with suppress(OSError, HFValidationError):
        if not datasets.config.HF_HUB_OFFLINE:
            return HfApi().dataset_info(repo_id, revision=revision, timeout=_SECONDS_TO_ANSWER).sha
    with suppress(OSError, HFValidationError):
        folder = snapshot_download(repo_id, repo_type="dataset", revision=revision, local_files_only=True)
        return Path(folder).name
    return None


@dataclass(frozen=True)
class Request:
    """What to read of a source: the arguments of `load_trajectories`; `rewards_from` is one of the `columns` too.

    Raises:
        ValueError: `rewards_from` and `columns` both name the column of the rewards; or `observation_parts` are no
            names with sizes.
    """

    split: str = "train"
    config: str | None = None
    revision: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    action_type: str | None = None
    rewards_from: str | None = None
    observation_parts: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        sizes = [] if self.observation_parts is None else [*self.observation_parts.values()] or [0]
        if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
            raise ValueError(
                f"observation_parts={self.observation_parts} must be the names of the parts of an observation, in "
                "their order, with how many numbers each has: {'observation': 4, 'desired_goal': 2}"
            )
        if self.rewards_from is None:
            return
        if "rewards" in self.columns:
            raise ValueError(
                f"rewards_from={self.rewards_from!r} and columns={{'rewards': {self.columns['rewards']!r}}} both say "
                "which column the rewards are; give one of them"
            )
        object.__setattr__(self, "columns", {**self.columns, "rewards": self.rewards_from})

    def metadata(self, said: SourceMetadata) -> SourceMetadata:
        """Return what the source says about itself, but where the user says something else.

        Raises:
            ValueError: `action_type` is no such type.
        """
        parts, where = None, None
        if self.observation_parts is not None:
            named, where = self.observation_parts.items(), "observation_parts (--observation_parts)"
            parts = [{"path": [name], "shape": [size], "size": size} for name, size in named]
        mine = SourceMetadata(where=where, action_type=self.action_type, observation_parts=parts)
        mine.said_action_type()
        return mine.over(said)

    def refuse(self, what: str, *names: str) -> None:
        """Refuse options that would silently do nothing.

        Raises:
            ValueError: one of these options was given.
        """
        for name in names:
            value = getattr(self, name)
            if value:
                raise ValueError(f"{name}={value!r} has no meaning for {what}; leave it out")
