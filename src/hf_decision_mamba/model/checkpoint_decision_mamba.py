# Copyright 2026
"""What a checkpoint must be before it is used: safetensors in its own folder, undamaged, and fitting its config.

transformers alone would also read pickles, follow any file name that an index gives, and draw missing weights at random
with a warning. Nothing is signed: a config may be edited by hand, and every value of it is checked.

Whatever a file of a checkpoint says, it ends in a ValueError or an OSError before memory is taken for what it declares.
"""

import json
import os
import re
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.utils import cached_file, is_peft_available

#: What this version writes, and the newest that it reads. It covers the whole folder: config, weights and processor.
FORMAT_VERSION = 1

#: The smallest and the largest value of every size. The largest are far beyond any real model; they keep a damaged or
#: malicious config from asking for more memory than there is.
SIZE_LIMITS: dict[str, tuple[int, int]] = {
    "state_dim": (1, 2**20),
    "act_dim": (1, 2**20),
    "goal_dim": (1, 2**20),
    "hidden_size": (1, 2**16),
    "embedding_size": (1, 2**16),
    "n_layer": (1, 2**10),
    "n_inner": (1, 2**18),
    "n_head": (1, 2**12),
    "n_positions": (1, 2**20),
    "max_ep_len": (1, 2**30),
    "num_channels": (1, 2**10),
    "image_size": (1, 2**12),
    "local_mixer_window": (1, 2**12),
    "state_size": (1, 2**12),
    "expand": (1, 2**6),
    "head_dim": (1, 2**16),
    "conv_kernel": (0, 2**12),
    "time_step_rank": (1, 2**16),
}
#: The largest number of parameters of one model, all sizes together.
MAX_PARAMETERS = 50 * 10**9

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
#: Settings of transformers that are no fields of its configs.
_OF_TRANSFORMERS = {
    *("model_type", "num_labels", "torch_dtype", "name_or_path", "output_attentions", "attn_implementation"),
    *("_attn_implementation", "experts_implementation", "_experts_implementation"),
}
#: Settings with which transformers would read other files, or weights of another kind.
_REFUSED = {
    "transformers_weights": "another name for model.safetensors",
    "configuration_files": "the names of other config files",
    "quantization_config": "weights that are not floating",
    "per_layer_config": "layers that differ from one another",
}
_MOST_LABELS = 2**16  # of classifiers, which none of the models here is
_LONGEST_REASON = 1000
#: What a value of an unexpected kind leads to, in Python and in transformers.
DAMAGE: tuple[type[Exception], ...] = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError),
    *(StrictDataclassError, ValueError),
)


# ------------------------------------------------------------------------------------------------------------- config


def check_sizes(config: Any) -> None:
    """Refuse sizes outside of SIZE_LIMITS; a config need not have all of them, and None stays None."""
    for name, (lowest, highest) in SIZE_LIMITS.items():
        value = getattr(config, name, None)
        if value is not None and not lowest <= value <= highest:
            raise ValueError(f"{name}={shown(value)} must be at least {lowest} and at most {highest}.")


def check_settings(content: Any, name: str = "config.json") -> dict[str, Any]:
    """Return what a config file says, of any class of model, when transformers can make a config of it.

    Raises:
        ValueError: it is no object, has absurdly many labels, a type of numbers that is none of weights, or settings
            with which transformers would read other files.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds a {type(content).__name__}, not an object; get the file again.")
    for setting, what in _REFUSED.items():
        if content.get(setting) is not None:
            raise ValueError(f"{name} has {setting}, {what}; remove it.")
    labels, names = content.get("num_labels"), content.get("id2label")
    if labels is not None and not (type(labels) is int and 0 <= labels <= _MOST_LABELS):
        raise ValueError(f"{name}: num_labels must be a whole number of at most {_MOST_LABELS}; remove it.")
    if names is not None and not (isinstance(names, dict) and len(names) <= _MOST_LABELS):
        raise ValueError(f"{name}: id2label must be an object with at most {_MOST_LABELS} entries; remove it.")
    for setting in ("dtype", "torch_dtype"):
        dtype = content.get(setting)
        known = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
        if known is not None and not (isinstance(known, torch.dtype) and known.is_floating_point):
            raise ValueError(f"{name}: {setting}={shown(known)} is not floating; weights are.")
    for setting in ("attn_implementation", "_attn_implementation"):
        implementation = content.get(setting)
        if implementation is not None and not (isinstance(implementation, str) and implementation.isidentifier()):
            raise ValueError(f'{name}: {setting} must be the name of an implementation such as "eager"; remove it.')
    return content


def check_config_file(path: str | os.PathLike[str], **kwargs: Any) -> dict[str, Any] | None:
    """Check the config of a checkpoint of any class, before transformers makes one of it.

    Args:
        path: folder or repository, or the file.
        kwargs: arguments of `from_pretrained`.

    Returns:
        What it says; None where there is none, which is for transformers to say.

    Raises:
        OSError, ValueError: the file cannot be read, or `check_settings` refuses it.
    """
    file = os.fspath(path) if os.path.isfile(path) else cached_file(path, "config.json", **_hub_arguments(kwargs))
    if file is None:
        return None
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({in_short(error)}); get the file again.") from error
    return check_settings(content, file)


def _hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Select the arguments of `from_pretrained` that `cached_file` knows; of a missing file it shall return None."""
    given = {name: value for name, value in kwargs.items() if name in _HUB_ARGUMENTS and value is not None}
    return {**given, "_raise_exceptions_for_missing_entries": False}


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn whatever a file of an unexpected kind leads to into one ValueError that names it.

    Raises:
        ValueError: something other than a ValueError or OSError went wrong.
    """
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, (ValueError, OSError)):
            raise
        raise ValueError(f"{name} cannot be read ({in_short(error)}); get the file again.") from error


def in_short(error: BaseException) -> str:
    """Shorten what an error says to one line of bounded length that any terminal can show."""
    try:
        line = " ".join(str(error).split())
    except ValueError:  # a number that is too long to be shown
        line = type(error).__name__
    line = line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} ..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


class CheckedJSON:
    """Of what reads itself from JSON: the file is read as `from_dict` reads a dictionary, with all of its checks."""

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Any:
        """Read a file."""
        return cls.from_dict(json.loads(Path(json_file).read_text(encoding="utf-8")))  # type: ignore[attr-defined]


def without_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """Leave out the checksum that earlier versions wrote."""
    return {key: value for key, value in content.items() if key != "checksum"}


class CheckedConfig(CheckedJSON):
    """Of a config: whatever is wrong with its file is a ValueError before anything is built from it."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        self.validate_architecture()  # @strict does it again, but wraps the error in one of its own

    def validate_architecture(self) -> None:
        """Refuse another format, and sizes outside of SIZE_LIMITS; `@strict` validation calls this."""
        _check_format_version(self.format_version)  # type: ignore[attr-defined]
        check_sizes(self)
        dtype = self.dtype  # type: ignore[attr-defined]
        if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
            raise ValueError(f"dtype={dtype} is not floating; weights are.")
        super().validate_architecture()  # type: ignore[misc]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a config as PreTrainedConfig does, from checked settings.

        Raises:
            ValueError: a newer format, or a value from which no model can be built.
        """
        content = check_settings(config_dict)
        _check_format_version(content.get("format_version", 1))
        content = without_checksum(content)
        known = {*(field.name for field in fields(cls)), *cls.attribute_map, *_OF_TRANSFORMERS}  # type: ignore[attr-defined,arg-type]
        for setting in content:
            if setting not in known and hasattr(
                cls, setting
            ):  # a method or a property, which it would take the place of
                raise ValueError(f"config.json has {setting}, which is no setting; remove it.")
        with readable("config.json"):
            loaded = super().from_dict(content, **kwargs)  # type: ignore[misc]
            (loaded[0] if isinstance(loaded, tuple) else loaded).validate()  # with what kwargs changed
        return loaded

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Read the settings as PreTrainedConfig does, and check them.

        Raises:
            OSError, ValueError: the file cannot be read, or `check_settings` refuses it.
        """
        check_config_file(pretrained_model_name_or_path, **kwargs)
        return super().get_config_dict(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]


def _check_format_version(version: Any) -> None:
    if type(version) is int and FORMAT_VERSION < version < 10**6:
        raise ValueError(
            f"This checkpoint has format_version={version}, and this hf_decision_mamba knows up to {FORMAT_VERSION}: "
            "upgrade hf_decision_mamba."
        )
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(f"format_version={shown(version)} must be a whole number from 1 to {FORMAT_VERSION}.")


def shown(value: Any) -> str:
    """Write a value of a file as an error shows it."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a number of more digits than Python shows
        return f"a long {type(value).__name__}"


# ------------------------------------------------------------------------------------------------------------ weights


class CheckedWeights:
    """Of a model: loading refuses weights that do not fit or cannot be trusted."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load as PreTrainedModel does, but only safetensors, and refuse weights that do not fit the config.

        `ignore_mismatched_sizes=True` allows other shapes (these weights are drawn anew, to fine-tune on other
        dimensions). With `output_loading_info=True` missing and additional weights are the caller's to judge.

        Raises:
            OSError: there are no safetensors weights.
            ValueError: weights that are missing, additional, of another shape, not floating or not finite (the message
                names them), a damaged file, an index that names files elsewhere, or `use_safetensors=False`.
        """
        load: Callable[..., Any] = super().from_pretrained  # type: ignore[misc]
        path = pretrained_model_name_or_path
        if path is None:
            return load(path, *model_args, config=config, **kwargs)

        def build() -> Any:
            known: Any = path if config is None else config
            if not isinstance(known, PreTrainedConfig):
                known = cls.config_class.from_pretrained(known, **kwargs)  # type: ignore[attr-defined]
            return cls(known, *model_args)  # type: ignore[call-arg]

        return load_checked(lambda **rest: load(path, *model_args, config=config, **rest), build, path, **kwargs)


def load_checked(
    load: Callable[..., Any],
    build: Callable[[], nn.Module],
    path: str | os.PathLike[str],
    *,
    use_safetensors: bool | None = None,
    output_loading_info: bool = False,
    ignore_mismatched_sizes: bool = False,
    **kwargs: Any,
) -> Any:
    """Load a model of any class, when its weights are safe to read and fit.

    Args:
        load: loads it, given the remaining arguments.
        build: builds the same model, for its names and shapes; no memory is taken by its weights.
        path: folder or repository.
        use_safetensors, output_loading_info, ignore_mismatched_sizes, kwargs: arguments of `from_pretrained`.

    Returns:
        What `load` returned.

    Raises:
        OSError, ValueError: as `CheckedWeights.from_pretrained`.
    """
    if use_safetensors is False:
        raise ValueError("use_safetensors=False: pickled weights are never read; leave it out.")
    stored = {}
    for file in _weight_files(path, **kwargs):
        stored.update(_read_tensors(file))
    if not output_loading_info:
        with torch.device("meta"), init.no_init_weights():
            _check_tensors(path, build(), stored, ignore_mismatched_sizes)
    loaded = load(
        use_safetensors=True,
        output_loading_info=output_loading_info,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        **kwargs,
    )
    model = loaded[0] if output_loading_info else loaded
    for name, tensor in model.state_dict().items():
        if tensor.device.type != "meta" and not torch.isfinite(tensor).all():
            raise ValueError(f"The weights of {path} cannot be used: {name!r} is not finite.")
    return loaded


def _weight_files(path: str | os.PathLike[str], variant: str | None = None, **kwargs: Any) -> list[str]:
    """Find the safetensors files of a checkpoint, on this machine; refuse pickles and files elsewhere."""
    hub = _hub_arguments(kwargs)
    if os.path.isfile(path):
        files = [os.fspath(path)]
    else:
        suffix = "" if variant is None else f".{variant}"
        single = cached_file(path, f"model{suffix}.safetensors", **hub)
        index = None if single else cached_file(path, f"model.safetensors.index{suffix}.json", **hub)
        names = [] if index is None else _shard_names(index)
        found = [single] if single else [cached_file(path, name, **hub) for name in names]
        for name, file in zip(names, found, strict=False):
            if file is None:
                raise ValueError(f"{index} names {name}, which {path} does not have.")
        files = [file for file in found if file is not None]
    if not files or not all(file.endswith(".safetensors") for file in files):
        raise OSError(
            f"{path} has no weights in model.safetensors, the only format that is read: pickles (pytorch_model.bin, "
            ".pt) can run code. Save them again with model.save_pretrained(...)."
        )
    parts = Path(path, kwargs.get("subfolder") or "").glob("shard-*-model-*.safetensors")
    if is_peft_available() and cached_file(path, "adapter_config.json", **hub) is not None:
        raise OSError(f"{path} holds an adapter, which names the model that it belongs to; merge both, and save that.")
    if any(parts):  # which transformers would read instead of the files found here
        raise OSError(f"{path} is a distributed checkpoint; save it again with model.save_pretrained(...).")
    return files


def _shard_names(index: str) -> list[str]:
    """Read the file names in an index of sharded weights: plain names, which stay inside of the folder."""
    try:
        content = json.loads(Path(index).read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
        content["metadata"].items()
        strange = [name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", name)]
    except DAMAGE as error:
        raise ValueError(f"{index} is not an index of weights ({in_short(error)}); get the file again.") from error
    if strange:
        raise ValueError(f"{index} names {shown(strange[0])}; weights must be .safetensors files beside it.")
    return names


def _read_tensors(file: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Read the type and shape of every tensor in a safetensors file."""
    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: (entry.get_dtype(), tuple(entry.get_shape())) for name, entry in slices.items()}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is damaged and cannot be read ({in_short(error)}); get the file again.") from error


def _check_tensors(
    path: str | os.PathLike[str],
    model: nn.Module,
    stored: dict[str, tuple[str, tuple[int, ...]]],
    ignore_mismatched_sizes: bool,
) -> None:
    """Refuse weights of other names, shapes or types than the model has."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shared = sorted(expected.keys() & stored.keys())
    dispensable = re.compile("|".join(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ["(?!)"]))
    problems = {
        "missing": sorted(expected.keys() - stored.keys()),
        "not part of the model": sorted(
            name for name in stored.keys() - expected.keys() if not dispensable.search(name)
        ),
        "not floating": [name for name in shared if not stored[name][0].startswith(("F", "BF"))],
        "of another shape": [
            f"{name} {shown(stored[name][1])} instead of {expected[name]}"
            for name in shared
            if stored[name][1] != expected[name] and not ignore_mismatched_sizes
        ],
    }
    found = [f"{len(names)} {problem} ({_shortened(names)})" for problem, names in problems.items() if names]
    if found:
        raise ValueError(
            f"The weights of {path} do not match its config.json: {'; '.join(found)}. Use the config that the weights "
            "were saved with."
        )


def _shortened(names: list[str], count: int = 5) -> str:
    first = (name if len(name) <= 100 else f"{name[:100]}..." for name in names[:count])
    return ", ".join(first) + (", ..." if len(names) > count else "")
