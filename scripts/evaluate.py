"""Evaluates a trained net on its test set, in fp32.

python scripts/evaluate.py checkpoint=runs/2026-11-21_18-00-00_digits_gap_0        a run's folder
python scripts/evaluate.py checkpoint=weights.safetensors data.root=FOLDER         a weights file
"""

from pathlib import Path

from nin import config, run


def main(settings: config.Config, folder: Path) -> None:
    if settings.checkpoint is None:
        raise config.ConfigError("checkpoint= must be given: a run's folder or a weights file")
    print(f"test error {run.evaluate_checkpoint(settings):.2f} %")


if __name__ == "__main__":
    config.command(Path(__file__).parents[1] / "conf", main, "nofolder")
