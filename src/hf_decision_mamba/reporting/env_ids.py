"""What the id of an environment says by itself: whether it is one, and which module registers it."""

from __future__ import annotations

import re

#: gymnasium's grammar of ids: [module:][namespace/]name[-vN].
_ENV_ID = re.compile(r"([^\W\d][\w.]*:)?([\w:-]+/)?[\w:.-]+")
_LONGEST_ENV_ID = 200

ROBOTICS = r"(Fetch(Reach|Push|Slide|Pick)|Hand(Reach|Manipulate)|Adroit|FrankaKitchen|AntMaze|PointMaze)\w*-v\d+"

POPGYM = r"popgym-\w+-v\d+"

OGBENCH = r"(visual-)?(pointmaze|antmaze|humanoidmaze|antsoccer|cube|scene|puzzle|powderworld)(-\w+)*-v\d+"


def is_env_id(name: object) -> bool:
    """Return whether something has the form of a gymnasium id, known or not: it may stand in code that others copy."""
    return isinstance(name, str) and len(name) <= _LONGEST_ENV_ID and _ENV_ID.fullmatch(name) is not None


def registering_module(env_id: str | None) -> str | None:
    """Return the module that makes an environment known to gymnasium where its id does not name it."""
    if is_atari(env_id or ""):
        return "ale_py"
    if (env_id or "").startswith("hf_decision_mamba/"):
        return "hf_decision_mamba.tasks"
    if re.fullmatch(POPGYM, env_id or ""):
        return "popgym"
    if re.fullmatch(OGBENCH, env_id or ""):
        return "ogbench"
    return "gymnasium_robotics" if re.fullmatch(ROBOTICS, env_id or "") else None


def is_atari(env_id: str) -> bool:
    """Return whether an id is that of a game of Atari."""
    return re.search(r"(^|:)ALE/|NoFrameskip-v\d+$", env_id) is not None
