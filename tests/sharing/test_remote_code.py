"""Three ways to load a checkpoint, and the same actions in each: with the package, with transformers' `Auto` classes
beside it, and with the code that travels with the weights where there is neither the package nor numba.

Every way is a process of its own, with the real clients, against a Hub on the loopback interface.
Source: transformers' `dynamic_module_utils`, which loads remote code.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import LoopbackHub
from huggingface_hub import HfApi
from packaging.requirements import Requirement
from processes import run_python
from transformers import DecisionTransformerConfig, DecisionTransformerModel, PreTrainedModel

from hf_decision_mamba import (
    DecisionMambaConfig,
    DecisionMambaModel,
    DecisionMambaPolicy,
    DecisionMambaProcessor,
    DecisionMLPConfig,
    DecisionMLPModel,
)
from hf_decision_mamba.sharing.model_card import push_to_hub, render_model_card
from hf_decision_mamba.sharing.remote_code import CODE_FILES, write_model_code

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # the Hub client's own, in an upload

TOKEN = "hf_alice"
STEPS = 25  # more than the context
PARTS = [{"path": ["arm", 0], "shape": [2], "size": 2}, {"path": ["arm", 1], "shape": [], "size": 1}]


def make_checkpoint(folder: Path, preset: str = "dema-b3ld", seed: int = 0, **options: Any) -> Path:
    torch.manual_seed(seed)
    config = DecisionMambaConfig.from_preset(
        preset, state_dim=3, act_dim=2, hidden_size=32, n_layer=1, state_size=4, head_dim=8, max_ep_len=100
    )
    image = config.state_type == "image"
    DecisionMambaModel(config).save_pretrained(folder, **options)
    DecisionMambaProcessor(
        state_mean=None if image else [0.5, -0.25, 1.0],
        state_std=None if image else [1.0, 2.0, 4.0],
        target_return=-150.0,
        context_length=20,
        observation_parts=None if image else PARTS,
    ).save_pretrained(folder)
    return folder


def use_hub(monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub) -> None:
    """Let the clients in this process know this Hub alone."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


def observations(config: Any) -> list[np.ndarray]:
    """What the probes see, step by step: a function of the step, so that every process can make it."""
    if config.state_type == "image":
        return [np.full((84, 84), 10 * step, np.uint8) for step in range(STEPS)]
    return [np.cos(np.arange(3) + step).astype(np.float32) for step in range(STEPS)]


def policy_actions(folder: Path) -> list[Any]:
    """The actions of the package, in this process."""
    policy = DecisionMambaPolicy.from_pretrained(folder)
    policy.reset()
    seen = enumerate(observations(policy.model.config))
    return [policy.act(observation, -1.0 if step else None).tolist() for step, observation in seen]


def snippet_of(card: str) -> str:
    """What a card tells those to do who have not the package."""
    code = re.search(r"### Without the package.*?```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    return code[1]


# What is written into the folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "pendulum-dema")


def test_code_is_complete_and_imports_nothing_but_what_transformers_needs(checkpoint: Path) -> None:
    written = write_model_code(checkpoint)
    assert sorted(written) == sorted(checkpoint.glob("*.py")) == sorted(checkpoint / name for name in CODE_FILES)
    allowed = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors", *sys.stdlib_module_names}
    for path in written:
        tree = ast.parse(path.read_text())
        optional = {node for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in CODE_FILES, f"{path.name}, line {node.lineno}"
            elif isinstance(node, (ast.Import, ast.ImportFrom)) and node not in optional:
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {str(name).split(".")[0] for name in modules} <= allowed, f"{path.name}, line {node.lineno}"


def test_json_files_gain_the_names_of_the_classes_and_nothing_else(checkpoint: Path) -> None:
    names = ("config.json", "preprocessor_config.json")
    before = {name: json.loads((checkpoint / name).read_text()) for name in names}
    write_model_code(checkpoint)
    after = {name: (checkpoint / name).read_text() for name in names}
    write_model_code(checkpoint)
    assert {name: (checkpoint / name).read_text() for name in names} == after
    for name in names:
        auto_map = json.loads(after[name]).pop("auto_map")
        assert json.loads(after[name]) == before[name] | {"auto_map": auto_map}
        for reference in auto_map.values():
            module, cls = reference.split(".")
            assert f"class {cls}(" in (checkpoint / f"{module}.py").read_text()
    # As transformers writes them, so that saving again changes nothing.
    DecisionMambaModel.from_pretrained(checkpoint).config.save_pretrained(checkpoint)
    DecisionMambaProcessor.from_pretrained(checkpoint).save_pretrained(checkpoint)
    assert {name: (checkpoint / name).read_text() for name in names} == after


@pytest.mark.parametrize(
    "model",
    [
        DecisionMLPModel(DecisionMLPConfig(state_dim=3, act_dim=2)),
        DecisionTransformerModel(DecisionTransformerConfig(state_dim=3, act_dim=2, hidden_size=8, n_layer=1, n_head=1)),
    ],
    ids=["decision_mlp", "decision_transformer"],
)
def test_other_architectures_get_no_code(tmp_path: Path, model: PreTrainedModel) -> None:
    model.save_pretrained(tmp_path)
    assert write_model_code(tmp_path) == []
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    assert "### Without the package" not in render_model_card(tmp_path).text


def test_push_replaces_old_code_and_leaves_other_files_alone(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    with LoopbackHub({TOKEN: "alice"}) as hub:
        use_hub(monkeypatch, hub)
        api = HfApi(token=TOKEN)
        api.create_repo("alice/pendulum")
        for name in ("modeling_decision_mamba.py", "notes.py"):
            api.upload_file(path_or_fileobj=b"old = True\n", path_in_repo=name, repo_id="alice/pendulum")
        push_to_hub(checkpoint, "alice/pendulum", token=TOKEN)
        files = hub.model("alice/pendulum").files()
    assert files["notes.py"] == b"old = True\n"
    for name in (*CODE_FILES, "config.json", "preprocessor_config.json"):
        assert files[name] == (checkpoint / name).read_bytes()


@pytest.mark.parametrize("preset", ["dema-b3ld", "dema-post", "dmm", "decision-mamba", "dema-atari", "dema-atari-post"])
def test_snippet_of_the_card_acts_as_the_policy_does(tmp_path: Path, preset: str) -> None:
    folder = make_checkpoint(tmp_path / preset, preset)
    names: dict[str, Any] = {}
    exec(snippet_of(render_model_card(folder).text), names)
    seen = enumerate(observations(names["model"].config))
    actions = [names["act"](observation, -1.0 if step else 0.0) for step, observation in seen]
    np.testing.assert_allclose(actions, policy_actions(folder), atol=1e-6)


# A machine without the package


def distributions(names: Sequence[str]) -> Iterator[Distribution]:
    """The installed distributions of these names and all that they require, without extras."""
    left, known = list(names), set()
    while left:
        found = distribution(left.pop())
        if found.metadata["Name"].lower() not in known:
            known.add(found.metadata["Name"].lower())
            yield found
            required = [Requirement(line) for line in found.requires or []]
            left += [need.name for need in required if need.marker is None or need.marker.evaluate({"extra": ""})]


def make_environment(folder: Path, names: Sequence[str]) -> Path:
    """A virtual environment that holds these distributions of the running one, linked; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for found in distributions(names):
        for top in {path.parts[0] for path in found.files or []} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(str(found.locate_file(top)))
    return folder / "bin" / "python"


# What every process can do.
PROBE = """
import importlib.util, json, sys
import numpy as np, torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor

def load(checkpoint, options):
    config = AutoConfig.from_pretrained(checkpoint, **options)
    model = AutoModel.from_pretrained(checkpoint, **options).eval()
    processor = AutoProcessor.from_pretrained(checkpoint, **options)
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint, **options)
    assert config.to_dict() == model.config.to_dict() and type(extractor) is type(processor)
    return model, processor

def predict(model, processor):
    states = np.cos(np.arange(3) + np.arange(20)[:, None])[None]
    previous = np.sin(np.arange(40.0)).reshape(1, 20, 2)
    inputs = processor(states, np.full((1, 20, 1), -150.0), previous_actions=previous, return_tensors="pt")
    return model(**inputs).action_preds[0]

def actions(checkpoint, options):
    return predict(*load(checkpoint, options)).tolist()

def refusal(function, *arguments):
    try:
        return function(*arguments)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"

def kernels_of(model):
    return sys.modules[type(model).__module__.rpartition(".")[0] + ".selective_scan_kernels"]

def from_disk(kernels):
    hits, misses = kernels.forward.stats.cache_hits, kernels.forward.stats.cache_misses
    return [sum(hits.values()), sum(misses.values())]

def report(found):
    print("\\n" + json.dumps(found))  # a question of transformers may stand on the last line
"""


class Machine:
    """A home folder of the clients, in which fresh processes run that know one Hub.

    Attributes:
        folders: what was pushed, by the name of the case.
        cases: where it is now, (checkpoint, options of `from_pretrained`).
    """

    def __init__(self, hub: LoopbackHub, home: Path) -> None:
        self.hub, self.home = hub, home
        self.folders: dict[str, Path] = {}
        self.cases: dict[str, tuple[str, dict[str, str]]] = {}

    def add(self, case: str, folder: Path, checkpoint: str, **options: str) -> None:
        self.folders[case], self.cases[case] = folder, (checkpoint, options)

    def run(self, script: str, python: Path | None = None, **env: str) -> Any:
        """What a script reports, and the messages beside it; it knows `cases` and what the probe defines."""
        environment = {**self.hub.client_environment(self.home), "NUMBA_OPT": "1"} | env  # compiles in less time
        program, cases = f"{PROBE}\ncases = json.loads(sys.argv[1])\n{script}", json.dumps(self.cases)
        if python is None:
            done = run_python(program, cases, environment=environment)
        else:
            environment.pop("PYTHONPATH", None)
            command = [str(python), "-c", program, cases]
            pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
            done = subprocess.run(command, env=environment, timeout=300, check=False, **pipes)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]) | {"messages": done.stderr}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine and a Hub: two revisions of one checkpoint, a private one, and one whose weights are in parts."""
    root = tmp_path_factory.mktemp("published")
    first, second = make_checkpoint(root / "first"), make_checkpoint(root / "second", seed=1)
    sharded = make_checkpoint(root / "sharded", seed=2, max_shard_size="20KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    with LoopbackHub({TOKEN: "alice"}) as hub, pytest.MonkeyPatch.context() as patch:
        use_hub(patch, hub)
        push_to_hub(first, "alice/pendulum", token=TOKEN)
        push_to_hub(second, "alice/pendulum", revision="longer", token=TOKEN)
        push_to_hub(second, "alice/secret", private=True, token=TOKEN)
        push_to_hub(second, "alice/closed", private=True, token=TOKEN)  # which nobody here may read
        push_to_hub(sharded, "alice/sharded", token=TOKEN)
        machine = Machine(hub, root / "home")
        machine.add("repository", first, "alice/pendulum")
        machine.add("commit", first, "alice/pendulum", revision=hub.model("alice/pendulum").branches["main"])
        machine.add("branch", second, "alice/pendulum", revision="longer")
        machine.add("private", second, "alice/secret", token=TOKEN)
        machine.add("sharded", sharded, "alice/sharded")
        machine.add("folder", sharded, str(sharded))
        yield machine


@pytest.fixture(scope="module")
def expected(machine: Machine) -> dict[str, Any]:
    """The actions that the model of each case predicts in this process."""
    names: dict[str, Any] = {}
    exec(PROBE, names)
    return {case: names["actions"](folder, {}) for case, folder in machine.folders.items()}


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for case, actions in expected.items():
        np.testing.assert_allclose(found[case], actions, atol=1e-6, err_msg=case)


@pytest.fixture(scope="module")
def with_package(machine: Machine) -> Any:
    """What a process with the package finds, through its own classes and through transformers' `Auto` classes."""
    return machine.run("""
from hf_decision_mamba import DecisionMambaModel, DecisionMambaPolicy, DecisionMambaProcessor

def policy_action(checkpoint, options):
    policy = DecisionMambaPolicy.from_pretrained(checkpoint, **options)
    policy.reset()
    return policy.act(np.cos(np.arange(3))).tolist()

classes = [(type(model), type(processor)) for model, processor in (load(*case) for case in cases.values())]
assert set(classes) == {(DecisionMambaModel, DecisionMambaProcessor)}
report({
    "actions": {case: actions(*arguments) for case, arguments in cases.items()},
    "policy": {case: policy_action(*arguments) for case, arguments in cases.items()},
    "refused": [refusal(load, "alice/closed", {}), refusal(policy_action, "alice/closed", {})],
    "trusted": type(load("alice/pendulum", {"trust_remote_code": True})[0]).__module__,
})
""")


@pytest.fixture(scope="module")
def without_package(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a process without package and numba finds; the actions of the first checkpoint also as its card says."""
    folder = tmp_path_factory.mktemp("bare")
    python = make_environment(folder / "environment", ["torch", "transformers", "numpy"])
    card = snippet_of(machine.hub.model("alice/pendulum").files()["README.md"].decode())
    return machine.run(
        f"""
missing = [name for name in ("hf_decision_mamba", "numba") if importlib.util.find_spec(name) is None]
trusted = {{case: (name, options | {{"trust_remote_code": True}}) for case, (name, options) in cases.items()}}
refused = {{
    "private": refusal(load, "alice/closed", {{"trust_remote_code": True}}),
    "untrusted": refusal(load, "alice/pendulum", {{}}),
}}
found = {{case: actions(*arguments) for case, arguments in trusted.items()}}

model, processor = load(*trusted["branch"])
for part in (model, processor):
    part.save_pretrained({str(folder / "again")!r})

card = {{}}
exec({card!r}, card)
seen = [np.cos(np.arange(3) + step).astype(np.float32) for step in range({STEPS})]
report({{
    "missing": missing,
    "actions": found,
    "refused": refused,
    "again": actions({str(folder / "again")!r}, {{"trust_remote_code": True}}),
    "card": [card["act"](observation, -1.0 if step else 0.0).tolist() for step, observation in enumerate(seen)],
    "parts": processor.flatten_observations({{"arm": ([1, 2], 3)}}).tolist(),
    "wrong": refusal(processor.flatten_observations, {{"leg": ([1, 2], 3)}}),
    "module": type(model).__module__,
}})
""",
        python,
    )


@pytest.fixture(scope="module")
def offline(machine: Machine, with_package: Any, without_package: Any) -> Any:
    """What was loaded once loads again without a Hub: first the code beside the weights, with numba, then the package.

    All these copies of the code stay in one process, which must not mix them up.
    """
    return machine.run(
        """
trusted = {case: (name, options | {"trust_remote_code": True}) for case, (name, options) in cases.items()}
copies = {case: load(*arguments) for case, arguments in trusted.items()}
for case, (model, _) in copies.items():  # compiling the kernels takes seconds, and every copy has its own
    model.config.scan_backend = "numba" if case == "repository" else "reference"

def gradients():
    found = {}
    for case in ("branch", "private", "sharded"):
        model, processor = copies[case]
        model.zero_grad()
        predict(model, processor).square().sum().backward()
        found[case] = [parameter.grad.norm().item() for parameter in model.parameters()]
    return found

code = {case: predict(*copy).tolist() for case, copy in copies.items()}
before = gradients()
assert "hf_decision_mamba" not in sys.modules

from hf_decision_mamba import DecisionMambaModel, DecisionMambaPolicy
model, processor = copies["branch"]
compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
kernels = kernels_of(copies["repository"][0])
report({
    "code": code,
    "package": {case: actions(*arguments) for case, arguments in cases.items()},
    "package_is_used": type(load(*trusted["branch"])[0]) is DecisionMambaModel,
    "policy": {case: DecisionMambaPolicy.from_pretrained(name, **options).processor.target_return
               for case, (name, options) in cases.items()},
    "gradients_unchanged": before == gradients(),
    "compiled": predict(compiled, processor).tolist(),
    "modules": {case: type(model).__module__ for case, (model, _) in copies.items()},
    "folder": str(kernels.__file__),
    "from_disk": from_disk(kernels),
})
""",
        HF_HUB_OFFLINE="1",
        HF_ENDPOINT="http://127.0.0.1:9",
    )


def test_with_the_package_every_checkpoint_loads(machine: Machine, with_package: Any, expected: dict[str, Any]) -> None:
    assert_same(with_package["actions"], expected)
    assert_same(with_package["policy"], {case: policy_actions(folder)[0] for case, folder in machine.folders.items()})


def test_the_package_is_preferred_to_code_beside_the_weights(with_package: Any) -> None:
    assert with_package["trusted"] == "hf_decision_mamba.model.modeling_decision_mamba"


def test_without_package_and_numba_the_actions_are_the_same(without_package: Any, expected: dict[str, Any]) -> None:
    assert without_package["missing"] == ["hf_decision_mamba", "numba"]
    assert without_package["module"].startswith("transformers_modules.alice.pendulum.")
    assert_same(without_package["actions"], expected)


def test_card_says_how_to_act_without_the_package(machine: Machine, without_package: Any) -> None:
    np.testing.assert_allclose(without_package["card"], policy_actions(machine.folders["repository"]), atol=1e-6)
    assert without_package["parts"] == [1, 2, 3]
    assert "observation has no 'arm' and an additional 'leg'" in without_package["wrong"]


def test_what_was_loaded_as_remote_code_saves_and_loads_again(without_package: Any) -> None:
    np.testing.assert_array_equal(without_package["again"], without_package["actions"]["branch"])


def test_missing_numba_is_mentioned(without_package: Any) -> None:
    message = "The selective scan runs on its plain torch reference, which is slow: numba is not installed"
    assert message in without_package["messages"]


def test_private_checkpoint_without_token_is_refused(with_package: Any, without_package: Any) -> None:
    for error in (*with_package["refused"], without_package["refused"]["private"]):
        assert error.startswith("OSError: ")
        assert "alice/closed is not a local folder" in error
        assert "If this is a private repository, make sure to pass a token" in error


def test_code_runs_only_where_it_is_trusted(without_package: Any) -> None:
    error = without_package["refused"]["untrusted"]
    assert error.startswith("ValueError: The repository alice/pendulum contains custom code")
    assert "trust_remote_code=True" in error


def test_what_was_loaded_once_loads_without_a_hub(offline: Any, expected: dict[str, Any]) -> None:
    assert_same(offline["code"], expected)
    assert_same(offline["package"], expected)
    assert set(offline["policy"].values()) == {-150.0}


def test_copies_of_the_code_do_not_disturb_each_other(offline: Any, expected: dict[str, Any]) -> None:
    assert len(set(offline["modules"].values())) == 5  # "repository" and "commit" are one
    assert offline["package_is_used"]
    assert offline["gradients_unchanged"]
    np.testing.assert_allclose(offline["compiled"], expected["branch"], atol=1e-6)


def test_kernels_beside_the_weights_are_compiled_once(machine: Machine, offline: Any) -> None:
    assert Path(offline["folder"]).is_relative_to(machine.home / "modules" / "transformers_modules")
    assert offline["from_disk"] == [0, 1]
    again = machine.run(
        """
model, processor = load("alice/pendulum", {"trust_remote_code": True})
report({"actions": predict(model, processor).tolist(), "from_disk": from_disk(kernels_of(model))})
""",
        HF_HUB_OFFLINE="1",
    )
    assert again["from_disk"] == [1, 0]
    assert again["actions"] == offline["code"]["repository"]
