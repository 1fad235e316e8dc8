"""Pushing: what networks do to it is waited for, or ends with one message and intact files; the same command finishes.

The real client talks to a Hub on the loopback interface that fails as it is told to (`Fault`); nobody really waits.
"""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_server import Blob, Fault, LoopbackHub

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel, DecisionMambaProcessor
from hf_decision_mamba.cli import main
from hf_decision_mamba.collecting.collect import collect
from hf_decision_mamba.collecting.settings import CollectSettings
from hf_decision_mamba.sharing.dataset_card import push_dataset_to_hub
from hf_decision_mamba.sharing.model_card import push_to_hub
from hf_decision_mamba.sharing.push import RETRY_WAITS, PushError
from hf_decision_mamba.sharing.remote_code import CODE_FILES, write_model_code

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own, to httpx2

NAME = "alice/pendulum"
FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", *CODE_FILES}


@pytest.fixture(scope="module")
def checkpoint_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "pendulum-dema"
    torch.manual_seed(0)
    config = DecisionMambaConfig(state_dim=3, act_dim=1, hidden_size=16, n_layer=1, state_size=4)
    DecisionMambaModel(config).save_pretrained(folder)
    DecisionMambaProcessor(state_mean=[0.0] * 3, state_std=[1.0] * 3, env_id="Pendulum-v1").save_pretrained(folder)
    write_model_code(folder)  # as an earlier push has left it
    for private in ("optimizer.pt", "training_args.bin", "checkpoint-5/model.safetensors"):
        (folder / private).parent.mkdir(exist_ok=True)
        (folder / private).write_bytes(b"stays here")
    return folder


@pytest.fixture
def checkpoint(checkpoint_of_all: Path) -> Path:
    (checkpoint_of_all / "README.md").unlink(missing_ok=True)
    return checkpoint_of_all


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited, by us and by the client."""
    seconds: list[float] = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, waits: list[float], tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub that this process is logged in to, as alice."""
    with LoopbackHub({"hf_alice": "alice", "hf_bob": "bob"}) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "hf_alice")
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sent(hub: LoopbackHub, revision: str = "main") -> set[str]:
    return set(hub.model(NAME).files(revision)) - {".gitattributes"}


# Faults that pass

REQUESTS = {
    "creating the repository": "POST /api/repos/create",
    "asking for the last commit": "GET /api/models/",
    "creating the branch": "POST .*/branch/longer",
    "checking the card": "POST /api/validate-yaml",
    "sorting files by size": "POST .*/preupload/",
    "announcing large files": "POST .*/lfs/objects/batch",
    "uploading a large file": "PUT /lfs/",
    "committing": "POST .*/commit/",
}
FAULTS: dict[str, dict] = {
    "429": {"status": 429, "headers": {"Retry-After": "7"}},
    "503": {"status": 503},
    "connection lost on the way": {"breaks": "request"},
    "answer lost": {"breaks": "answer"},
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_that_passes_is_waited_for(
    hub: LoopbackHub, checkpoint: Path, waits: list[float], request_: str, fault: dict
) -> None:
    hub.faults = [Fault(request_, times=2, **fault)]
    address = push_to_hub(checkpoint, NAME, revision="longer")
    assert address == f"{hub.endpoint}/{NAME}/tree/longer"
    assert sent(hub, "longer") == FILES
    assert hub.model(NAME).history("longer") == ["Upload checkpoint", "initial commit"]  # and not two of them
    assert 0 < sum(waits) < 30


@pytest.mark.parametrize("status", [408, 409, 412, 429, 500, 502, 503, 504])
def test_statuses_that_pass(hub: LoopbackHub, checkpoint: Path, waits: list[float], status: int) -> None:
    hub.faults = [Fault("POST .*/commit/", status=status, times=len(RETRY_WAITS))]
    push_to_hub(checkpoint, NAME)
    assert sent(hub) == FILES and waits == list(RETRY_WAITS)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 55.0),
        ({}, RETRY_WAITS[0]),
    ],
    ids=["Retry-After", "RateLimit", "nothing said"],
)
def test_the_hub_says_how_long_to_wait(
    hub: LoopbackHub, checkpoint: Path, waits: list[float], headers: dict[str, str], seconds: float
) -> None:
    hub.faults = [Fault("POST /api/repos/create", status=429, headers=headers)]
    push_to_hub(checkpoint, NAME)
    assert waits == [seconds]


def test_nobody_waits_for_an_hour(hub: LoopbackHub, checkpoint: Path, waits: list[float]) -> None:
    hub.faults = [Fault("POST /api/repos/create", status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(PushError, match=r"too many requests .*; wait 3600 seconds"):
        push_to_hub(checkpoint, NAME)
    assert waits == []


def test_somebody_elses_push_in_between_is_kept(hub: LoopbackHub, checkpoint: Path) -> None:
    push_to_hub(checkpoint, NAME)
    repository = hub.model(NAME)
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\nBetter words\n")

    def somebody_pushes() -> None:
        now = repository.commits[repository.branches["main"]].files
        repository.add("main", {**now, "notes.txt": Blob(b"theirs", lfs=False)}, "Add notes")

    hub.faults = [Fault("POST .*/commit/main", meanwhile=somebody_pushes)]
    push_to_hub(checkpoint, NAME, commit_message="Say it better")
    assert [status for method, path, status in hub.requests if "/commit/" in path] == [200, 412, 200]
    assert repository.history()[:2] == ["Say it better", "Add notes"]
    assert repository.files()["notes.txt"] == b"theirs" and b"Better words" in repository.files()["README.md"]


# Faults that last

UNREACHABLE = "http://127.0.0.1:9"
LASTING = {
    "too many requests": (Fault("POST .*/preupload/", status=429), "too many requests (429 Too Many Requests)"),
    "a Hub in trouble": (
        Fault("POST /api/repos/create", status=503),
        "the Hub is in trouble (503 Service Unavailable)",
    ),
    "a large file refused": (Fault("PUT /lfs/", status=500), "the Hub is in trouble (500 Internal Server Error)"),
    "a large file cut off": (Fault("PUT /lfs/", breaks="request"), "no connection to http://127.0.0.1"),
    "an error page for JSON": (Fault("POST /api/validate-yaml", status=502), "no connection to http://127.0.0.1"),
    "rejected commits": (Fault("POST .*/commit/", status=412), f"somebody else pushes to {NAME} too"),
    "branch in use": (
        Fault("POST .*/commit/", status=409),
        "was faster each time (409 Conflict). Look at their commits",
    ),
}


def failed_push(capsys: pytest.CaptureFixture[str], checkpoint: Path, *options: str) -> tuple[str, list[str]]:
    """Push by command line: the one-line message, and the command at its end."""
    before = contents(checkpoint)
    with pytest.raises(SystemExit) as stop:
        main(["push", str(checkpoint), NAME, *options])
    assert stop.value.code == 2
    after, error = contents(checkpoint), capsys.readouterr().err
    after.pop("README.md", None)  # the card may have been written before
    assert after == before
    message = error[error.index("error: ") :]  # after the client's progress bars
    assert message.count("\n") == 1 and "hf_" not in message
    assert message.startswith(f"error: Pushing {checkpoint} to {NAME} failed: ")
    assert f"The files in {checkpoint} are intact" in message
    return message, shlex.split(message.split("this repeats the push: ")[1])


@pytest.mark.parametrize(("fault", "words"), LASTING.values(), ids=LASTING)
def test_a_fault_that_lasts_ends_with_one_message_and_the_command_that_finishes(
    hub: LoopbackHub, checkpoint: Path, waits: list[float], capsys, fault: Fault, words: str
) -> None:
    hub.faults = [replace(fault, times=1000)]
    message, command = failed_push(capsys, checkpoint, "--private", "--commit-message", "It's better")
    assert words in message
    assert all(repository.history() == ["initial commit"] for repository in hub.repositories.values())
    assert sum(waits) < 30
    hub.faults = []
    assert command[0] == "hf-decision-mamba"
    main(command[1:])
    assert sent(hub) == FILES and hub.model(NAME).private
    assert hub.model(NAME).history() == ["It's better", "initial commit"]


WHO = {
    "no token": ("", "there is no token (401 Invalid username or password). Log in with `hf auth login`, or set HF"),
    "an expired token": ("hf_old", "the Hub does not know the token (401 Invalid credentials in Authorization header)"),
    "somebody else's": ("hf_bob", f"the token may not write to {NAME} (403 You don't have the rights"),
}


@pytest.mark.parametrize(("token", "words"), WHO.values(), ids=WHO)
def test_a_token_that_does_not_do_is_not_tried_twice(
    hub: LoopbackHub, checkpoint: Path, waits: list[float], monkeypatch, capsys, token: str, words: str
) -> None:
    with monkeypatch.context() as changed:
        changed.setenv("HF_TOKEN", token)
        message, command = failed_push(capsys, checkpoint)
    assert words in message and waits == [] and not hub.repositories
    main(command[1:])
    assert sent(hub) == FILES


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("ENDPOINT", UNREACHABLE, f"no connection to {UNREACHABLE}, or none that holds (ConnectError: "),
        ("HF_HUB_OFFLINE", True, "HF_HUB_OFFLINE is set, so nothing is sent; unset it to push."),
    ],
)
def test_without_a_network_nothing_is_lost(
    hub: LoopbackHub, checkpoint: Path, waits: list[float], monkeypatch, capsys, setting: str, value: object, words: str
) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(f"huggingface_hub.constants.{setting}", value)
        message, command = failed_push(capsys, checkpoint, "--revision", "it's")
    assert words in message
    assert waits == (list(RETRY_WAITS) if setting == "ENDPOINT" else [])
    main(command[1:])
    assert sent(hub, "it's") == FILES


def test_private_checkpoint_is_never_pushed_to_a_public_repository(hub: LoopbackHub, checkpoint: Path) -> None:
    push_to_hub(checkpoint, NAME)
    with pytest.raises(PushError, match=f"{NAME} exists and is public.* Make it private in its settings"):
        push_to_hub(checkpoint, NAME, private=True, commit_message="A secret")
    assert hub.model(NAME).history() == ["Upload checkpoint", "initial commit"]


def test_a_file_that_cannot_be_read_is_named(
    hub: LoopbackHub, checkpoint: Path, waits: list[float], monkeypatch
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("hf_decision_mamba.sharing.push.CommitOperationAdd", lambda name, path: refuse(path))
    with pytest.raises(PushError, match=r"failed: PermissionError: .* denied: '.*README\.md'\. The files in"):
        push_to_hub(checkpoint, NAME)
    assert waits == []


# What is sent, and where


def test_pushing_again_commits_only_what_changed(hub: LoopbackHub, checkpoint: Path) -> None:
    first, second = push_to_hub(checkpoint, NAME), push_to_hub(checkpoint, NAME)
    assert first == second == f"{hub.endpoint}/{NAME}"
    assert hub.model(NAME).history() == ["Upload checkpoint", "initial commit"]
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\nMy own words\n")
    push_to_hub(checkpoint, NAME)
    assert hub.model(NAME).history() == ["Upload checkpoint", "Upload checkpoint", "initial commit"]
    assert sum(method == "PUT" for method, path, status in hub.requests) == 1


def test_what_an_interrupted_evaluation_left_is_not_sent(hub: LoopbackHub, checkpoint: Path, tmp_path: Path) -> None:
    folder, results = shutil.copytree(checkpoint, tmp_path / "pendulum"), {"evaluation.parquet", "replay.mp4"}
    for name in (*results, "evaluation.json"):
        (folder / name).write_text("{}")
    push_to_hub(folder, NAME)
    assert sent(hub) == {*FILES, *results, "evaluation.json"}
    (folder / "evaluation.json").unlink()
    text = push_to_hub(folder, NAME, dry_run=True)
    assert f"as not part of {folder}: evaluation.json, evaluation.parquet, replay.mp4." in text
    push_to_hub(folder, NAME)
    assert sent(hub) == FILES and (folder / "replay.mp4").exists()


def test_a_pull_request_leaves_the_branch_alone(hub: LoopbackHub, checkpoint: Path, monkeypatch, capsys) -> None:
    push_to_hub(checkpoint, NAME)
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\nMy own words\n")
    monkeypatch.setenv("HF_TOKEN", "hf_bob")  # who may read, but not write
    main(["push", str(checkpoint), NAME, "--create-pr", "--commit-message", "Propose words"])
    assert capsys.readouterr().out == f"{hub.endpoint}/{NAME}/discussions/1\n"
    repository = hub.model(NAME)
    assert repository.history() == ["Upload checkpoint", "initial commit"]
    assert repository.history("refs/pr/1")[0] == "Propose words" and sent(hub, "refs/pr/1") == FILES
    with pytest.raises(ValueError, match="a pull request against main, so revision=longer has no meaning"):
        push_to_hub(checkpoint, NAME, create_pr=True, revision="longer")


def test_an_open_pull_request_takes_further_commits(hub: LoopbackHub, checkpoint: Path) -> None:
    push_to_hub(checkpoint, NAME, create_pr=True)
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\nMy own words\n")
    push_to_hub(checkpoint, NAME, revision="refs/pr/1")
    assert hub.model(NAME).history("refs/pr/1") == ["Upload checkpoint", "Upload checkpoint", "initial commit"]
    assert set(hub.model(NAME).branches) == {"main", "refs/pr/1"}


def test_a_pull_request_is_not_opened_twice(hub: LoopbackHub, checkpoint: Path, waits: list[float]) -> None:
    hub.faults = [Fault("POST .*/commit/", breaks="answer")]
    with pytest.raises(PushError, match=f"Look at the discussions of {NAME} first.*--create-pr$"):
        push_to_hub(checkpoint, NAME, create_pr=True)
    assert waits == [] and set(hub.model(NAME).branches) == {"main", "refs/pr/1"}
    hub.faults = [Fault("POST .*/commit/", status=429)]  # nothing was opened for sure
    assert push_to_hub(checkpoint, NAME, create_pr=True) == f"{hub.endpoint}/{NAME}/discussions/2"


def test_a_dry_run_says_what_would_happen_and_changes_nothing(hub: LoopbackHub, checkpoint: Path, capsys) -> None:
    push_to_hub(checkpoint, NAME)
    repository = hub.model(NAME)
    now = repository.commits[repository.branches["main"]].files
    old = Blob(b"{}", lfs=False)
    repository.add("main", {**now, "evaluation.json": old, "notes.txt": old}, "Add two files")
    before, count = contents(checkpoint), len(hub.requests)
    main(["push", str(checkpoint), NAME, "--dry-run", "--commit-message", "Train longer"])
    printed = capsys.readouterr().out
    assert f'would go to the model repository {NAME}, as one commit, "Train longer":' in printed
    listed = {name: int(size.replace(",", "")) for name, size in re.findall(r"^  (\S+) +([\d,]+) bytes", printed, re.M)}
    assert listed == {name: (checkpoint / name).stat().st_size for name in FILES}
    assert f"{len(FILES)} files, {sum(listed.values()):,} bytes" in printed
    assert f"as not part of {checkpoint}: evaluation.json.\n" in printed and "nothing was sent" in printed
    assert contents(checkpoint) == before
    assert {method for method, path, status in hub.requests[count:]} == {"GET"}
    main(["push", str(checkpoint), NAME])
    assert sent(hub) == {*FILES, "notes.txt"}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("alice/new", {"private": True}, "it would be created as a private repository"),
        (NAME, {"revision": "longer"}, "The branch longer would be created from main. Nothing would be deleted there."),
        (NAME, {"create_pr": True}, f'the model repository {NAME}, as a pull request, "Upload checkpoint"'),
        (NAME, {"private": True}, f"It would be refused: {NAME} exists and is public"),
        ("pendulum", {}, "is not known: it depends on whose token is used. Give owner/name."),
    ],
)
def test_a_dry_run_knows_where_the_files_would_go(
    hub: LoopbackHub, checkpoint: Path, name: str, options: dict, words: str
) -> None:
    push_to_hub(checkpoint, NAME)
    assert words in push_to_hub(checkpoint, name, dry_run=True, **options)
    assert len(hub.repositories) == 1 and set(hub.model(NAME).branches) == {"main"}


@pytest.mark.parametrize(("setting", "value"), [("ENDPOINT", UNREACHABLE), ("HF_HUB_OFFLINE", True)])
def test_a_dry_run_needs_neither_network_nor_token(
    hub: LoopbackHub, checkpoint: Path, waits: list[float], monkeypatch, setting: str, value: object
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(f"huggingface_hub.constants.{setting}", value)
    text = push_to_hub(checkpoint, NAME, dry_run=True)
    assert "What is there, and would be deleted, is not known: " in text and "model.safetensors" in text
    assert waits == [] and hub.requests == []


# Data sets go the same way


def test_a_data_set_meets_the_same_faults(hub: LoopbackHub, tmp_path: Path, waits: list[float], capsys) -> None:
    folder, _ = collect(
        CollectSettings("Pendulum-v1", episodes=1, max_episode_steps=5), tmp_path / "swings", progress=False
    )
    hub.faults = [Fault("PUT /lfs/", breaks="request", times=3), Fault("POST .*/commit/", status=503)]
    assert push_dataset_to_hub(folder, "alice/swings") == f"{hub.endpoint}/datasets/alice/swings"
    assert hub.dataset("alice/swings").history() == ["Upload data set", "initial commit"]
    hub.faults = [Fault("POST .*/commit/", status=503, times=1000)]
    facts = json.loads((folder / "collection.json").read_text())
    (folder / "collection.json").write_text(json.dumps(facts, indent=4))
    with pytest.raises(
        PushError, match=rf"this repeats the push: hf-decision-mamba push {folder} alice/swings$"
    ) as failed:
        push_dataset_to_hub(folder, "alice/swings")
    hub.faults = []
    main(shlex.split(str(failed.value).split("this repeats the push: ")[1])[1:])
    assert hub.dataset("alice/swings").history() == ["Upload data set", "Upload data set", "initial commit"]
    main(["push", str(folder), "alice/swings", "--dry-run"])
    assert "data/train-00000-of-00001.parquet" in capsys.readouterr().out
