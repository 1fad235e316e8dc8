"""Trained at one control rate, run at another: does it help to say so? `python benchmarks/control_rate.py RUN ...`

A selective SSM has a clock: where a step lasts s times as long as in training, `time_scale` multiplies every Δ by s.
Each checkpoint plays its MuJoCo environment with other numbers of simulated steps between two decisions (`frame_skip`),
for the same simulated time, with `time_scale` and without. Rewards of these environments are rates (a speed, less the
costs), so they are multiplied by s: a return is then that of the same time, whatever s is. In the results
(results/control_rate.json): the mean return of `--episodes` episodes of each checkpoint, mode and frame_skip.

The convolution and DMM's local mixer count steps, and know nothing of s; nor does a window, which is s times as long.
The checkpoints of the results: `hf-decision-mamba study configs/studies/control_rate.yaml --jobs 2`.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import gymnasium
import torch
from gymnasium.wrappers import TransformReward
from measuring import save
from tqdm import tqdm

from hf_decision_mamba import DecisionMambaPolicy, DecisionMambaProcessor, evaluate_policy

RATIOS = (0.4, 0.5, 0.6, 1.0, 1.5, 1.6, 2.0, 3.0)  # of those, the ones that are a whole number of simulated steps


def frame_skips(env_id: str) -> dict[int, float]:
    """The simulated steps of a decision that are played, and how much longer each lasts than the environment's own."""
    env: Any = gymnasium.make(env_id)
    usual = env.unwrapped.frame_skip
    env.close()
    return {round(usual * ratio): ratio for ratio in RATIOS if (usual * ratio).is_integer()}


def environment(env_id: str, frame_skip: int, ratio: float) -> gymnasium.Env:
    """The environment with decisions that last `ratio` times as long, as few of them as fill the same time."""
    limit = gymnasium.spec(env_id).max_episode_steps or 1000
    env = gymnasium.make(env_id, frame_skip=frame_skip, max_episode_steps=round(limit / ratio))
    return TransformReward(env, lambda reward: ratio * float(reward))


def play(folder: Path, mode: Any, frame_skip: int, ratio: float, scaled: bool, episodes: int) -> dict[str, Any]:
    """What one checkpoint earns."""
    policy = DecisionMambaPolicy.from_pretrained(folder, mode)
    env_id = policy.processor.env_id
    assert env_id is not None

    def with_time_scale(_module: Any, arguments: Any, inputs: dict[str, Any]) -> Any:
        return arguments, {**inputs, "time_scale": torch.full(inputs["states"].shape[:2], ratio)}

    if scaled:
        policy.model.register_forward_pre_hook(with_time_scale, with_kwargs=True)
    made = evaluate_policy(
        policy, lambda: environment(env_id, frame_skip, ratio), episodes=episodes, num_envs=episodes, progress=False
    )
    returns = [row["return"] for row in made.episodes]
    return {
        "run": "/".join(folder.parts[-3:]),
        "env_id": env_id,
        "mode": mode,
        "frame_skip": frame_skip,
        "step_lasts": ratio,
        "time_scale": ratio if scaled else None,
        "return_mean": sum(returns) / len(returns),
    }


def main() -> None:
    """Play and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, help="run folders of the study")
    parser.add_argument("--modes", nargs="+", default=["window", "recurrent"], choices=["window", "recurrent"])
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = []
    for folder in tqdm(args.checkpoints, unit="checkpoint"):
        env_id = DecisionMambaProcessor.from_pretrained(folder).env_id
        assert env_id is not None, f"{folder} does not say which environment it is for"
        for mode, (frame_skip, ratio) in itertools.product(args.modes, frame_skips(env_id).items()):
            for scaled in (False, True) if ratio != 1 else (False,):
                rows.append(play(folder, mode, frame_skip, ratio, scaled, args.episodes))
    save("returns of the same simulated time at other control rates", path=args.output, rows=rows)


if __name__ == "__main__":
    main()
