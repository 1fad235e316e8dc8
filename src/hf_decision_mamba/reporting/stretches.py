"""The history of a run as its files tell it: stretches of steps, each with the settings that it was trained with."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: The schedules that do not read `warmup_steps`.
WITHOUT_WARM_UP = ("constant", "reduce_lr_on_plateau", "greedy")
# What begins no new stretch of a run, as no step depends on it: when it is saved, which weights are taken in the end.
_NO_STRETCH = re.compile(r"save_|load_best|metric_for|greater_is|gymnasium|mujoco|ale-py|opencv")


def all_of(stretch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a stretch, its hardware and its versions, by name; nothing where they were not kept."""
    if stretch["settings"] is None:
        return {}
    return {**stretch["settings"], "hardware": stretch["hardware"], **stretch["versions"]}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two stretches of a run, by name: settings, hardware, versions, before and after."""
    old, new = all_of(before), all_of(after)
    names = [name for name in {**old, **new} if not _NO_STRETCH.match(name)]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def varying_settings(stretches: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is not the same in all stretches of a run, as far as it is known of them."""
    known = [part for part in stretches if part["settings"] is not None]
    return list({name: None for part in known[1:] for name in changes(known[0], part)})


def go_on(stretches: Sequence[Mapping[str, Any]], step: int, now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the stretches of a run that goes on at `step`: one more, unless the last one goes on as it is.

    Args:
        stretches: those so far.
        step: which the run has reached.
        now: `settings`, `hardware` and `versions` from there on.
    """
    last = stretches[-1] if stretches else None
    if last is None or last["settings"] is None or changes(last, now):
        return [*map(dict, stretches), {"from_step": step, "to_step": step, **now}]
    return [*map(dict, stretches[:-1]), {**last, **now}]


def is_of_one_piece(record: Mapping[str, Any]) -> bool:
    """Return whether the settings of a training.json are those of the whole run, to the last step that they ask for."""
    stretches, steps = record.get("stretches"), (record.get("arguments") or {}).get("max_steps", -1)
    known = stretches is None or (len(stretches) == 1 and stretches[0]["settings"] is not None)
    return known and (steps < 1 or steps == record.get("global_step"))
