"""One decision as a file: it decides as the policy's recurrent mode, without the policy."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from hf_decision_mamba import (
    DecisionMambaConfig,
    DecisionMambaModel,
    DecisionMambaPolicy,
    DecisionMambaProcessor,
    DecisionMLPConfig,
    DecisionMLPModel,
)
from hf_decision_mamba.acting import export
from hf_decision_mamba.acting.export import DecisionStep, decision_step, export_policy
from hf_decision_mamba.cli import main
from hf_decision_mamba.model import PRESETS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
S, A, SIDE, FRAMES = 4, 3, 36, 3  # the smallest frames that the encoder reads
TARGET, STEPS = 30.0, 12
STATES = {"state_mean": [0.5, -1, 0, 2], "state_std": [1, 2, 0.5, 1]}
ACTIONS = {
    "action_mid": [1, 0, 0],  # so that an action of zero is not zero for the model
    "action_scale": [2, 1, 1],
    "action_low": [0.9, -1, -0.3],  # narrow enough that clipping matters
    "action_high": [1.1, 1, 0.3],
}


GOALS = np.float32([[0, 1], [3, -2], [-1, 0.5]])  # of each row


def make_policy(preset: str = "dema-b3ld", **overrides) -> DecisionMambaPolicy:
    """A tiny policy whose actions depend on what came before far more than those of freshly drawn weights."""
    torch.manual_seed(0)
    image = "atari" in preset
    sizes = {"state_dim": S, "act_dim": A, "hidden_size": 16, "state_size": 4, "n_layer": 2 - image}
    images = {"image_size": SIDE, "num_channels": FRAMES, "act_dim": 18} if image else {}
    model = DecisionMambaModel(DecisionMambaConfig.from_preset(preset, **{**sizes, **images, **overrides})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter -= 2
            if name.startswith("embed_state.") or name.endswith(("x_proj.weight", "action.weight")):
                parameter *= 3
    settings = {"frame_stack": FRAMES} if image else STATES
    bounds = ACTIONS if model.config.action_type == "continuous" else {}
    if model.config.conditioning == "goal":
        bounds = {**bounds, "goal_mean": [1.0, -1.0], "goal_std": [2.0, 0.5]}
    processor = DecisionMambaProcessor(**settings, **bounds, target_return=TARGET, return_scale=10.0, env_id="Some-v0")
    return DecisionMambaPolicy(model, processor, "recurrent")


def episodes(policy: DecisionMambaPolicy, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations (steps, rows, ...) and the rewards (steps, rows) that they earn; frames are bright or dark."""
    generator, shape = np.random.default_rng(0), (STEPS, rows, *policy.observation_shape)
    rewards = generator.normal(size=(STEPS, rows))
    if policy.state_type == "vector":
        return generator.normal(size=shape).astype(np.float32), rewards
    bright = generator.integers(4, size=(STEPS, rows, 1, 1))
    return (generator.integers(64, size=shape) * bright).astype(np.uint8), rewards


def play(step: DecisionStep, run, observations, rewards, begins: int) -> np.ndarray:
    """The actions (steps, rows, ...) of a pure function; at time `begins` the first row begins a new episode."""
    inputs = {name: tensor.numpy() for name, tensor in step.inputs(observations.shape[1]).items()}
    to_go, actions = np.full(observations.shape[1], TARGET), []
    for t, observation in enumerate(observations):
        if t == begins:
            to_go[0] = TARGET
            for name in (state.name for state in step.states):
                inputs[name] = inputs[name].copy()
                inputs[name][0] = 0
        inputs |= {"observation": observation}
        if step.condition_input == "goals":
            inputs |= {"goal": GOALS[: observations.shape[1]]}
        elif step.condition_input is not None:
            inputs |= {"return_to_go": to_go[:, None].astype(np.float32)}
        outputs = dict(zip(step.outputs, run(inputs), strict=True))
        inputs |= {"previous_action": outputs["action"]}
        inputs |= {state.name: outputs[f"next_{state.name}"] for state in step.states}
        actions.append(outputs["action"])
        to_go -= rewards[t]
    return np.stack(actions)


def play_policy(policy: DecisionMambaPolicy, observations, rewards, begins: int) -> np.ndarray:
    """The actions that a policy takes in the same episodes."""
    goals = GOALS[: observations.shape[1]] if policy.condition_input == "goals" else None
    policy.reset(TARGET, observations.shape[1], goal=goals)
    actions = [policy.act(observations[0])]
    for t in range(1, STEPS):
        if t == begins:
            policy.reset_rows([0])
        actions.append(policy.act(observations[t], rewards[t - 1]))
    return np.stack(actions)


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        *((preset, {}) for preset in PRESETS),
        ("dema-b3ld", {"use_timestep_embedding": True}),
        ("dema-b3ld", {"action_type": "discrete"}),
        ("dmm", {"local_mixer_inside": True}),
        ("dema-b3ld", {"conditioning": "none"}),
        ("dema-b3ld", {"conditioning": "goal", "goal_dim": 2}),
    ],
)
def test_a_step_decides_as_the_recurrent_policy(preset, overrides):
    policy = make_policy(preset, **overrides)
    step = decision_step(policy.model, policy.processor)
    played = *episodes(policy, rows=3), 7
    with torch.inference_mode():
        found = play(step, lambda inputs: [x.numpy() for x in step(*map(torch.from_numpy, inputs.values()))], *played)
    expected = play_policy(policy, *played)
    assert found.dtype == expected.dtype and len(np.unique(found)) > 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_file_says_what_observations_are_made_of():
    policy = make_policy()
    parts = [{"path": ["arm"], "shape": [3], "size": 3}, {"path": ["on"], "shape": [], "size": 1}]
    processor = DecisionMambaProcessor(**STATES, observation_parts=parts)
    assert "observation_parts" not in export.metadata_of(DecisionStep(policy.model, policy.processor), policy.processor)
    facts = export.metadata_of(DecisionStep(policy.model, processor), processor)
    assert json.loads(facts["observation_parts"]) == parts and "action_start" not in facts


def test_an_onnx_file_plays_any_number_of_episodes_alone(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    policy = make_policy("dema-atari", use_timestep_embedding=True)
    policy.processor.action_start, policy.processor.env_kwargs = 3, {"mode": 1, "positions_only": True}
    policy.processor.fps = 50.0
    assert export_policy(policy, tmp_path / "step.onnx") < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["step.onnx"]  # the weights are inside

    session = onnxruntime.InferenceSession(tmp_path / "step.onnx")
    step = DecisionStep(policy.model, policy.processor)
    assert [value.name for value in session.get_outputs()] == step.outputs
    assert {value.shape[0] for value in session.get_inputs()} == {"batch"}
    for rows in (1, 3):
        played = *episodes(policy, rows), 7
        found = play(step, lambda inputs: session.run(None, inputs), *played)
        np.testing.assert_allclose(found, play_policy(policy, *played), rtol=0, atol=1e-5)

    facts = session.get_modelmeta().custom_metadata_map
    states = {state["name"]: (state["shape"], state["dtype"]) for state in json.loads(facts["states"])}
    assert list(states) == ["timestep", "ssm_states", "conv_states", "frames"] and states["timestep"] == ([], "int64")
    expected = {"format_version": "1", "env_id": "Some-v0", "target_return": "30.0", "return_scale": "10.0"}
    expected |= {"fps": "50.0", "action_start": "3", "env_kwargs": '{"mode": 1}', "views": '["positions_only"]'}
    assert expected.items() <= facts.items()
    inputs = {name: tensor.numpy() for name, tensor in step.inputs(1).items()}
    inputs["timestep"] = np.array([int(facts["max_ep_len"])])  # one more than the table of time steps has
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, inputs)


def test_the_deploy_section_of_the_readme_runs_as_printed(tmp_path, monkeypatch, capsys):
    """A program that knows nothing but the file earns what the policy does."""
    gymnasium = pytest.importorskip("gymnasium")
    torch.manual_seed(0)
    model = DecisionMambaModel(DecisionMambaConfig(state_dim=11, act_dim=3, hidden_size=8, n_layer=1, state_size=2))
    bounds = {"action_low": [-1.0] * 3, "action_high": [1.0] * 3}
    processor = DecisionMambaProcessor([0.0] * 11, [1.0] * 11, target_return=3600.0, env_id="Hopper-v5", **bounds)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "runs" / "dema-b3ld-hopper-medium-replay")
    monkeypatch.chdir(tmp_path)

    section = README[README.index("## Deploy") : README.index("## Share")]
    ((command,), (program,)) = (re.findall(rf"```{name}\n(.*?)```", section, re.DOTALL) for name in ("bash", "python"))
    main(command.split()[1:])
    assert "differs from torch by at most" in capsys.readouterr().out
    found: dict = {}
    exec(program, found)

    policy, env = DecisionMambaPolicy(model, processor, "recurrent"), gymnasium.make("Hopper-v5")
    observation, _ = env.reset(seed=0)
    earned, reward, done = 0.0, None, False
    while not done:
        observation, reward, terminated, truncated, _ = env.step(policy.act(observation, reward))
        earned, done = earned + reward, terminated or truncated
    assert 3600 - found["return_to_go"] == pytest.approx(earned, rel=1e-3)


@pytest.mark.parametrize(("preset", "conditioning"), [("gru", "return"), ("dema-bl3d", "none"), ("dema-b3ld", "goal")])
def test_an_onnx_file_of_another_model_decides_as_the_policy(tmp_path, preset, conditioning):
    onnxruntime = pytest.importorskip("onnxruntime")
    goal = {"goal_dim": 2} if conditioning == "goal" else {}
    policy, path = make_policy(preset, n_layer=1, conditioning=conditioning, **goal), tmp_path / "step.onnx"
    assert export_policy(policy, path) < 1e-5
    inputs = [tensor.name for tensor in onnxruntime.InferenceSession(path).get_inputs()]
    assert ("return_to_go" in inputs, "goal" in inputs) == (conditioning == "return", conditioning == "goal")
    facts = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert ("target_return" in facts) == (conditioning == "return")


@pytest.mark.filterwarnings("ignore:read_binary is deprecated:DeprecationWarning")  # executorch reads its schema so
def test_an_executorch_program_decides_as_the_policy(tmp_path):
    runtime = pytest.importorskip("executorch.runtime")
    policy = make_policy()
    assert export_policy(policy, tmp_path / "step.pte") < 1e-5
    program = runtime.Runtime.get().load_program(tmp_path / "step.pte")
    assert program.load_method("env_id").execute([]) == ["Some-v0"]
    method, played = program.load_method("forward"), (*episodes(policy, rows=1), 7)

    def run(inputs):
        return [output.numpy() for output in method.execute([torch.from_numpy(value) for value in inputs.values()])]

    found = play(DecisionStep(policy.model, policy.processor), run, *played)
    np.testing.assert_allclose(found, play_policy(policy, *played), rtol=0, atol=1e-5)


def test_a_file_that_differs_from_torch_is_not_written(tmp_path, monkeypatch):
    def wrong(step, metadata):
        return b"", lambda inputs: [output + 1 for output in step(*inputs.values())]

    monkeypatch.setattr(export, "write_onnx", wrong)
    with pytest.raises(RuntimeError, match=r"step\.onnx was not written: it differs from torch by 1\.0e\+00"):
        export_policy(make_policy(), tmp_path / "step.onnx")
    assert list(tmp_path.iterdir()) == []


def transformer() -> DecisionMambaPolicy:
    config = DecisionTransformerConfig(state_dim=S, act_dim=A, hidden_size=8, n_layer=1, n_head=1)
    return DecisionMambaPolicy(DecisionTransformerModel(config), DecisionMambaProcessor(**STATES))


def rvs() -> DecisionMambaPolicy:
    model = DecisionMLPModel(DecisionMLPConfig(state_dim=S, act_dim=A, hidden_size=8))
    return DecisionMambaPolicy(model, DecisionMambaProcessor(**STATES))


@pytest.mark.parametrize(
    ("policy", "file", "error", "message"),
    [
        (make_policy, "step.tflite", ValueError, "step.tflite has an unknown ending; it must be .onnx, or .pte"),
        (make_policy, "nowhere/step.onnx", FileNotFoundError, "nowhere/step.onnx does not exist"),
        (transformer, "step.onnx", ValueError, "DecisionTransformerModel carries no state between decisions"),
        (rvs, "step.onnx", ValueError, "DecisionMLPModel carries no state between decisions"),
        (make_policy, "step.onnx", ImportError, 'onnx and onnxscript; .*: pip install "hf_decision_mamba[export]"'),
        (make_policy, "step.pte", ImportError, 'executorch; .*: pip install "hf_decision_mamba[executorch]"'),
    ],
)
def test_what_cannot_be_exported_is_said(policy, file, error, message, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(error, match=pattern):
        export_policy(policy(), tmp_path / file)
