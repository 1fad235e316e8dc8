"""What is left of a beginning: the states are those of a policy that decides one by one, and the page shows them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import BREAKOUT, make_model, pendulum_model, pendulum_policy, pendulum_transformer

from hf_decision_mamba import DecisionMambaPolicy, DecisionMambaProcessor, DecisionMLPConfig, DecisionMLPModel
from hf_decision_mamba.analysis.episodes import chosen_episodes, play_episodes
from hf_decision_mamba.analysis.inspection import inspect_checkpoint
from hf_decision_mamba.analysis.memory import memory_of_beginning
from hf_decision_mamba.analysis.page import plot_inspection, write_inspection
from hf_decision_mamba.analysis.windows import mixers_of
from hf_decision_mamba.cli import main
from hf_decision_mamba.model import DecisionMambaCache

MAZE = "hf_decision_mamba/TMaze-v0"


def maze_policy(preset="dema-b3ld", **overrides):
    model = make_model(preset, state_dim=4, act_dim=3, action_type="discrete", **overrides)
    processor = DecisionMambaProcessor(
        state_mean=[0.1] * 4,
        state_std=[0.5] * 4,
        return_scale=1.0,
        context_length=5,
        env_id=MAZE,
        target_return=1.0,
        env_kwargs={"length": 700},
    )
    return DecisionMambaPolicy(model, processor)


def one_by_one(policy, played, followed, other, steps):
    """States per layer (n, 2, ...) and answers (n, 2, A) of two rows that are fed a step at a time."""
    cache = DecisionMambaCache(policy.model.config, 2)
    trajectories, processor = played.trajectories, policy.processor
    firsts = trajectories.step_offsets()[:-1]
    states, answers = [], []
    for t in range(steps):
        row = firsts[followed] + t
        seen = np.stack([trajectories.observations[row]] * 2)
        if t == 0:
            seen[1] = trajectories.observations[firsts[other]]
        before = trajectories.actions[row - 1]
        if policy.action_type == "discrete":
            before = torch.full((2, 1), int(before) if t else -1)
        else:
            before = torch.from_numpy(np.stack([processor.normalize_actions(before) if t else 0 * before] * 2))[:, None]
        left = torch.full((2, 1, 1), float(played.returns_to_go[row] / processor.return_scale))
        with torch.no_grad():
            output = policy.model(
                states=torch.from_numpy(processor.normalize_states(seen))[:, None],
                returns_to_go=left,
                previous_actions=before,
                timesteps=torch.full((2, 1), t),
                cache_params=cache,
            )
        states.append([state.clone() for state in cache.ssm_states])
        answers.append(output.action_preds[:, -1])
    return states, torch.stack(answers)


@pytest.mark.parametrize("preset", ["dema-b3ld", "dema-bl3d", "dmm", "dmm-mamba2", "gru"])
def test_states_are_those_of_two_rows_that_decide_one_by_one(preset):
    sizes = {"state_size": None} if preset == "gru" else {"head_dim": 8} if preset == "dmm-mamba2" else {}
    policy = pendulum_policy(make_model(preset, state_dim=3, act_dim=1, **{k: v for k, v in sizes.items() if v}))
    played = play_episodes(policy, "Pendulum-v1", -400.0, 3, 0, progress=False)
    found = memory_of_beginning(policy, played, 60)
    assert found.episodes == (0, 1) and found.steps[0] == 1 and found.steps[-1] == 60
    assert (np.diff(found.steps) > 0).all() and found.signal.shape == found.drift.shape == (2, len(found.steps))
    states, answers = one_by_one(policy, played, 0, 1, 60)
    for place, step in enumerate(found.steps):
        for layer in range(2):
            first, second = states[step - 1][layer]
            assert found.signal[layer, place] == pytest.approx((first - second).norm().item(), rel=1e-3, abs=1e-6)
            moved = (first + second) / 2 - states[0][layer].mean(0)
            assert found.drift[layer, place] == pytest.approx(moved.norm().item(), rel=1e-3, abs=1e-6)
        change = (answers[step - 1, 0] - answers[step - 1, 1]).abs().max().item()
        assert found.difference[place] == pytest.approx(change, rel=1e-3, abs=1e-5)
    assert (found.signal[:, 0] > 1e-3).all() and (found.drift[:, 0] == 0).all() and found.drift[0, -1] > 1e-3


def test_a_maze_is_followed_past_a_chunk_and_only_clues_differ():
    policy = maze_policy("dema-bl3d")
    played = play_episodes(policy, MAZE, 1.0, 4, 0, False, {"length": 700})
    found = memory_of_beginning(policy, played)
    clues = played.trajectories.observations[played.trajectories.step_offsets()[:-1]]
    followed, other = (clues[number] for number in found.episodes)
    assert found.steps[-1] == 701 and (followed != other).any()
    states, answers = one_by_one(policy, played, *found.episodes, 701)
    assert found.signal[0, -1] == pytest.approx((states[-1][0][0] - states[-1][0][1]).norm().item(), rel=0.02, abs=1e-6)
    assert found.difference[-1] == pytest.approx((answers[-1, 0] - answers[-1, 1]).abs().max().item(), abs=1e-4)
    assert found.asked.shape == found.difference.shape and found.asked[0] > 1e-3
    # At the step before the last one, the last thing that is seen does come next.
    short = memory_of_beginning(policy, play_episodes(policy, MAZE, 1.0, 4, 0, False, {"length": 30}))
    place = short.steps.tolist().index(30)
    assert short.steps[-1] == 31 and short.asked[place] == pytest.approx(short.difference[-1], rel=1e-4)
    assert short.asked[place - 1] != short.difference[place]
    states, answers = one_by_one(policy, play_episodes(policy, MAZE, 1.0, 4, 0, False, {"length": 30}), 0, 1, 31)
    assert short.episodes == (0, 1) and short.answers.shape == (len(short.steps), 2, 3)
    np.testing.assert_allclose(short.answers[place], answers[-1], atol=1e-4)
    np.testing.assert_array_equal(np.abs(short.answers[:, 0] - short.answers[:, 1]).max(-1), short.asked)


def test_frames_are_followed_too():
    sizes = {"embedding_size": 16, "n_layer": 1, "act_dim": 4, "image_size": 84, "num_channels": 2}
    processor = DecisionMambaProcessor(frame_stack=2, context_length=5)
    policy = DecisionMambaPolicy(make_model("dema-atari", **sizes), processor)
    played = chosen_episodes(policy, str(BREAKOUT), 3, 0)
    with pytest.raises(ValueError, match="the 3 episodes begin with the same observation"):  # the game always does
        memory_of_beginning(policy, played, 12)
    played.trajectories.observations[0] = 255  # of the first, which is not the longest
    found = memory_of_beginning(policy, played, 12)
    assert found.steps[-1] == 12 and (found.signal > 0).all() and np.isfinite(found.difference).all()


def test_what_has_no_memory_or_one_beginning_is_refused():
    rvs = DecisionMLPModel(DecisionMLPConfig(state_dim=3, act_dim=1, hidden_size=8))
    for model in (pendulum_transformer(), rvs):
        with pytest.raises(ValueError, match=f"{type(model).__name__} carries no state between decisions"):
            inspect_checkpoint(pendulum_policy(model), "me/it", memory=True, progress=False)
    with pytest.raises(ValueError, match=r"steps=9 says how long a memory is followed; say memory too \(--memory\)"):
        inspect_checkpoint(pendulum_policy(), "me/it", steps=9, progress=False)
    policy = maze_policy()
    alike = play_episodes(policy, MAZE, 1.0, 1, 0, False, {"length": 5})
    with pytest.raises(ValueError, match="the 1 episodes begin with the same observation"):
        memory_of_beginning(policy, alike)
    with pytest.raises(ValueError, match="steps=1 must be at least 2"):
        memory_of_beginning(policy, alike, 1)


def test_the_page_has_it_where_it_was_asked_for(drawn, tmp_path):
    policy = pendulum_policy(pendulum_model())
    found = inspect_checkpoint(
        policy, "me/it", episodes=2, target_returns=[-400], memory=True, steps=50, progress=False
    )
    page, *pictures, numbers = write_inspection(found, tmp_path)
    assert pictures[-1].name == "memory.png" and "What is left of a beginning" in page.read_text()
    assert "episode 0 for 50 decisions, and with the beginning of 1" in page.read_text()
    assert "--memory --steps 50" in found.protocol["command"]
    signal, drift, difference = drawn["memory.png"].axes
    for layer in range(2):
        np.testing.assert_array_equal(signal.lines[layer].get_ydata(), found.memory.signal[layer])
        np.testing.assert_array_equal(drift.lines[layer].get_ydata()[1:], found.memory.drift[layer, 1:])
    np.testing.assert_array_equal(
        difference.lines[0].get_xydata(), np.stack([found.memory.steps, found.memory.difference], 1)
    )
    kept = json.loads(numbers.read_text())["memory"]
    assert kept["steps"] == found.memory.steps.tolist()
    np.testing.assert_allclose(kept["signal"], found.memory.signal, rtol=1e-3)
    without = replace(found, memory=None)
    assert "memory.png" not in [path.name for path in write_inspection(without, tmp_path)]
    assert not (tmp_path / "memory.png").exists()
    with pytest.raises(ValueError, match=r"was not asked for it \(memory=True\)"):
        plot_inspection(without, "memory")


def test_learned_step_sizes_stand_beside_those_that_were_met():
    policy = pendulum_policy(pendulum_model())
    found = inspect_checkpoint(policy, "me/it", episodes=1, target_returns=[-400], progress=False)
    assert found.memory is None  # which nobody asked for
    found = found.time_constants
    for layer, mixer in enumerate(mixers_of(policy.model)):
        bias = torch.nn.functional.softplus(mixer.dt_proj.bias.detach()).numpy()
        np.testing.assert_allclose(found.learned[layer], np.quantile(bias, found.quantiles), rtol=1e-5)
    assert found.learned.shape == found.step_sizes.shape == (2, 5)


def test_the_command(tmp_path, capsys):
    policy = maze_policy()
    policy.processor.env_kwargs = {"length": 30}
    policy.model.save_pretrained(tmp_path / "maze")
    policy.processor.save_pretrained(tmp_path / "maze")
    main(["inspect", str(tmp_path / "maze"), "--memory", "--episodes", "4", "--target-return", "1"])
    assert str(tmp_path / "maze" / "inspection" / "memory.png") in capsys.readouterr().out
