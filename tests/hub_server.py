"""A Hub on the loopback interface: repositories with commits, branches, tags and tokens, in memory, over HTTP.

The real clients (huggingface_hub, transformers, datasets) talk to it: pushing and loading are tested as users do them.
Source: the requests that those clients make; run them in a process with `LoopbackHub.client_environment`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".parquet", ".png")
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Blob:
    """One version of one file."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    def describe(self, path: str) -> dict[str, object]:
        """The entry of this file in a tree listing."""
        entry: dict[str, object] = {"type": "file", "path": path, "oid": self.git_oid, "size": len(self.content)}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        return entry


@dataclass(frozen=True)
class Commit:
    """A whole tree: path -> file, with the commit it follows."""

    files: Mapping[str, Blob]
    message: str
    parent: str | None

    @property
    def sha(self) -> str:
        tree = sorted((path, blob.git_oid) for path, blob in self.files.items())
        return hashlib.sha1(json.dumps([tree, self.message, self.parent]).encode()).hexdigest()


@dataclass
class Repository:
    """A model or dataset repository; `refs` maps branch and tag names to commits."""

    kind: str  # "models" or "datasets"
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, files: Mapping[str, Blob], message: str) -> str:
        """Put a new commit on a branch and return its sha."""
        commit = Commit(dict(files), message, self.branches.get(branch))
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit.sha

    def resolve(self, revision: str) -> str | None:
        """The sha that a branch, a tag or a sha names."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return sha if sha in self.commits else None

    def history(self, revision: str = "main") -> list[str]:
        """Commit messages of a revision, newest first."""
        messages, sha = [], self.resolve(revision)
        while sha is not None:
            messages.append(self.commits[sha].message)
            sha = self.commits[sha].parent
        return messages

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Contents of every file at a revision."""
        sha = self.resolve(revision)
        assert sha is not None, f"{self.name} has no revision {revision!r}"
        return {path: blob.content for path, blob in self.commits[sha].files.items()}


@dataclass
class Request:
    """What a handler may look at; `user` is None for an anonymous request."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    user: str | None

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    @property
    def opens_pull_request(self) -> bool:
        return self.user is not None and self.query.get("create_pr") == ["1"]


@dataclass
class Response:
    """What goes back; a dict or list body is sent as JSON."""

    body: object = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """Ends a request with an error that the client maps to its own exception classes."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.response = Response({"error": message}, status, headers)


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose `METHOD /path` contains the regular expression `request`.

    The Hub answers with `status` and `headers` and does nothing; or the connection breaks in the middle of the
    request, or instead of the answer to a request that was carried out; or `meanwhile` is called before the request,
    which then takes its usual way.
    """

    request: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    breaks: Literal["request", "answer"] | None = None
    meanwhile: Callable[[], object] | None = None
    times: int = 1


class LoopbackHub:
    """The server: `with LoopbackHub() as hub: ... hub.endpoint`. `tokens` maps a token to the user it belongs to.

    Every request passes through `handle`, which finds the route and calls its method: the place to change an answer.
    `faults` are what goes wrong; `requests` lists all requests with their statuses, 0 where the connection broke.
    """

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self.tokens = dict(tokens)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.faults: list[Fault] = []
        self._lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        repo = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
        prefix = r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)"
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Response]]] = [
            (method, re.compile(pattern), answer)
            for method, pattern, answer in (
                ("GET", r"/api/whoami-v2", self.whoami),
                ("GET", r"/api/agent-harnesses", lambda request: Response({})),
                ("POST", r"/api/validate-yaml", self.validate_card),
                ("POST", r"/api/repos/create", self.create),
                ("DELETE", r"/api/repos/delete", self.delete),
                ("POST", repo + r"/preupload/(?P<revision>[^/]+)", self.preupload),
                ("POST", prefix + r"\.git/info/lfs/objects/batch", self.lfs_batch),
                ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", self.lfs_upload),
                ("POST", repo + r"/commit/(?P<revision>[^/]+)", self.commit),
                ("POST", repo + r"/branch/(?P<branch>[^/]+)", self.create_branch),
                ("POST", repo + r"/tag/(?P<revision>[^/]+)", self.create_tag),
                ("GET", repo + r"/refs", self.list_refs),
                ("GET", repo + r"/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", self.tree),
                ("POST", repo + r"/paths-info/(?P<revision>[^/]+)", self.paths_info),
                ("GET", repo + r"(?:/revision/(?P<revision>[^/]+))?", self.info),
                ("GET", prefix + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.download),
            )
        ]

    def __enter__(self) -> LoopbackHub:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def client_environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Environment variables of a process that shall know no other Hub, cache or token than these."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        mine = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        return kept | mine | ({"HF_TOKEN": token} if token else {})

    def model(self, name: str) -> Repository:
        return self.repositories["models", name]

    def dataset(self, name: str) -> Repository:
        return self.repositories["datasets", name]

    # The way of a request

    def next_fault(self, method: str, target: str) -> Fault | None:
        """The fault that this request meets, if any; it has one time less to come."""
        request = f"{method} {unquote(urlsplit(target).path)}"
        with self._lock:
            fault = next((f for f in self.faults if f.times > 0 and re.search(f.request, request)), None)
            if fault is not None:
                fault.times -= 1
        return fault

    def answer(
        self, method: str, target: str, headers: Mapping[str, str], read_body: Callable[[bool], bytes]
    ) -> Response | None:
        """Answer one request as its fault wants; None where the connection breaks. `read_body(True)` stops half-way."""
        fault = self.next_fault(method, target)
        body = read_body(fault is not None and fault.breaks == "request")
        if fault is not None and fault.meanwhile is not None:
            fault.meanwhile()
        if fault is not None and fault.status is not None:
            response = Response(b"<html>Something went wrong.</html>", fault.status, fault.headers)
        elif fault is None or fault.breaks != "request":
            response = self.handle(method, target, headers, body)
        broken = fault is not None and fault.breaks is not None
        self.requests.append((method, unquote(urlsplit(target).path), 0 if broken else response.status))
        return None if broken else response

    def handle(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Answer one request."""
        url = urlsplit(target)
        lookup = "GET" if method == "HEAD" else method
        try:
            request = Request(method, url.path, parse_qs(url.query), headers, body, self._user(headers))
            for verb, pattern, answer in self._routes:
                if verb == lookup and (match := pattern.fullmatch(url.path)):
                    groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    with self._lock:
                        response = answer(request, **groups)
                    break
            else:
                raise HubError(404, "Sorry, we can't find the page you are looking for.")
        except HubError as error:
            response = error.response
        return response

    def _user(self, headers: Mapping[str, str]) -> str | None:
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.tokens[token] if token else None

    def _repository(self, request: Request, kind: str, name: str, *, write: bool = False) -> Repository:
        repository = self.repositories.get((kind, name))
        owner = request.user == name.split("/")[0]
        if repository is None or (repository.private and not owner):
            raise HubError(404 if request.user else 401, "Repository not found", "RepoNotFound")
        if write and not owner:
            raise HubError(403 if request.user else 401, "You don't have the rights to write to this repository")
        return repository

    def _tree(self, repository: Repository, revision: str) -> tuple[str, Commit]:
        sha = repository.resolve(revision)
        if sha is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repository.commits[sha]

    def _url(self, repository: Repository) -> str:
        return f"{self.endpoint}/{'datasets/' if repository.kind == 'datasets' else ''}{repository.name}"

    # Accounts and repositories

    def whoami(self, request: Request) -> Response:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        access = {"displayName": "tests", "role": "write"}
        return Response({"type": "user", "name": request.user, "orgs": [], "auth": {"accessToken": access}})

    def create(self, request: Request) -> Response:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        wanted = request.json()
        owner, kind = wanted.get("organization") or request.user, wanted.get("type", "model") + "s"
        if owner != request.user:
            raise HubError(403, f"You don't have the rights to create a {wanted.get('type')} under {owner!r}")
        name, private = f"{owner}/{wanted['name']}", wanted.get("visibility") == "private"
        existed = (kind, name) in self.repositories
        if not existed:
            self.repositories[kind, name] = Repository(kind, name, private)
            self.repositories[kind, name].add("main", {".gitattributes": Blob(b"", lfs=False)}, "initial commit")
        return Response({"url": self._url(self.repositories[kind, name]), "name": name}, 409 if existed else 200)

    def delete(self, request: Request) -> Response:
        wanted = request.json()
        kind, name = wanted.get("type", "model") + "s", f"{wanted.get('organization') or request.user}/{wanted['name']}"
        self._repository(request, kind, name, write=True)
        del self.repositories[kind, name]
        return Response()

    def info(self, request: Request, kind: str, name: str, revision: str = "main") -> Response:
        repository = self._repository(request, kind, name)
        sha, commit = self._tree(repository, revision)
        files = [{"rfilename": path} for path in sorted(commit.files)]
        facts = {"id": name, "sha": sha, "private": repository.private, "lastModified": DATE, "siblings": files}
        return Response(facts | {"tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False})

    def list_refs(self, request: Request, kind: str, name: str) -> Response:
        repository = self._repository(request, kind, name)
        listing: dict[str, list[dict[str, str]]] = {"converts": [], "pullRequests": []}
        branches = {n: sha for n, sha in repository.branches.items() if not n.startswith("refs/pr/")}
        for key, folder, refs in (("branches", "heads", branches), ("tags", "tags", repository.tags)):
            listing[key] = [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": sha} for n, sha in refs.items()]
        return Response(listing)

    def create_branch(self, request: Request, kind: str, name: str, branch: str) -> Response:
        repository = self._repository(request, kind, name, write=True)
        sha, _ = self._tree(repository, request.json().get("startingPoint", "main"))
        if branch in repository.branches:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        repository.branches[branch] = sha
        return Response()

    def create_tag(self, request: Request, kind: str, name: str, revision: str) -> Response:
        repository = self._repository(request, kind, name, write=True)
        repository.tags[request.json()["tag"]], _ = self._tree(repository, revision)
        return Response()

    # Uploads

    def validate_card(self, request: Request) -> Response:
        """The Hub's main demands on a card: a YAML mapping whose model-index names task, data set and metrics."""
        content = request.json()["content"].replace("\r\n", "\n")
        block = re.match(r"---\n(.*?)\n---(\n|$)", content, re.DOTALL)
        errors: list[str] = []
        try:
            metadata = yaml.safe_load(block[1]) if block else {}
            for key in ("tags", "datasets"):
                if not all(isinstance(item, str) for item in metadata.get(key, [])):
                    errors.append(f'"{key}" must be a list of strings')
            for result in (result for model in metadata.get("model-index", []) for result in model["results"]):
                named = (result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"])
                metrics = [(metric["type"], metric["value"]) for metric in result["metrics"]]
                if not all(named) or not metrics:
                    errors.append('"model-index" has an empty result')
        except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
            errors.append(f"metadata cannot be read: {error!r}")
        return Response({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, request: Request, kind: str, name: str, revision: str) -> Response:
        """Tell regular files from large ones, and which are there already."""
        _, commit = self._tree(self._repository(request, kind, name, write=not request.opens_pull_request), revision)
        answers = []
        for wanted in request.json()["files"]:
            path = wanted["path"]
            answer = {"path": path, "uploadMode": "lfs" if path.endswith(LFS_SUFFIXES) else "regular"}
            if (blob := commit.files.get(path)) is not None:
                answer["oid"] = blob.sha256 if blob.lfs else blob.git_oid
            answers.append(answer | {"shouldIgnore": False})
        return Response({"files": answers})

    def lfs_batch(self, request: Request, name: str, kind: str = "models") -> Response:
        self._repository(request, kind, name)  # whoever may read may propose
        objects = request.json()["objects"]
        for item in objects:
            if item["oid"] not in self.lfs_objects:
                item["actions"] = {"upload": {"href": f"{self.endpoint}/lfs/{item['oid']}"}}
        return Response({"transfer": "basic", "objects": objects})

    def lfs_upload(self, request: Request, oid: str) -> Response:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise HubError(400, f"The content of the upload is not {oid}")
        self.lfs_objects[oid] = request.body
        return Response()

    def commit(self, request: Request, kind: str, name: str, revision: str) -> Response:
        repository = self._repository(request, kind, name, write=not request.opens_pull_request)
        if revision not in repository.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head = repository.branches[revision]
        files, message = dict(repository.commits[head].files), ""
        for line in request.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", head) != head:
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in self.lfs_objects:
                    raise HubError(400, f"LFS object {value['oid']} was never uploaded")
                files[value["path"]] = Blob(self.lfs_objects[value["oid"]], lfs=True)
            elif key == "deletedFile":
                del files[value["path"]]
            elif key == "deletedFolder":
                files = {path: blob for path, blob in files.items() if not path.startswith(value["path"])}
            else:
                raise HubError(400, f"Unknown commit entry {key!r}")
        answer = {}
        if request.opens_pull_request:
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
            revision, answer["pullRequestUrl"] = f"refs/pr/{number}", f"{self._url(repository)}/discussions/{number}"
            repository.branches[revision] = head
        sha = repository.add(revision, files, message)
        return Response(answer | {"commitUrl": f"{self._url(repository)}/commit/{sha}", "commitOid": sha})

    # Downloads

    def tree(self, request: Request, kind: str, name: str, revision: str, folder: str = "") -> Response:
        _, commit = self._tree(self._repository(request, kind, name), revision)
        start = f"{folder.rstrip('/')}/" if folder else ""
        inside = {path: blob for path, blob in commit.files.items() if path.startswith(start)}
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        slashes = [(path, slash.start()) for path in inside for slash in re.finditer("/", path)]
        folders = {path[:at] for path, at in slashes if at >= len(start)}
        entries = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        entries += [blob.describe(path) for path, blob in sorted(inside.items())]
        if request.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            entries = [entry for entry in entries if "/" not in str(entry["path"])[len(start) :]]
        return Response(entries)

    def paths_info(self, request: Request, kind: str, name: str, revision: str) -> Response:
        _, commit = self._tree(self._repository(request, kind, name), revision)
        is_json = "json" in request.headers.get("Content-Type", "")
        paths = request.json()["paths"] if is_json else parse_qs(request.body.decode()).get("paths", [])
        entries = [commit.files[path].describe(path) for path in paths if path in commit.files]
        for path in paths:
            if path not in commit.files and any(other.startswith(f"{path}/") for other in commit.files):
                entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        return Response(entries)

    def download(self, request: Request, name: str, revision: str, path: str, kind: str = "models") -> Response:
        sha, commit = self._tree(self._repository(request, kind, name), revision)
        if (blob := commit.files.get(path)) is None:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound")
        etag = blob.sha256 if blob.lfs else blob.git_oid
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(blob.content))}
        if not (wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))):
            return Response(blob.content, 200, headers)
        size = len(blob.content)
        first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
        if first > last:
            raise HubError(416, f"Range {wanted[0]} is outside of a file of {size} bytes")
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return Response(blob.content[first : last + 1], 206, headers)

    # HTTP

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # each answer is two writes, and the second would wait for 40 ms

            def _answer(self) -> None:
                headers = {key.title(): value for key, value in self.headers.items()}
                response = hub.answer(self.command, self.path, headers, self._read_body)
                if response is None:
                    self.close_connection = True
                    return
                body = response.body if isinstance(response.body, bytes) else json.dumps(response.body).encode()
                self.send_response(response.status)
                if not isinstance(response.body, bytes):
                    self.send_header("Content-Type", "application/json")
                for key, value in response.headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

            def _read_body(self, half: bool) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)) // (2 if half else 1))
                chunks = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    if half:
                        return self.rfile.read(size // 2)
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(chunks)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: `LoopbackHub.requests` is the log."""

        return Handler
