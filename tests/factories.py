"""What tests of several rooms are made of: data that come with them, small models that act, hostile texts."""

import random
import re
import shlex
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel, DecisionMambaPolicy, DecisionMambaProcessor
from hf_decision_mamba.model import PRESETS

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
SAMPLES = DATA / "samples"
#: The smallest frames that the encoder reads.
SMALL_FRAMES = {"num_channels": 2, "image_size": 36}
#: Settings of a model, and of a training, that take a second or two.
TINY_MODEL = {"hidden_size": 8, "embedding_size": 8, "n_layer": 1, "state_size": 4}
TINY_RUN = {
    **TINY_MODEL,
    "context_length": 4,
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "warmup_steps": 1,
    "use_cpu": True,
}
HOPPER, BREAKOUT = DATA / "hopper-tiny-v5.parquet", DATA / "breakout-tiny.parquet"


def make_model(preset: str = "dema-b3ld", **overrides) -> DecisionMambaModel:
    """A tiny model whose actions depend on what came before far more than those of freshly drawn weights."""
    torch.manual_seed(0)
    sizes = {"state_dim": 4, "act_dim": 2, "hidden_size": 16, "state_size": 4, "n_layer": 2}
    model = DecisionMambaModel(DecisionMambaConfig.from_preset(preset, **{**sizes, **overrides})).eval()
    with torch.no_grad():
        model.predict_action.weight *= 3
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter -= 2
            if name.endswith(("x_proj.weight", "embed_action.weight")):
                parameter *= 3
    return model


def drawn_model(preset: str = "dema-b3ld", dtype: torch.dtype = torch.float64, seed: int = 0, **overrides):
    """A small model no weight of which is zero or one."""
    torch.manual_seed(seed)
    image = SMALL_FRAMES if PRESETS[preset].get("state_type") == "image" else {}
    sizes = {"state_dim": 5, "act_dim": 3, "hidden_size": 12, "state_size": 4, "n_layer": 2, "head_dim": 2}
    config = DecisionMambaConfig.from_preset(preset, **{**sizes, **image, "max_ep_len": 40, **overrides})
    model = DecisionMambaModel(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def drawn_steps(model: DecisionMambaModel, rows: int, steps: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Whole episodes from their first step on."""
    generator, config, dtype = torch.Generator().manual_seed(seed), model.config, model.dtype
    frames = (config.num_channels, config.image_size, config.image_size)
    state = frames if config.state_type == "image" else (config.state_dim,)
    if config.action_type == "discrete":
        actions = torch.randint(0, config.act_dim, (rows, steps), generator=generator)
        none = torch.full((rows, 1), -1)
    else:
        actions = torch.randn(rows, steps, config.act_dim, dtype=dtype, generator=generator)
        none = torch.zeros(rows, 1, config.act_dim, dtype=dtype)
    condition = torch.randn(rows, steps, config.condition_dim, dtype=dtype, generator=generator)
    return {
        "states": torch.rand(rows, steps, *state, dtype=dtype, generator=generator),
        "actions": actions,
        **({} if config.condition_input is None else {config.condition_input: condition}),
        "timesteps": torch.arange(steps).expand(rows, -1),
        "previous_actions": torch.cat([none, actions[:, :-1]], 1),
    }


def pendulum_model(preset: str = "dema-b3ld") -> DecisionMambaModel:
    model = make_model(preset, state_dim=3, act_dim=1)
    with torch.no_grad():
        model.predict_action.weight *= 0.1  # or every action would be at its bound
    return model


def pendulum_transformer() -> DecisionTransformerModel:
    torch.manual_seed(0)
    sizes = {"state_dim": 3, "act_dim": 1, "hidden_size": 8, "n_layer": 1, "n_head": 1, "max_ep_len": 200}
    return DecisionTransformerModel(DecisionTransformerConfig(**sizes))


def pendulum_policy(model=None, context_length: int = 5, **settings) -> DecisionMambaPolicy:
    processor = DecisionMambaProcessor(
        state_mean=[0.1, -0.2, 0.3],
        state_std=[0.7, 0.6, 3.0],
        return_scale=3000.0,
        context_length=context_length,
        action_low=[-2.0],
        action_high=[2.0],
        action_mid=[0.5],
        action_scale=[2.0],
        **{"env_id": "Pendulum-v1", "target_return": -400.0, **settings},
    )
    return DecisionMambaPolicy(pendulum_model() if model is None else model, processor)


#: Texts that would be something else than text if they stood in a card as they are.
HOSTILE = [
    "name]\n\n# Heading",
    "a\n---\nlicense: evil\n---\n",
    "```\n# big\n```",
    "```",
    "<script>alert(1)</script>",
    "[a](javascript:alert(1))",
    "![x](http://evil/x.png) <img src=x onerror=1>",
    "`a` | b | **c** _d_ ~~e~~",
    "{{ 7 * 7 }}",
    '"); import os; os.system("true")  #',
    "$(touch PWNED); `touch PWNED` 'x",
    "\u202egnp.exe\x00\x07\u2028 \ud800",
    "# c",
    "a" * 5000,
]


def with_texts(value: Any, text: str) -> Any:
    """A JSON value in which every text is another one; names of environments stay."""
    if isinstance(value, dict):
        return {key: entry if key == "env_id" else with_texts(entry, text) for key, entry in value.items()}
    if isinstance(value, list):
        return [with_texts(entry, text) for entry in value]
    return text if isinstance(value, str) else value


def assert_inert(card: Any, harmless: Any) -> None:
    """A card is built as one whose texts are harmless, and none of its texts is more than text."""
    assert card.data.to_dict().keys() == harmless.data.to_dict().keys()
    for part in (r"^#+ ", r"^```", r"^\|", r"^[*-] "):  # headings, fences, rows of tables, lists
        assert [len(re.findall(part, c.text, re.MULTILINE)) for c in (card, harmless)] == [
            len(re.findall(part, harmless.text, re.MULTILINE))
        ] * 2, part
    assert card.text.isprintable() or set(c for c in card.text if not c.isprintable()) == {"\n"}
    assert max(map(len, card.text.splitlines())) < 6000
    outside = re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```", "", card.text, flags=re.MULTILINE | re.DOTALL))
    for markup in ("<script", "<img", "](javascript", "![x]", "](http://evil", "**c**", "~~e"):
        assert markup not in outside, f"{markup} in {outside}"
    for language, program in re.findall(r"^```(python|bash)\n(.*?)^```", card.text, re.MULTILINE | re.DOTALL):
        if language == "python":
            compile(program, "<card>", "exec")
            assert "import os" not in program
        else:
            assert all(shlex.join(shlex.split(line)) == line for line in program.splitlines())


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A third of the files cut off, the others with one to eight bits flipped, as often in the header as elsewhere."""
    if not content or rng.random() < 1 / 3:
        return content[: rng.randrange(len(content) + 1)]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(rng.choice([min(len(content), 2000), len(content)]))] ^= 1 << rng.randrange(8)
    return bytes(changed)


class Reach(gymnasium.Env):
    """A point in a square that is to go to its goal, as gymnasium's environments of goals say it.

    The state is the place and the time; an action moves the point by at most 0.25 in each dimension. `success` is told
    at every step, and ends the episode.
    """

    def __init__(self, near: float = 0.2):
        box = gymnasium.spaces.Box
        places = {name: box(-2, 2, (2,), np.float64) for name in ("achieved_goal", "desired_goal")}
        self.observation_space = gymnasium.spaces.Dict({"observation": box(-9, 9, (3,), np.float64), **places})
        self.action_space = box(-1, 1, (2,), np.float32)
        self.near = near

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        self.time = 0.0
        return self._observe(), {"success": False}

    def step(self, action):
        self.place, self.time = np.clip(self.place + 0.25 * np.asarray(action, np.float64), -1.5, 1.5), self.time + 0.1
        success = bool(np.linalg.norm(self.place - self.goal) < self.near)
        return self._observe(), float(success), success, False, {"success": success}

    def _observe(self) -> dict[str, np.ndarray]:
        seen = np.array([*self.place, self.time])
        return {"observation": seen, "achieved_goal": self.place.copy(), "desired_goal": self.goal.copy()}


def reaching(episodes: int, steps: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Episodes in `Reach` of an agent that goes straight to places of its own, as a rollout keeps them."""
    random, env, found = np.random.default_rng(seed), Reach(near=0), []
    for number in range(episodes):
        seen, place = [env.reset(seed=seed + number)[0]], random.uniform(-1, 1, 2)
        actions = []
        for _ in range(steps):
            actions.append(np.clip((place - env.place) / 0.25, -1, 1).astype(np.float32))
            seen.append(env.step(actions[-1])[0])
        found.append(
            {
                "observations": {name: np.stack([step[name] for step in seen]) for name in seen[0]},
                "actions": np.stack(actions),
                "truncations": np.arange(steps) == steps - 1,
            }
        )
    return found
