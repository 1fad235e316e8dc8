"""The versions of the packages that a result depends on."""

from __future__ import annotations

from importlib import metadata

from ._version import __version__


def package_versions(*more: str) -> dict[str, str]:
    """Return the versions of what a result depends on, and of `more`, as far as these packages are installed."""
    versions = {"hf_decision_mamba": __version__}
    for package in ("torch", "transformers", "gymnasium", "mujoco", "ale-py", "opencv-python-headless", *more):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
