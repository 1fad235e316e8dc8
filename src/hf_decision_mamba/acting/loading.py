"""Loading a model of any class, when its config and weights can be trusted."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoModel, PreTrainedModel

from ..model.checkpoint_decision_mamba import (
    DAMAGE,
    CheckedConfig,
    check_config_file,
    check_sizes,
    in_short,
    load_checked,
)
from .checks import check_model_type


def load_model(path_or_repo_id: str | os.PathLike[str], **hub_kwargs: Any) -> PreTrainedModel:
    """Load a model of any class when its config and weights can be trusted; each of ours checks itself.

    Args, raises: as `DecisionMambaPolicy.from_pretrained`.
    """
    try:
        settings = check_config_file(path_or_repo_id, **hub_kwargs)
        if settings is not None and not hub_kwargs.get("trust_remote_code"):
            check_model_type(settings.get("model_type"))
        config = AutoConfig.from_pretrained(path_or_repo_id, **hub_kwargs)
        load = partial(AutoModel.from_pretrained, path_or_repo_id, config=config)
        if isinstance(config, CheckedConfig):
            return load(**hub_kwargs)
        check_sizes(config)
        return load_checked(load, lambda: AutoModel.from_config(config), path_or_repo_id, **hub_kwargs)
    except OSError as error:
        raise OSError(f"No checkpoint can be loaded from {path_or_repo_id}: {in_short(error)}") from error
    except DAMAGE as error:
        if isinstance(error, ValueError) and str(error).startswith(f"The weights of {path_or_repo_id} "):
            raise
        raise ValueError(f"The checkpoint in {path_or_repo_id} cannot be loaded: {in_short(error)}") from error


def is_missing(path_or_repo_id: str | os.PathLike[str], error: BaseException | None) -> bool:
    """Tell whether an error of loading the processor means that the checkpoint has no preprocessor_config.json."""
    if os.path.isdir(path_or_repo_id):
        return not os.path.isfile(os.path.join(path_or_repo_id, "preprocessor_config.json"))
    while error is not None:
        if isinstance(error, EntryNotFoundError):
            return not isinstance(error, LocalEntryNotFoundError)
        error = error.__cause__ or error.__context__
    return False
