"""Pushing a folder to the Hub in one commit, in spite of what networks do.

huggingface_hub repeats by itself, five times within 23 seconds, the requests that sort and upload files, but not those
that create a repository or a branch, check a card, or commit. When one of the latter fails, the push is repeated here:
no large file that has arrived is sent again, and a commit that has arrived is recognised by its files.
"""

import json
import logging
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from ..reporting.files import command_line, files_at_top
from ..reporting.tables import table_lines

logger = logging.getLogger(__name__)

#: Seconds to wait before a push is repeated; after the last one it has failed.
RETRY_WAITS = (1.0, 4.0, 16.0)
#: A Hub that wants to be left alone for longer ends the push. It counts requests in windows of five minutes.
LONGEST_WAIT = 300.0

_COMMIT_MESSAGES = {"model": "Upload checkpoint", "dataset": "Upload data set"}


class PushError(OSError):
    """A push that failed; the local files are intact.

    Args:
        message: everything there is to say, which ends with the command that repeats the push.
        reason: what went wrong and what to do about it, one or two sentences.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


class _PublicRepositoryError(Exception):
    """What shall be private would be seen by everybody."""


def push_folder(
    folder: Path,
    repo_id: str,
    repo_type: Literal["model", "dataset"],
    patterns: tuple[str, ...],
    write: Callable[[str], object],
    *,
    private: bool,
    revision: str | None,
    create_pr: bool,
    dry_run: bool,
    token: str | None,
    commit_message: str | None,
    left_out: tuple[str, ...] = (),
) -> str:
    """Upload the files of a folder whose paths match `patterns`, in one commit; the others of the repository go.

    Args: as `push_to_hub`, and

        repo_type: what kind of repository it is.
        patterns: of files at the top of the folder, or with one folder before the name (`data/*.parquet`).
        write: writes the card, given the repository's full name.
        left_out: names or patterns among them of files that are not true here, and go from the repository too.

    Returns:
        The address of the repository (of the branch, if `revision` is given), or of the pull request; of a dry run,
        what a push would do.

    Raises:
        ValueError: a pull request was asked for against another branch than main.
        PushError: the push failed; the message ends with the command that repeats it.
    """
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"create_pr opens a pull request against main, so revision={revision} has no meaning.")
    push = _Push(
        folder, repo_id, repo_type, patterns, write, private, revision, create_pr, token, commit_message, left_out
    )
    return push.describe() if dry_run else push.send()


@dataclass(frozen=True)
class _Push:
    """One push: what `push_folder` was asked for."""

    folder: Path
    repo_id: str
    repo_type: Literal["model", "dataset"]
    patterns: tuple[str, ...]
    write: Callable[[str], object]
    private: bool
    revision: str | None
    create_pr: bool
    token: str | None
    commit_message: str | None
    left_out: tuple[str, ...]

    @property
    def message(self) -> str:
        return self.commit_message or _COMMIT_MESSAGES[self.repo_type]

    def send(self) -> str:
        """Push, again and again where that helps, and return the address."""
        try:
            for wait in RETRY_WAITS:
                try:
                    return self._send_once()
                except Exception as error:
                    cause = _cause(error)
                    wait = max(wait, _wanted_wait(cause))
                    if not self._is_worth_repeating(cause) or wait > LONGEST_WAIT:
                        raise
                    logger.warning("The push failed (%s); trying again in %.0f s.", _detail(cause), wait)
                    time.sleep(wait)
            return self._send_once()
        except Exception as error:  # the clients raise their own, httpx2's, OSError, ValueError and RuntimeError
            reason = self._reason(_cause(error))
            raise PushError(
                f"Pushing {self.folder} to {self.repo_id} failed: {reason} The files in {self.folder} are intact; "
                f"this repeats the push: {self._command()}",
                reason,
            ) from error

    def _send_once(self) -> str:
        api = HfApi(token=self.token)
        repo = api.create_repo(self.repo_id, repo_type=self.repo_type, private=self.private, exist_ok=True)
        if self.private and not api.repo_info(repo.repo_id, repo_type=self.repo_type).private:
            raise _PublicRepositoryError(f"{repo.repo_id} exists and is public, but private=True was asked for")
        if self.revision is not None and not self.revision.startswith("refs/"):  # those of pull requests exist
            api.create_branch(repo.repo_id, repo_type=self.repo_type, branch=self.revision, exist_ok=True)
        self.write(repo.repo_id)
        head = api.repo_info(repo.repo_id, repo_type=self.repo_type, revision=self.revision)
        files = self._files()
        with warnings.catch_warnings():
            # The per-episode table is data in a model repository on purpose.
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            commit = api.create_commit(
                repo.repo_id,
                [CommitOperationDelete(name) for name in self._stale(head, files)]
                + [CommitOperationAdd(name, self.folder / name) for name in files],
                commit_message=self.message,
                repo_type=self.repo_type,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=head.sha,  # else what is deleted would not fit what somebody else pushed meanwhile
            )
        if commit.pr_url is not None:
            return commit.pr_url
        return f"{repo}/tree/{self.revision}" if self.revision is not None else str(repo)

    def _files(self) -> list[str]:
        unused = files_at_top(self.folder, self.left_out)
        return [name for name in files_at_top(self.folder, self.patterns) if name not in unused]

    def _stale(self, head: Any, files: list[str]) -> list[str]:
        """Return files of the repository that the folder would have, if they were still true."""
        there = sorted(sibling.rfilename for sibling in head.siblings or [])
        return [name for name in there if name not in files and any(fnmatchcase(name, p) for p in self.patterns)]

    def describe(self) -> str:
        """Say what `send` would send and delete, and where. The card is written; the Hub is only asked what it has."""
        self.write(self.repo_id)
        files = self._files()
        sizes = {name: (self.folder / name).stat().st_size for name in files}
        way = f'one commit, "{self.message}"'
        if self.create_pr:
            way = f'a pull request, "{self.message}"'
        elif self.revision is not None:
            way = f'one commit on the branch {self.revision}, "{self.message}"'
        return "\n".join(
            [
                f"{self.folder} would go to the {self.repo_type} repository {self.repo_id}, as {way}:",
                *(f"  {line}" for line in table_lines([], [[name, f"{size:,} bytes"] for name, size in sizes.items()])),
                f"  {len(files)} files, {sum(sizes.values()):,} bytes",
                self._describe_remote(files),
                "This was a dry run: nothing was sent.",
            ]
        )

    def _describe_remote(self, files: list[str]) -> str:
        if "/" not in self.repo_id:
            return (
                "What is there, and would be deleted, is not known: it depends on whose token is used. Give owner/name."
            )
        api, branch = HfApi(token=self.token), ""
        try:
            try:
                head = api.repo_info(self.repo_id, repo_type=self.repo_type, revision=self.revision, timeout=10)
            except RevisionNotFoundError:
                head = api.repo_info(self.repo_id, repo_type=self.repo_type, timeout=10)
                branch = f"The branch {self.revision} would be created from main. "
        except RepositoryNotFoundError:
            visibility = "private" if self.private else "public"
            return (
                f"{self.repo_id} does not exist, or is not shown to you; it would be created as a {visibility} "
                "repository, and nothing deleted."
            )
        except Exception as error:  # whatever it is, a dry run needs no network
            return f"What is there, and would be deleted, is not known: {self._reason(_cause(error))}"
        if self.private and not head.private:
            return f"It would be refused: {self.repo_id} exists and is public, and private=True was asked for."
        stale = self._stale(head, files)
        if not stale:
            return f"{branch}Nothing would be deleted there."
        return f"{branch}Would be deleted there, as not part of {self.folder}: {', '.join(stale)}."

    def _is_worth_repeating(self, error: BaseException) -> bool:
        """Return whether the same push may succeed in a moment: the network, a busy Hub, somebody else's push."""
        if _was_repeated(error) or (self.create_pr and _may_have_arrived(error)):
            return False  # the client has given up already; a second pull request would be opened
        status = _status(error)
        if status is not None:
            return status in (408, 409, 412, 429) or status >= 500
        return _is_connection_trouble(error)

    def _reason(self, error: BaseException) -> str:
        """Return what went wrong and what to do, one or two sentences."""
        status, detail = _status(error), f" ({_detail(error)})"
        if isinstance(error, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so nothing is sent; unset it to push."
        if isinstance(error, _PublicRepositoryError):
            return f"{error}. Make it private in its settings, push to another name, or leave --private out."
        if self.create_pr and _may_have_arrived(error):
            return (
                f"the Hub did not say whether it opened the pull request{detail}. Look at the discussions of "
                f"{self.repo_id} first; if it is not there, repeat the push."
            )
        if status == 401 and self.token is None and get_token() is None:
            return f"there is no token{detail}. Log in with `hf auth login`, or set HF_TOKEN."
        if status == 401:
            return (
                f"the Hub does not know the token{detail}; it is mistyped, revoked or expired. Take a new one with "
                "write access (https://huggingface.co/settings/tokens), with `hf auth login` or in HF_TOKEN."
            )
        if status == 403:
            return (
                f"the token may not write to {self.repo_id}{detail}. Take a token with write access to it (`hf auth "
                "login`, or HF_TOKEN), push to a name of your own, or propose the files with --create-pr."
            )
        if status in (409, 412):
            return (
                f"somebody else pushes to {self.repo_id} too, and was faster each time{detail}. Look at their commits."
            )
        if status == 429:
            wait = _wanted_wait(error)
            return f"too many requests{detail}; wait {f'{wait:.0f} seconds' if wait else 'a few minutes'}."
        if status is not None and (status == 408 or status >= 500):
            return f"the Hub is in trouble{detail}. https://status.huggingface.co says when it is well again."
        if _is_connection_trouble(error):
            return (
                f"no connection to {HfApi().endpoint}, or none that holds{detail}. Check the network, HTTPS_PROXY and "
                "HF_ENDPOINT."
            )
        return f"{_detail(error)}."

    def _command(self) -> str:
        options = {name: getattr(self, name) for name in ("private", "revision", "create_pr")}
        message = None if self.message == _COMMIT_MESSAGES[self.repo_type] else self.message
        return command_line("push", str(self.folder), self.repo_id, **options, commit_message=message)


# What an error of the client means


def _cause(error: BaseException) -> BaseException:
    """Return what failed, if the client says no more than which file it was about."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _detail(error: BaseException) -> str:
    """Return the error in a few words, on one line and without the address, which the client repeats at length."""
    if not isinstance(error, HfHubHTTPError):
        return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}".rstrip(".")
    said = " ".join((error.server_message or "").split()).rstrip(".")
    is_page = said.startswith("<")  # of a proxy, for people
    return f"{error.response.status_code} {said if said and not is_page else error.response.reason_phrase}"


def _is_connection_trouble(error: BaseException) -> bool:
    """Return whether it was refused, dropped or timed out, or a proxy answered where JSON should be."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return isinstance(error, (HTTPError, ConnectionError, TimeoutError, json.JSONDecodeError)) and not _status(error)


def _wanted_wait(error: BaseException) -> float:
    """Return seconds that the Hub asks to be left alone; 0 where it does not say."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    limits = parse_ratelimit_headers(error.response.headers)
    if limits is not None and limits.remaining == 0:
        return float(limits.reset_in_seconds)
    seconds = error.response.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdigit() else 0.0


def _request(error: BaseException) -> str:
    """Return method and path of the request that failed; empty where there was none."""
    if not isinstance(error, HTTPError):
        return ""
    request = error.response.request if isinstance(error, HfHubHTTPError) else error.request
    return f"{request.method} {request.url.path}"


def _was_repeated(error: BaseException) -> bool:
    """Return whether the client has repeated the request itself, as it does those that sort and upload files."""
    return re.search(r"^PUT |/preupload/|/lfs/objects/batch$", _request(error)) is not None


def _may_have_arrived(error: BaseException) -> bool:
    """Return whether a commit was sent and nobody knows what became of it."""
    return "/commit/" in _request(error) and (_status(error) or 500) >= 500
