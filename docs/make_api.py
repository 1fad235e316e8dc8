"""Write docs/api.md, the public names with their signatures and first sentences: `python docs/make_api.py`."""

import inspect
import re
from pathlib import Path
from typing import Any

import hf_decision_mamba as hdm

PATH = Path(__file__).with_name("api.md")
HEADER = """# What `import hf_decision_mamba as hdm` offers

Each name with its arguments and what it does; `help(hdm.train)` says the rest: shapes, units, errors. Importing loads
the models alone, everything else is loaded when it is asked for. The command line calls the same functions. Written by
`python docs/make_api.py`.
"""
#: What belongs together, in the order of the road; where to read more; the names, with methods that people call.
SECTIONS = (
    (
        "Data",
        "[data.md](data.md): formats, and what is refused",
        ("load_trajectories", "Trajectories", "Trajectories.plot", "WindowDataset", "collect", "CollectSettings"),
    ),
    (
        "Training",
        "[README](../README.md#train-on-your-data); `hf-decision-mamba train --help` lists the settings",
        ("train", "TrainingResult", "DecisionMambaTrainer", "plot_learning_curve"),
    ),
    (
        "Models",
        "[presets.md](presets.md): every variant, field by field",
        (
            "DecisionMambaConfig",
            "DecisionMambaConfig.from_preset",
            "DecisionMambaModel",
            "DecisionMambaModel.forward",
            "DecisionMambaOutput",
            "DecisionMambaProcessor",
            "DecisionMambaCache",
            "DecisionMLPConfig",
            "DecisionMLPModel",
            "EncodedDecisionTransformerConfig",
            "EncodedDecisionTransformerModel",
            "convert_official_checkpoint",
        ),
    ),
    (
        "Acting",
        "[README](../README.md#act) and [its end](../README.md#deploy)",
        (
            "DecisionMambaPolicy",
            "DecisionMambaPolicy.from_pretrained",
            "DecisionMambaPolicy.act",
            "DecisionMambaPolicy.reset",
            "DecisionMambaPolicy.reset_rows",
            "export_policy",
        ),
    ),
    (
        "Evaluation",
        "[README](../README.md#evaluate)",
        (
            "evaluate_policy",
            "EvaluationResult",
            "EvaluationResult.summary",
            "EvaluationResult.table",
            "EvaluationResult.plot",
            "EvaluationResult.save",
            "normalized_score",
        ),
    ),
    (
        "Studies",
        "[studies.md](studies.md): the file, what is written; [protocol.md](protocol.md): the rules, and why",
        ("run_study", "StudyResult", "StudyResult.summary", "StudyResult.table", "StudyResult.save"),
    ),
    (
        "Looking inside",
        "[README](../README.md#look-inside), [notebooks/look_inside.ipynb](../notebooks/look_inside.ipynb)",
        ("inspect_checkpoint", "plot_inspection", "hidden_attention", "effective_context"),
    ),
    ("Sharing", "[README](../README.md#share)", ("push_to_hub", "write_model_card")),
)
_MOST_ARGUMENTS = 20  # of a config's fields nobody reads a line


def render() -> str:
    """The page as text."""
    lines = [HEADER]
    for heading, more, names in SECTIONS:
        lines.append(f"\n## {heading}\n\n{more}.\n\n")
        lines += [f"* `{name}{_signature(_found(name))}`\n  {_first_sentence(_found(name))}\n" for name in names]
    lines.append(f"\n`__version__` is {hdm.__version__!r}.\n".replace("'", "`"))
    return "".join(lines)


def _found(name: str) -> Any:
    found: Any = hdm
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _signature(found: Any) -> str:
    """The arguments with their defaults, without types; too many are left out."""
    parameters = [entry for entry in inspect.signature(found).parameters.values() if entry.name != "self"]
    if len(parameters) > _MOST_ARGUMENTS:
        return "(...)"
    plain = [
        entry.replace(annotation=entry.empty, default=entry.default if _is_plain(entry.default) else ...)
        if entry.default is not entry.empty
        else entry.replace(annotation=entry.empty)
        for entry in parameters
    ]
    return str(inspect.Signature(plain)).replace("Ellipsis", "...")


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _first_sentence(found: Any) -> str:
    text = " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.:;])\s(?=[A-Z])", text)[0].removesuffix(":")


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
    print(PATH)
