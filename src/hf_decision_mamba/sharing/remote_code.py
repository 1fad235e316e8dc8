"""The model's code beside its weights, so that a checkpoint acts where this package is not installed.

transformers loads such code with `trust_remote_code=True`: `auto_map` in the JSON files names the classes, and the
loader follows the relative imports from file to file. So what travels is what it will look for, found by its own walk.
Source: transformers' `dynamic_module_utils`.
"""

import inspect
import json
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from ..model import DecisionMambaConfig, DecisionMambaModel, DecisionMambaProcessor
from ..reporting.files import CONFIG_FILE, PROCESSOR_FILE, replacing, write_json

#: The classes behind transformers' `Auto` classes, by the file of a checkpoint that names them.
AUTO_CLASSES: dict[str, dict[str, type]] = {
    CONFIG_FILE: {"AutoConfig": DecisionMambaConfig, "AutoModel": DecisionMambaModel},
    PROCESSOR_FILE: {
        "AutoFeatureExtractor": DecisionMambaProcessor,
        "AutoProcessor": DecisionMambaProcessor,
    },
}


def _source_files() -> dict[str, Path]:
    """Return the files of `model/` that the classes need, by their names."""
    classes = {cls for classes in AUTO_CLASSES.values() for cls in classes.values()}
    starts = [inspect.getfile(cls) for cls in classes]
    paths = {Path(file) for start in starts for file in (start, *get_relative_import_files(start))}
    return {path.name: path for path in sorted(paths)}


_SOURCES = _source_files()
CODE_FILES = tuple(_SOURCES)  # names of the files at the top of a checkpoint


def write_model_code(folder: str | Path) -> list[Path]:
    """Put the model's code into a checkpoint folder, and the classes' names into its JSON files.

    Code that is there already is replaced by that of the installed package. A model that is not a `DecisionMambaModel`
    gets none: transformers has the code of its own models, and `DecisionMLPModel` needs this package.

    Args:
        folder: the checkpoint folder.

    Returns:
        Paths of the code files; none for another architecture.

    Raises:
        FileNotFoundError: the folder holds no config.json.
    """
    folder = Path(folder)
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if config.get("model_type") != DecisionMambaConfig.model_type:
        return []
    for name, source in _SOURCES.items():
        with replacing(folder / name) as draft:
            shutil.copyfile(source, draft)
    for name, classes in AUTO_CLASSES.items():
        if (folder / name).is_file():
            _set_auto_map(folder / name, {auto: _reference(cls) for auto, cls in classes.items()})
    return [folder / name for name in _SOURCES]


def _reference(cls: type) -> str:
    """Return `file.Class`, as the loader takes it; both in the repository itself."""
    return f"{Path(inspect.getfile(cls)).stem}.{cls.__name__}"


def _set_auto_map(path: Path, auto_map: dict[str, str]) -> None:
    """Note the classes in a JSON file, written as transformers writes it; never half written."""
    content = json.loads(path.read_text(encoding="utf-8")) | {"auto_map": auto_map}
    write_json(path, content, sort_keys=True)
