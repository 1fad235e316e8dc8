"""`pytest tests/golden` names every case; in a run of all tests they are dots like the others."""

from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Be verbose where nothing but this folder is asked for."""
    asked = [Path(argument.split("::")[0]).resolve() for argument in config.args]
    if all(path.is_relative_to(Path(__file__).parent) for path in asked):
        config.option.verbose = max(1, config.option.verbose)
