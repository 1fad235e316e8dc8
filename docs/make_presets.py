"""Write docs/presets.md, the table of every preset field by field: `python docs/make_presets.py`."""

from dataclasses import fields
from pathlib import Path

from transformers import PreTrainedConfig

from hf_decision_mamba import DecisionMambaConfig, DecisionMambaModel
from hf_decision_mamba.model import PRESETS

PATH = Path(__file__).with_name("presets.md")
HEADER = """# Presets, field by field

What `DecisionMambaConfig.from_preset(name, ...)` sets; a dot is the default of the first column. Sizes of the data
(`state_dim`, `act_dim`, `max_ep_len`) come from the caller. Written by `python docs/make_presets.py`.

"""
FOOTER = """
Where the authors' released code differs from their paper or has a mistake, these models do the right thing:

* DeMa's code trains on (R_{t-1}, a_{t-1}, s_t) and acts on (R_t, a_{t-1}, s_t). Here both are the second, as the
  paper's text says.
* The attention mask of DeMa, Decision MetaMamba and Decision Mamba never reaches the recurrence, so that padding
  changes the first decisions. Here padding changes nothing.
* Decision MetaMamba keeps the local mixer of its antmaze and kitchen models in an unregistered list, where it is
  never trained. Here (`share_local_mixer`) it is a parameter like any other.
* The first generation's "line" mixer interleaves its three outputs along the channels instead of the tokens, so that
  each channel passes one matrix whatever the token. `convert_official_checkpoint` folds the three into that one.
* Decision MetaMamba overwrites Mamba's initial step sizes with a constant 0.69. Here they are Mamba's own.

Not covered: DeMa's variant with one return token an episode (`reward_type="K"`), Decision Mamba without action tokens
(`remove_act_embs`) and its Atari model. The first two change what a step contributes to the sequence, the third adds
a table of token positions and one of window positions, which recurrent acting cannot continue past its length.
"""


def render() -> str:
    """The page as text."""
    inherited = {entry.name for entry in fields(PreTrainedConfig)} | {"state_dim", "act_dim", "max_ep_len"}
    names = [entry.name for entry in fields(DecisionMambaConfig) if entry.name not in inherited]
    defaults = DecisionMambaConfig()
    presets = {name: DecisionMambaConfig.from_preset(name, state_dim=11, act_dim=3) for name in PRESETS}
    rows = [["field", "default", *presets], ["---"] * (len(presets) + 2)]
    for name in names:
        default = getattr(defaults, name)
        values = [getattr(config, name) for config in presets.values()]
        shown = [_cell(value) if value != default else "·" for value in values]
        if any(cell != "·" for cell in shown):
            rows.append([f"`{name}`", _cell(default), *shown])
    counts = [f"{DecisionMambaModel(config).num_parameters():,}" for config in presets.values()]
    rows.append(["parameters (11 state dimensions, 3 actions)", "", *counts])
    return HEADER + "".join(f"| {' | '.join(row)} |\n" for row in rows) + FOOTER


def _cell(value: object) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
    print(PATH)
