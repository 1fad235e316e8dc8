"""popgym's memory games: experts that remember are always right, and what they did is learned from as one of n."""

import numpy as np
import pytest
from factories import TINY_MODEL

from hf_decision_mamba import DecisionMambaPolicy, evaluate_policy, load_trajectories, train
from hf_decision_mamba.collecting import CollectSettings, collect
from hf_decision_mamba.evaluation import environments
from hf_decision_mamba.evaluation.environments import make_environments

pytest.importorskip("popgym")
# popgym's own: it gives the same dictionary at every step.
pytestmark = pytest.mark.filterwarnings("ignore:.*infos returned by `.*` and the following `step` share an object")

#: Steps of an episode: all cards of the decks are dealt, and for Autoencode recited.
GAMES = {
    "RepeatPreviousEasy": 51,
    "RepeatPreviousMedium": 103,
    "RepeatPreviousHard": 155,
    "RepeatFirstEasy": 51,
    "RepeatFirstMedium": 415,
    "RepeatFirstHard": 831,
    "AutoencodeEasy": 103,
    "AutoencodeMedium": 207,
    "AutoencodeHard": 311,
    "CountRecallEasy": 51,
    "CountRecallMedium": 103,
    "CountRecallHard": 207,
}


@pytest.mark.parametrize(("game", "length"), GAMES.items())
def test_experts_are_always_right(game, length, tmp_path):
    settings = CollectSettings(f"popgym-{game}-v0", policy="expert", episodes=5, num_envs=3)
    folder, complete = collect(settings, tmp_path / game, progress=False)
    data = load_trajectories(folder)
    assert complete and data.env_id == f"popgym-{game}-v0" and data.action_type == "discrete"
    assert data.returns() == pytest.approx(np.ones(5), abs=1e-5)  # which is the most that there is
    assert (data.lengths == length).all() and data.terminations.sum() == 5
    sizes = [part["counts"] for part in data.observation_parts]
    assert np.isin(data.observations, (0, 1)).all()
    assert (data.observations.sum(1) == sum(map(len, sizes))).all() and data.state_dim == sum(map(sum, sizes))
    assert len({data.observations[start : start + length].tobytes() for start in data.starts}) == 5


def test_chance_is_far_from_it(tmp_path):
    folder, _ = collect(CollectSettings("popgym-RepeatFirstEasy-v0", episodes=5), tmp_path / "chance", progress=False)
    assert load_trajectories(folder).returns().max() < 0


def test_a_tuple_of_whole_numbers_goes_from_data_to_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _ = collect(
        CollectSettings("popgym-AutoencodeEasy-v0", policy="expert", episodes=6, epsilon=0.2),
        tmp_path / "cards",
        progress=False,
    )
    sizes = {**TINY_MODEL, "context_length": 4}
    result = train(str(folder), **sizes, max_steps=2, eval_episodes=2, rollout_episodes=1, eval_steps=1, use_cpu=True)
    assert [part["path"] for part in result.policy.processor.observation_parts] == [[0], [1]]
    assert all(-1 <= row["return"] <= 1 and row["length"] == 103 for row in result.evaluation.episodes)
    policy = DecisionMambaPolicy.from_pretrained(result.folder, "recurrent")
    assert len(evaluate_policy(policy, episodes=2, progress=False).episodes) == 2
    policy.reset()
    assert policy.act((1, 3)) in range(4)  # as the environment gives it
    with pytest.raises(ValueError, match=r"observation\[1\] is 4; it must be a whole number from 0 to 3"):
        policy.act((1, 4))


def test_without_popgym_it_is_named(monkeypatch):
    monkeypatch.setattr(environments.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="an environment of popgym, which is missing; try: pip install"):
        make_environments("popgym-RepeatLastEasy-v0", 1)
