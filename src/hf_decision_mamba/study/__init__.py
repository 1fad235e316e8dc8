"""Studies: models x data sets x seeds from one YAML file, as tables and pictures that can be believed.

`plan` reads and checks the file, `runner` keeps processes busy, `worker` is one of them, `scoring` plays the last
checkpoints, `statistics` says what seeds and data sets say together, `results` and `figures` tell it.
"""

from .results import StudyResult
from .runner import run_study

__all__ = ["StudyResult", "run_study"]
