"""Rooms: arrows point down, there are no circles, nothing inside uses the front door. Docstrings begin with a verb."""

import ast
from pathlib import Path

import pytest

import hf_decision_mamba

HOUSE = Path(hf_decision_mamba.__file__).parent
#: The rooms from the roof to the ground; a room uses those of the floors below its own, and no other.
FLOORS = (
    {"cli"},
    {"study"},
    {"info", "training", "collecting", "analysis"},
    {"evaluation"},
    {"data", "acting", "baselines", "sharing", "conversion"},
    {"model", "reporting", "tasks", "views"},
)
#: First words of docstrings that say what something is, where a function's says what it does.
NO_VERBS = {
    *("A", "All", "An", "Another", "Any", "As", "At", "Both", "By", "Each", "Every", "Everything", "For", "From"),
    *("How", "If", "In", "It", "Its", "No", "None", "Of", "One", "Our", "Part", "Same", "Some", "Such", "That", "The"),
    *("Their", "These", "They", "This", "Those", "To", "True", "Values", "What", "Whatever", "When", "Where"),
    *("Whether", "Which", "Who", "Whose", "Why", "With", "Arguments", "Number", "Numbers", "Shape", "Width"),
}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports anywhere in it, dotted from the package on; "" is the package."""
    place, found = path.relative_to(HOUSE).parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == HOUSE.name}
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            if node.level:
                module = [*place[: len(place) - node.level + 1], *module]
            elif module[:1] != [HOUSE.name]:
                continue
            else:
                module = module[1:]
            found |= {".".join(module)} if module else {alias.name for alias in node.names}
    return found


def test_every_room_has_its_floor():
    files = [path for path in HOUSE.iterdir() if path.name[0] not in "_." and path.name != "py.typed"]
    assert {path.stem for path in files} == {*FLOOR}


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_arrows_point_down(room):
    files = [HOUSE / f"{room}.py"] if (HOUSE / f"{room}.py").is_file() else [*(HOUSE / room).rglob("*.py")]
    assert files
    for path in files:
        for module in imports(path):
            other = module.split(".")[0]
            assert other in FLOOR, f"{path} imports {module or 'the front door'}"
            assert other == room or FLOOR[other] > FLOOR[room], f"{path} imports {module}, which is not below it"


def is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in function.decorator_list}
    return bool(names & {"property", "cached_property"})


def test_docstrings_of_functions_begin_with_a_verb():
    found = []
    for path in HOUSE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_property(node):
                first = (ast.get_docstring(node) or "Do").split()[0].rstrip(",.")
                if not first.isalpha() or not first[0].isupper() or first in NO_VERBS:
                    found.append(f"{path.name}:{node.lineno} {node.name}: {first}")
    assert not found


#: Private names of ours that others call: IPython, transformers' Trainer.
CALLED_BY_OTHERS = {"_repr_png_", "_save_checkpoint"}


def private_names(folder: Path) -> set[str]:
    """What the files of a folder define for themselves: functions, classes, variables and attributes."""
    found = set()
    for node in (node for path in folder.rglob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def test_no_test_holds_a_private_name():
    """So that a name may change where no behaviour does."""
    tests = Path(__file__).parent
    private, held = private_names(HOUSE) - private_names(tests) - CALLED_BY_OTHERS, []
    for path in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = {ast.Attribute: "attr", ast.alias: "name", ast.Constant: "value"}.get(type(node), "")
            if str(getattr(node, name, "")).rpartition(".")[2] in private:  # setattr has it as a text
                held.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    assert not held
