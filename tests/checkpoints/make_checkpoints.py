"""Write a small checkpoint of every preset that has none here yet: `python tests/checkpoints/make_checkpoints.py`.

A folder that exists is never written again: it is what an earlier version saved, and every later one must load it and
act as recorded. A new preset, or a new format version, adds folders.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel, DecisionMambaPolicy, DecisionMambaProcessor
from hf_decision_mamba.model import PRESETS

FOLDER = Path(__file__).parent
STEPS, STATE_DIM, ACT_DIM = 6, 4, 2
SIZES = {"hidden_size": 8, "state_size": 4, "n_layer": 2, "head_dim": 4, "max_ep_len": 32}
IMAGES = {"num_channels": 2, "image_size": 36}


def make(preset: str, folder: Path) -> None:
    """Save model, processor, and what the policy does in an episode of random observations."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    has_images = PRESETS[preset].get("state_type") == "image"
    overrides = {**SIZES, **(IMAGES if has_images else {})}
    if "embedding_size" in PRESETS[preset]:
        overrides["embedding_size"] = 6
    config = DecisionMambaConfig.from_preset(preset, state_dim=STATE_DIM, act_dim=ACT_DIM, **overrides)
    model = DecisionMambaModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # no bias is zero, no norm is one: each of them counts
    (model.half() if has_images else model).save_pretrained(folder)  # half of the space for the large convolutions

    vectors = {
        "state_mean": rng.normal(size=STATE_DIM).tolist(),
        "state_std": rng.uniform(0.5, 2, STATE_DIM).tolist(),
        "action_low": [-1.0] * ACT_DIM,
        "action_high": [0.9] * ACT_DIM,
    }
    processor = DecisionMambaProcessor(
        return_scale=100.0, target_return=250.0, context_length=4, **({"frame_stack": 2} if has_images else vectors)
    )
    processor.save_pretrained(folder)

    if has_images:
        observations = rng.integers(0, 256, (STEPS, 36, 36), np.uint8)
    else:
        observations = rng.normal(size=(STEPS, STATE_DIM)).astype(np.float32)
    rewards = rng.normal(size=STEPS).astype(np.float32)
    recorded = {"observations": torch.from_numpy(observations), "rewards": torch.from_numpy(rewards)}
    for mode in ("window", "recurrent"):
        actions = play(DecisionMambaPolicy.from_pretrained(folder, mode, dtype=torch.float32), observations, rewards)
        recorded[f"actions_{mode}"] = torch.from_numpy(actions)
    model = DecisionMambaModel.from_pretrained(folder, dtype=torch.float32).eval()
    recorded["action_preds"] = predict(model, recorded["observations"]).contiguous()
    save_file(recorded, folder / "recorded.safetensors")


def play(policy: DecisionMambaPolicy, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """The actions (steps, ...) of one episode."""
    policy.reset()
    steps = zip(observations, [None, *rewards[:-1]], strict=True)
    return np.stack([policy.act(observation, reward) for observation, reward in steps])


@torch.no_grad()
def predict(model: DecisionMambaModel, observations: torch.Tensor) -> torch.Tensor:
    """The model's own output: actions (1, steps, act_dim), or logits, for these observations and no actions."""
    steps = len(observations)
    states, actions = observations[None], torch.zeros(1, steps, ACT_DIM)
    if model.config.state_type == "image":
        states = states[:, :, None].expand(-1, -1, IMAGES["num_channels"], -1, -1)
        actions = torch.zeros(1, steps, dtype=torch.long)
    returns = torch.linspace(2.5, 1.5, steps)[None, :, None]
    return model(
        states=states, actions=actions, returns_to_go=returns, timesteps=torch.arange(steps)[None]
    ).action_preds


if __name__ == "__main__":
    for name in PRESETS:
        if not (FOLDER / name).exists():
            make(name, FOLDER / name)
            print(FOLDER / name)
