"""The file of a study: what it may say, what runs follow from it, and how what is wrong is named before the start."""

from pathlib import Path

import pytest
from factories import HOPPER, ROOT
from studies import small

from hf_decision_mamba.study.plan import load_study, words_of
from hf_decision_mamba.training.arguments import parse_arguments


def test_runs_are_the_cross_product_seed_by_seed_with_the_later_groups_winning():
    study = load_study(
        small(
            base={"learning_rate": 1e-4, "context_length": 4},
            models={"DeMa": {"preset": "dema-b3ld", "context_length": 8}, "RvS": {"architecture": "rvs"}},
            grid={"learning_rate": [1e-3, "3e-4"], "context_length": [5, 20]},
        )
    )
    assert len(study.runs) == 2 * 2 * 2 * 4
    assert [run.seed for run in study.runs] == [0] * 16 + [1] * 16
    first = study.runs[1]
    assert first.folder == "hopper/DeMa/learning_rate=0.001-context_length=20/seed0"
    assert first.variant == "DeMa, learning_rate 0.001, context_length 20"
    assert first.settings["save_steps"] == 0.02 and first.settings["seed"] == 0
    assert [run.settings.get("learning_rate", 1e-3) for run in study.runs[:4]] == [1e-3, 1e-3, 3e-4, 3e-4]
    assert len({run.folder for run in study.runs}) == len(study.runs)


def test_settings_go_through_a_command_line_unchanged():
    study = load_study(
        small(
            base={
                "env_kwargs": '{"reset_noise_scale": 0.1}',
                "target_return": [-400, 20],
                "bf16": False,
                "use_cpu": True,
            },
            seeds=[3],
        )
    )
    for run in study.runs:
        arguments = parse_arguments([*words_of(run.settings), "--output_dir=-"])
        assert {**arguments.given, "seed": 3} == {**run.settings, "output_dir": "-"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_files_of_the_project_are_studies(path):
    study = load_study(path)
    assert study.name == path.stem and study.runs and study.evaluations
    for run in study.runs:  # memory games return 1 at best, mazes count success, and goals are no returns
        told = {"target_return", "conditioning"} & run.settings.keys()
        assert told or study.name in ("memory", "clues", "dilation", "popgym", "maze")


def test_paths_begin_in_the_working_directory_or_with_a_dot_in_the_files_folder(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "study.yaml"
    path.write_text(
        f"name: x\nbase: {{eval_strategy: no, learning_rate: 1e-4}}\nmodels: {{A: {{architecture: bc}}}}\n"
        f"data: {{one: {{dataset_name: [../d.parquet, {HOPPER}]}}, two: {{dataset_name: d.parquet}}}}\n"
    )
    one, two = load_study(path).runs
    assert Path(one.settings["dataset_name"][0]).resolve() == tmp_path / "d.parquet"
    assert one.settings["dataset_name"][1] == str(HOPPER) and two.settings["dataset_name"] == ["d.parquet"]
    assert one.settings["eval_strategy"] == "no" and one.settings["learning_rate"] == 1e-4
    with pytest.raises(FileNotFoundError, match=r"x: data: one: there is no file or folder .*d\.parquet"):
        load_study(path).check_sources()


def test_an_evaluation_has_a_condition_for_each_target_and_value_of_its_sweep():
    evaluation = {"sweep": {"length": [30, 100]}, "target_returns": [1, 2], "stop_below": 0.7, "last": 1}
    (found,) = load_study(small(evaluations={"far": evaluation})).evaluations
    assert [[condition.label for condition in row] for row in found.conditions()] == [
        ["target return 1, length 30", "target return 1, length 100"],
        ["target return 2, length 30", "target return 2, length 100"],
    ]
    (plain,) = load_study(small(evaluations=None)).evaluations
    assert [[condition.label for condition in row] for row in plain.conditions()] == [[""]]
    assert (plain.last, plain.episodes) == (5, 4)


DATA = {"hopper": {"dataset_name": "x"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {}}, r"study: unknown key 'model'; did you mean models\?"),
        ({"zebra": 1}, "study: unknown key 'zebra'; there are name, base, data, models, grid, seeds, evaluations"),
        ({"name": "a/b"}, "study: name='a/b' must be a text that can be a folder's name"),
        ({"models": {}}, "study: models must name one or more"),
        ({"data": None}, "study: data must name one or more"),
        ({"data": {"../up": {}}}, r"study: data: '\.\./up' must be a text that can be a folder's name"),
        ({"models": {"A": 7}}, "study: models: A must hold settings, not 7"),
        ({"data": {"a": {"env_id": "Hopper-v5"}}}, "study: data: a says no dataset_name"),
        ({"models": {"A": {"presett": "dmm"}}}, r"models: A: Unknown setting 'presett'; did you mean preset\?"),
        ({"models": {"A": {"preset": "dma"}}}, "study: hopper, A: preset=dma is none of .*dema-b3ld"),
        ({"base": {"max_steps": "many"}}, "study: base: max_steps='many': .*invalid int"),
        ({"base": {"learning_rate": -1}}, "study: base: learning_rate=-1.0 must be at least 0"),
        ({"base": {"seed": 3}}, "study: base: seed is not for a study to set: say `seeds`"),
        ({"base": {"cpu_threads": 3}}, "cpu_threads is not for a study to set: the cores are shared out among --jobs"),
        ({"base": {"state_size": 8}}, "study: hopper, RvS: --state_size does not apply to --architecture rvs"),
        ({"base": {"report_to": "wendb"}}, "study: hopper, DeMa: report_to=wendb is no tracker"),
        ({"grid": {"max_steps": 5}}, "study: grid: max_steps=5 must be a list of one value or more"),
        ({"grid": {"max_steps": [5, 5]}}, "has a value twice"),
        ({"grid": {"max_stps": [5]}}, r"study: grid: Unknown setting 'max_stps'; did you mean max_steps\?"),
        ({"seeds": 0}, "study: seeds=0 must be a number of 1 or more, or a list"),
        ({"seeds": [1, 1]}, "has a seed twice"),
        ({"seeds": True}, "study: seeds=True must be"),
        ({"evaluations": {}}, "study: evaluations must name one or more"),
        ({"evaluations": {"a": {"episode": 3}}}, r"evaluations: a: unknown key 'episode'; did you mean episodes\?"),
        ({"evaluations": {"a": {"episodes": 0}}}, "a: episodes=0 must be a whole number of 1 or more"),
        ({"evaluations": {"a": {"mode": "both"}}}, "a: mode='both' must be window or recurrent"),
        ({"evaluations": {"a": {"score": "best"}}}, "a: score='best' must be one of normalized_score, return, succ"),
        ({"evaluations": {"a": {"sweep": {"length": 3}}}}, r"a: sweep=\{'length': 3\} must be one argument of the env"),
        ({"evaluations": {"a": {"stop_below": 0.7}}}, "a: stop_below=0.7 ends a sweep, and there is none"),
        ({"evaluations": {"a": {"target_returns": []}}}, r"a: target_returns=\[\] must be a number, or a list"),
        ({"models": {"A b": {}, "A-b": {}}}, "A b and hopper, A-b would have one folder, hopper/A-b/seed0"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(changes, message):
    with pytest.raises(ValueError, match=message):
        load_study(small(**{"data": DATA, **changes}) if changes.get("data", 1) else {**small(), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not valid YAML"),
        ("- 1", "must hold the keys name, base, .*not a list"),
        ("name: x\nname: y", "'name' is there twice"),
    ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path, text, message):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_study(path)


def test_no_file_and_no_path_are_refused():
    with pytest.raises(FileNotFoundError, match=r"There is no study file missing\.yaml"):
        load_study("missing.yaml")
    with pytest.raises(TypeError, match="study=7 is an int; pass the path of a YAML file"):
        load_study(7)
