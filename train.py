"""Train a decision model: `accelerate launch train.py [settings.yaml] [--setting value ...]`; see `--help`."""

from pathlib import Path

from hf_decision_mamba.training import main, report_user_errors

if __name__ == "__main__":
    with report_user_errors():
        main(default_config=Path(__file__).parent / "configs" / "hopper-medium-replay.yaml")
