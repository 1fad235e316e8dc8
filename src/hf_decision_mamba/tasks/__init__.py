"""Environments of our own, in which the past decides: small, quick, and importable without MuJoCo.

`import hf_decision_mamba.tasks` makes them known to gymnasium under `hf_decision_mamba/`; the package's own commands do
so by themselves.
"""

from .t_maze import TMaze, register_tasks

register_tasks()

__all__ = ["TMaze", "register_tasks"]
