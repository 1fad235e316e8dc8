"""Settings: what a YAML file may hold, what is refused by name, and what another model keeps of a file."""

from pathlib import Path

import pytest

from hf_decision_mamba.training.arguments import parse_arguments


def parsed(folder: Path, content: str | bytes, *argv: str):
    """The settings of a file with this content, below a command line."""
    path = folder / "run.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return parse_arguments([str(path), "--use_cpu=true", *argv])


@pytest.mark.parametrize(
    ("content", "name", "value"),
    [
        ("\ufeffmax_steps: 3", "max_steps", 3),
        ("max_steps: 3".encode("utf-16"), "max_steps", 3),
        ("max_steps: 0x10", "max_steps", 16),
        ("<<: {max_steps: 3}", "max_steps", 3),
        ("&x max_steps: 3", "max_steps", 3),
        ("max_steps:", "max_steps", 5000),
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("bf16: no", "bf16", False),
        ("remove_unused_columns: no", "remove_unused_columns", False),
        ("target_return: 3600", "target_return", [3600.0]),
        ("target_return: []", "target_return", None),
        ("lr_scheduler_kwargs: {min_lr_rate: 0.1}", "lr_scheduler_kwargs", {"min_lr_rate": 0.1}),
        # Words are words, whatever YAML makes of them.
        ("eval_strategy: no", "eval_strategy", "no"),
        ("dataset_name: 2001-01-01", "dataset_name", ["2001-01-01"]),
        ("dataset_name: 'null'", "dataset_name", ["null"]),
        ("dataset_revision: 0123456", "dataset_revision", "0123456"),
        ("dataset_name: on", "dataset_name", ["on"]),
    ],
)
def test_a_value_of_a_yaml_file_is_what_the_command_line_would_give(tmp_path, content, name, value):
    groups = parsed(tmp_path, content)
    (found,) = (getattr(group, name) for group in groups if hasattr(group, name))
    assert found == value and type(found) in (type(value), type(getattr(groups[-1], name, None)))


BOMB = "dataset_columns:\n  a: &a [x, x]\n  b: &b [*a, *a]\n  c: &c [*b, *b]\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "dataset_name: !!python/object/apply:os.system ['touch PWNED']",
            "is not valid YAML: could not determine a con",
        ),
        ("!!python/object/new:os.system ['x']", "is not valid YAML"),
        ("dataset_name: !!python/name:os.system", "is not valid YAML"),
        ("max_steps: !!bool x", "is not valid YAML"),
        ("output_dir: !!timestamp x", "is not valid YAML"),
        ("max_steps: " + "9" * 5000, "is not valid YAML"),
        ("? [a, b]\n: 1", "is not valid YAML"),
        ("[" * 600, "is not valid YAML: maximum recursion depth"),
        ("max_steps: " + "{b: " * 3000, "is not valid YAML"),
        ("dataset_name: \xff".encode("latin1"), "is not valid YAML: unacceptable character #x00ff"),
        ("dataset_name: {{ x }}", "is not valid YAML"),
        ("", "must hold lines of the form `setting: value`, not a NoneType"),
        ("max_steps", "must hold lines of the form `setting: value`, not a str"),
        ("a: &a [*a]", "unknown setting 'a'"),
        ("1: 2", "unknown setting 1"),
        ("true: 2", "unknown setting True"),
        ("max_steps: 1\nseed: 2\nmax_steps: 3", "max_steps is set 2 times"),
        ("target_return: &a [*a]", "target_return takes one value, not a list"),
        ("dataset_name: &a [*a]", "dataset_name takes one value, not a list"),
        ("dataset_name: [1, {a: 2}]", "dataset_name takes one value, not a dict"),
        ("max_steps: {a: 2}", "argument --max_steps/--max-steps: invalid int value"),
        (BOMB, "dataset_columns takes one value, not a dict"),
        ("dataset_columns: &a {a: *a}", "dataset_columns takes one value, not a dict"),
        ('output_dir: "a\\0b"', "output_dir holds a NUL byte"),
        ("max_steps: true", "argument --max_steps/--max-steps: invalid int value: 'True'"),
        ("max_steps: 3.5", "invalid int value: '3.5'"),
        ("max_steps: .nan", "invalid int value: 'nan'"),
        ("max_steps: 1e400", "invalid int value: '1e400'"),
        ("max_steps: 2001-01-01", "invalid int value: '2001-01-01'"),
        ("learning_rate: true", "invalid float value: 'True'"),
        ("use_cpu: maybe", "argument --use_cpu/--use-cpu: Truthy value expected"),
        ("optim: adam", "argument --optim: invalid choice: 'adam'"),
    ],
)
def test_a_yaml_file_is_refused_in_one_line_that_names_it(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as refused:
        parsed(tmp_path, content)
    assert str(refused.value).startswith(f"{tmp_path / 'run.yaml'}") and "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("max_steps: -5", "max_steps=-5 must be at least 1, or -1"),
        ("max_steps: 0", "max_steps=0 must be at least 1, or -1"),
        ("max_steps: 99999999999999999999", "max_steps=99999999999999999999 must be"),
        ("max_steps: -1\nnum_train_epochs: 0", "max_steps=-1 must be .* num_train_epochs .above 0"),
        ("per_device_train_batch_size: 0", "per_device_train_batch_size=0 must be at least 1"),
        (
            "per_device_train_batch_size: 99999999999999999999",
            "per_device_train_batch_size=9+ must be below 2147483648",
        ),
        ("per_device_eval_batch_size: -2", "per_device_eval_batch_size=-2 must be at least 1"),
        ("gradient_accumulation_steps: 0", "gradient_accumulation_steps=0 must be at least 1"),
        ("learning_rate: -1", "learning_rate=-1.0 must be at least 0"),
        ("learning_rate: .inf", "learning_rate=inf must be finite"),
        ("learning_rate: 1" + "0" * 400, "learning_rate=inf must be finite"),
        ("learning_rate: .nan", "learning_rate=nan must be at least 0"),
        ("weight_decay: .nan", "weight_decay=nan must be"),
        ("max_grad_norm: -.inf", "max_grad_norm=-inf must be at least 0"),
        ("adam_beta2: 1", "adam_beta2=1.0 must be below 1"),
        ("warmup_steps: .inf", "warmup_steps=inf must be finite"),
        ("seed: 99999999999999999999", "seed=99999999999999999999 must be below 4294967296"),
        ("seed: -1", "seed=-1 must be at least 0"),
        ("data_seed: -1", "data_seed=-1 must be at least 0"),
        ("eval_steps: -3", "eval_steps=-3.0 must be at least 0"),
        ("cpu_threads: 0", "cpu_threads=0 must be at least 1"),
        ("architecture: decision_transformer\nresid_pdrop: .nan", "resid_pdrop=nan must be at least 0 and below 1"),
        ("architecture: decision_transformer\nn_layer: 99999999999", "n_layer=99999999999 must be .* at most 1024"),
        ("lr_scheduler_kwargs: '{'", "lr_scheduler_kwargs={ must be JSON"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(tmp_path, setting, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        parsed(tmp_path, setting)


MINE = "n_layer: 2\nhidden_size: 48\nstate_size: 8\nresid_pdrop: 0.3\ncontext_length: 5\nmax_steps: 7\n"


@pytest.mark.parametrize(
    ("choice", "left_out"),
    [
        ([], set()),
        (["--preset=dema-b3ld"], set()),
        (["--preset=dmm"], set()),
        (["--architecture=decision_transformer"], {"preset", "state_size"}),
        (["--architecture=rvs"], {"preset", "state_size", "resid_pdrop"}),
        (["--architecture=gru"], {"preset", "state_size"}),
        (["--preset=gru"], {"state_size"}),
        (["--model_name_or_path=there"], {"preset", "n_layer", "hidden_size", "state_size", "resid_pdrop"}),
    ],
)
def test_a_file_that_was_named_is_obeyed_wherever_the_chosen_model_has_the_field(tmp_path, choice, left_out):
    arguments = parsed(tmp_path, f"preset: dema-b3ld\n{MINE}", *choice)
    model, data, _, args = arguments
    asked = {"n_layer": 2, "hidden_size": 48, "state_size": 8, "resid_pdrop": 0.3}
    assert model.overrides() == {name: value for name, value in asked.items() if name not in left_out}
    assert (data.context_length, args.max_steps) == (5, 7)
    assert "preset" not in left_out or model.preset == ("gru" if choice == ["--architecture=gru"] else "dema-b3ld")
    changed = choice not in ([], ["--preset=dema-b3ld"])
    assert len(arguments.remarks) == changed
    for remark in arguments.remarks:
        kept, *out = remark.split("; ")
        assert str(tmp_path / "run.yaml") in kept and "context_length kept with --" in kept
        assert {*"".join(out).split(" left out")[0].split(", ")} - {""} == left_out


def test_the_default_file_gives_its_sizes_to_its_own_model_alone(tmp_path):
    path = tmp_path / "default.yaml"
    path.write_text(f"preset: dema-b3ld\n{MINE}")
    assert parse_arguments(["--state_size=4", "--use_cpu=true"], path)[0].overrides()["n_layer"] == 2
    for choice in ("--preset=dmm", "--architecture=bc", "--model_name_or_path=there"):
        arguments = parse_arguments([choice, "--use_cpu=true"], path)
        model, data, _, args = arguments
        assert (model.overrides(), data.context_length, args.max_steps) == ({}, None, 7)
        (remark,) = arguments.remarks
        assert "state_size, resid_pdrop, context_length left out" in remark and "name the file to keep them" in remark
    # What the command line says itself stays, though it is what the file says.
    model, data, *_ = parse_arguments(["--preset=dmm", "--state_size=8", "--context_length=5", "--use_cpu=true"], path)
    assert (model.overrides(), data.context_length) == ({"state_size": 8}, 5)


def test_another_preset_than_a_files_baseline_is_a_model_of_ours(tmp_path):
    arguments = parsed(tmp_path, "architecture: bc\nhidden_size: 48\n", "--preset=dmm")
    model = arguments[0]
    assert (model.architecture, model.preset, model.hidden_size) == ("decision_mamba", "dmm", 48)
    assert "hidden_size kept with --preset dmm; architecture left out" in arguments.remarks[0]


def test_what_was_given_is_what_differs_from_the_defaults(tmp_path):
    arguments = parsed(tmp_path, "seed: 42\nmax_steps: 7\nlearning_rate: 1e-3\n", "--weight_decay", "0.5")
    assert arguments.given == {"use_cpu": True, "max_steps": 7, "weight_decay": 0.5}


@pytest.mark.parametrize("choice", [["--architecture=gru"], ["--preset=gru"], ["--architecture=gru", "--preset=gru"]])
def test_a_gru_is_an_architecture_and_a_preset(tmp_path, choice):
    model = parsed(tmp_path, "seed: 1", *choice)[0]
    assert (model.architecture, model.preset, model.builds_a_preset) == ("gru", "gru", True)
    with pytest.raises(ValueError, match="--architecture gru is --preset gru, not --preset dmm; leave one of them out"):
        parsed(tmp_path, "seed: 1", "--architecture=gru", "--preset=dmm")
