"""Train a decision model: `accelerate launch train.py [settings.yaml] [--setting value ...]`; see `--help`."""

import os
from pathlib import Path
from threading import Timer

if __name__ == "__main__":
    patience = Timer(1.0, print, ["imports      loading torch and transformers"], {"flush": True})
    if os.environ.get("RANK", "0") == "0":
        patience.start()
    from hf_decision_mamba.reporting.console import report_user_errors
    from hf_decision_mamba.training.run import main

    patience.cancel()
    with report_user_errors():
        main(default_config=Path(__file__).parent / "configs" / "hopper-medium-replay.yaml")
