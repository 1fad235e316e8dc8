"""The version of the package, where the build finds it and every room may read it."""

__version__ = "0.1.0"
