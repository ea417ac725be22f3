"""Where metrics go besides the run's metrics.csv: Lightning's own loggers, with the settings and the final errors."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from nin.config import Config, consequential, settings_of
from nin.errors import SettingError
from nin.run.record import Record

FINAL = ("test_error", "train_error", "val_error")


def check_logger(config: Config) -> None:
    """Raises SettingError where the package of the logger is not installed."""
    if config.logger.name != "wandb":
        return
    try:
        metadata.version("wandb")
    except metadata.PackageNotFoundError:
        reason = "requires the package wandb: pip install 'network-in-network[wandb]'"
        raise SettingError("logger.name", "wandb", reason) from None


def build_logger(config: Config, folder: Path) -> Logger | bool:
    """The logger of these settings, whose files go into the run's folder; False where metrics.csv is all.

    Weights & Biases reads its own environment: WANDB_MODE=offline keeps everything on this machine.

    Raises:
        SettingError: its package is not installed.
    """
    check_logger(config)
    if config.logger.name == "tensorboard":
        return TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    if config.logger.name == "wandb":
        return WandbLogger(name=folder.name, project=config.logger.project, save_dir=folder)
    return False


def log_settings(logger: Logger | None, config: Config) -> None:
    """Logs the settings that the result depends on. TensorBoard logs them with the result."""
    if logger is not None and not isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(_hyperparameters(config))


def log_result(logger: Logger | None, config: Config, record: Record, step: int) -> None:
    """Logs the run's final errors in % and ends the logger's run."""
    if logger is None:
        return
    errors = {f"final/{name}": getattr(record, name) for name in FINAL if getattr(record, name) is not None}
    if isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(_hyperparameters(config), errors, step)
    else:
        logger.log_metrics(errors, step)
    logger.finalize("success")
    if isinstance(logger, WandbLogger):
        logger.experiment.finish()  # the next run of this process would write into it


def _hyperparameters(config: Config) -> dict[str, Any]:
    """The settings by dotted name; what is neither a number, a text nor a truth value as text."""
    settings = consequential(settings_of(config))
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in settings.items()}
