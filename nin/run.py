"""One training run: estimate, fit, evaluate, and fill the run's folder (`nin.folder`)."""

from __future__ import annotations

import copy
import ctypes
import json
import pickle
import sys
import time
import warnings
from collections.abc import Sequence, Sized
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch.nn import functional as F

from nin import pretrained
from nin.bounds import shown
from nin.config import Config, ConfigError, resolved
from nin.data.module import SIZES, Images
from nin.data.preprocess import PREPROCESSINGS, Whiten
from nin.folder import alone_in, in_words, look_at_folder, plot_curves, write_summary
from nin.optim import computes_bfloat16
from nin.processes import ending_together, first, join, left_alone, started
from nin.provenance import commit, device_name, peak_memory_gb, versions
from nin.recovery import AtomicCheckpointIO, HeedSignals, MetricsFile, RunError, replace, stoppable
from nin.task import Classifier

ESTIMATE_FROM = 600  # seconds of training from which an estimate is printed
QUICK_EPOCHS = 8  # of conf/recipe/quick.yaml, which the estimate recommends


class RunProgress(TQDMProgressBar):
    """Lightning's bar, which counts down an epoch, with the time left until the run's end."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 20)  # fewer lines in a log file

    def on_train_start(self, trainer: L.Trainer, *rest: Any) -> None:
        super().on_train_start(trainer, *rest)
        self.started, self.started_at = time.monotonic(), trainer.global_step

    def get_metrics(self, trainer: L.Trainer, *rest: Any) -> dict[str, Any]:
        measured = super().get_metrics(trainer, *rest)
        shown = {name: f"{value:.2f}" for name, value in measured.items() if isinstance(value, float)}
        if trainer.training and (done := trainer.global_step - self.started_at):
            seconds = (time.monotonic() - self.started) / done
            shown["left"] = in_words(seconds * (trainer.estimated_stepping_batches - trainer.global_step))
        return shown


class Stopwatch(Callback):
    """Seconds of training: all of them, and those spent on evaluations after an epoch."""

    seconds = evaluating = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.started = time.monotonic() - self.seconds

    def on_validation_start(self, *_: Any) -> None:
        self.paused = time.monotonic()

    def on_validation_end(self, *_: Any) -> None:
        self.evaluating += time.monotonic() - self.paused

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds = time.monotonic() - self.started

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds, "evaluating": self.evaluating}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds, self.evaluating = state_dict["seconds"], state_dict["evaluating"]


def train(config: Config, folder: Path) -> dict[str, Any]:
    """Trains one net and fills `folder`; gives the summary.

    The test set and the images that were held out are evaluated after the last epoch, in fp32, and so is the training
    error, in the run's precision: in eval mode, on unaugmented images.

    With `resume=auto` a run that is in `folder` already goes on after its last whole epoch, bit for bit as if it had
    not been interrupted (on the same machine, with the same number of threads); a finished one is left as it is.

    With several devices each of as many processes calls this (`nin.processes`), and all get the summary.

    Raises:
        nin.config.ConfigError: a folder that holds another run, settings that do not fit the set or the checkpoint, or
            another number of processes than `config.trainer.devices`.
        nin.recovery.RunError: a checkpoint that cannot be written or gone on from, a folder in which another process
            trains, or the end of another process of this run.
        nin.recovery.InterruptedRunError: Ctrl-C or SIGTERM.
        nin.data.DataError: a set that is missing or damaged.
        nin.pretrained.CheckpointError: a checkpoint that cannot be started from.
        nin.task.DeadNetError: training that died.
    """
    quiet()
    keep_freed_memory()
    if config.trainer.devices > 1 and started() != config.trainer.devices:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices}: there is another number of processes; scripts/train.py or "
            "torchrun starts them"
        )
    go_on = f"the same command with resume=auto hydra.run.dir={folder} goes on after the last whole epoch"
    with stoppable(go_on), ending_together():
        watch = Stopwatch()
        saving = ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)
        trainer = build_trainer(
            config,
            precision(config),
            [watch, HeedSignals(), MetricsFile(folder / "metrics.csv"), saving],
            default_root_dir=folder,
            max_epochs=config.trainer.max_epochs,
            gradient_clip_val=config.trainer.gradient_clip_val,
            limit_train_batches=config.trainer.limit_train_batches,
            limit_val_batches=config.trainer.limit_test_batches,
            num_sanity_val_steps=0,
            logger=TensorBoardLogger(folder, name="", version="") if config.logger.name == "tensorboard" else False,
            plugins=[AtomicCheckpointIO()],
        )
        join(trainer)
        finished = look_at_folder(config, folder) if trainer.is_global_zero else None
        if (finished := trainer.strategy.broadcast(finished)) is not None:
            return finished
        with alone_in(folder) if trainer.is_global_zero else nullcontext():
            return _train(config, folder, trainer, watch)


def _train(config: Config, folder: Path, trainer: L.Trainer, watch: Stopwatch) -> dict[str, Any]:
    L.seed_everything(config.seed, verbose=False)
    data = config.build_data()
    with first(trainer):
        start = pretrained.load(config.checkpoint) if config.checkpoint else None
        data.prepare_data()
        for left in folder.glob("hpc_ckpt_*.ckpt"):  # Lightning's on SLURM, of the middle of an epoch: it would go on
            left.unlink()  # from there, and not bit for bit
    if start:
        data.preprocess = start.preprocess
        if type(start.preprocess) is not PREPROCESSINGS[config.data.preprocessing]:
            raise ConfigError(
                f"data.preprocessing={config.data.preprocessing}: the checkpoint was trained with another; choose "
                f"{next(name for name, kind in PREPROCESSINGS.items() if type(start.preprocess) is kind)}"
            )
    data.setup()
    if isinstance(data.preprocess, Whiten) and data.preprocess.shape != data.train_images.shape[1:]:
        raise ConfigError(
            f"data.size={config.data.size}: the checkpoint's whitening is tied to {data.preprocess.shape[1]} pixels"
        )
    net = config.build_net()
    new = pretrained.copy_weights(start, net) if start else []
    if config.freeze:
        if not new:
            raise ConfigError(
                "freeze=true: the checkpoint is for as many classes and brings all layers, none is left to train"
            )
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name in new)
    net.to(memory_format=torch.channels_last)
    task = config.build_task(net)

    data.trainer = trainer  # whose device the batches are made on
    check_limits(config, data)

    summary = {
        "data": config.data.name,
        "head": config.head.name,
        "recipe": config.recipe.name,
        "started_from": config.checkpoint,
        "frozen": config.freeze,
        "epochs": config.trainer.max_epochs,
        "seed": config.seed,
        "parameters": sum(p.numel() for p in net.parameters()),
        "precision": precision(config),
        "device": f"{trainer.world_size} × " * (trainer.world_size > 1) + device_name(trainer.strategy.root_device),
        "versions": versions(),
        "commit": commit(),
    }
    last = folder / "last.ckpt"
    if not last.exists():
        if trainer.is_global_zero:
            replace(folder / "config.yaml", resolved(config))
            write_summary(folder, summary)  # what is known before the first step, so that a run that dies leaves it too
            estimate(task, data, trainer)
    else:
        before = json.loads((folder / "summary.json").read_text())
        if before["precision"] != summary["precision"]:
            raise RunError(
                f"{folder} was trained in {before['precision']} so far, this would be {summary['precision']}"
            )
        if before["commit"] != summary["commit"]:
            summary["commit"] = summary["commit"].removesuffix("+changes") + "+changes"  # not this commit's alone
    fit(trainer, task, data, last if last.exists() else None)

    images = trainer.global_step * min(data.batch_size, len(data.train_labels))
    summary |= {
        "test_error": round(evaluate(config, task, data, "test"), 4),
        "train_error": round(evaluate(config, task, data, "train"), 4),
        **({"val_error": round(evaluate(config, task, data, "val"), 4)} if data.val else {}),
        "images_per_second": round(images / (watch.seconds - watch.evaluating), 1),
        "seconds": round(watch.seconds, 1),
        "peak_memory_gb": peak_memory_gb(),
    }
    if trainer.is_global_zero:
        trained = pretrained.Pretrained(net.cpu(), data.preprocess.cpu(), data.set.classes, summary)
        pretrained.save(folder / "model.safetensors", trained)
        replace(folder / "curves.png", lambda file: plot_curves(folder / "metrics.csv", file))
        write_summary(folder, summary)  # last: with a test error in it the run is finished
    return summary


def fit(trainer: L.Trainer, task: Classifier, data: Images, checkpoint: Path | None) -> None:
    """Trains from the start or from a run's own checkpoint, of which nothing but plain values is unpickled.

    Raises:
        RunError: the checkpoint is damaged, or holds more than plain values.
    """
    if checkpoint:
        try:
            found = torch.load(checkpoint, map_location="cpu", weights_only=True)
            needed = {
                "state_dict",
                "optimizer_states",
                "lr_schedulers",
                "loops",
                "callbacks",
                "pytorch-lightning_version",
            }
            if not isinstance(found, dict) or not needed <= set(found):
                raise ValueError("not all parts of a checkpoint are in it")
            task.load_state_dict(found["state_dict"])
            print(f"resumed at epoch {found['epoch'] + 1}, step {found['global_step']}")
        except (pickle.UnpicklingError, RuntimeError, LookupError, TypeError, ValueError, EOFError, OSError) as error:
            raise _damaged(checkpoint, error) from error
    begun: list[bool] = []
    trainer.callbacks.append(LambdaCallback(on_train_start=lambda *_: begun.append(True)))
    try:
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        if begun or not checkpoint or left_alone(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        raise _damaged(checkpoint, error) from error  # Lightning could not put its parts in place


def _damaged(checkpoint: Path, error: Exception) -> RunError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RunError(f"{checkpoint} is damaged or not a checkpoint of a run ({reason})")


def check_limits(config: Config, data: Images) -> None:
    """Raises ConfigError where a share of the batches is less than one batch, before Lightning does after training."""
    check_limit(config.trainer.limit_train_batches, "train", data.train_dataloader())
    for loader in (data.test_dataloader(), data.train_as_test_dataloader(), *data.val_dataloader()):
        check_limit(config.trainer.limit_test_batches, "test", loader)


def check_limit(limit: int | float | None, name: str, loader: Sized) -> None:
    """The same of one loader."""
    if isinstance(limit, float) and limit * len(loader) < 1:
        raise ConfigError(f"trainer.limit_{name}_batches={limit}: less than one of the {len(loader)} batches")


def evaluate(config: Config, task: Classifier, data: Images, split: str) -> float:
    """Error in % on the "test" set or the "val" images, in fp32, or on the "train" set, in the run's precision. By
    torch's default the convolutions of NVIDIA's GPUs take fp32 as TF32; published errors are the CPU's."""
    trainer = build_trainer(
        config,
        precision(config) if split == "train" else "32-true",
        [HeedSignals()],
        logger=False,
        enable_checkpointing=False,
    )
    data.trainer = trainer  # whose device the batches are made on
    loaders = {"test": data.test_dataloader, "train": data.train_as_test_dataloader}
    loader = data.val_dataloader()[0] if split == "val" else loaders[split]()
    return trainer.test(task, loader, verbose=False)[0]["test/error"]


def evaluate_checkpoint(config: Config) -> tuple[float, torch.Tensor, tuple[str, ...]]:
    """As `evaluate_pretrained`, of the net that `config.checkpoint` names, with the names of its classes."""
    with stoppable("the same command evaluates it again"):
        trained = pretrained.load(config.checkpoint)
        return *evaluate_pretrained(trained, config), trained.classes


def evaluate_pretrained(trained: pretrained.Pretrained, config: Config) -> tuple[float, torch.Tensor]:
    """Test error in % of a net, in fp32, and its confusion matrix (K, K) with the true class by row; on the set and
    with the preprocessing that it was trained with. Of `config` the trainer counts, and where the set is."""
    quiet()
    keep_freed_memory()
    data = images_of(trained, config.data.root, download=config.data.download, urls=config.data.urls)
    check_limit(config.trainer.limit_test_batches, "test", data.test_dataloader())
    task = Classifier(trained.net.to(memory_format=torch.channels_last))
    return evaluate(config, task, data, "test"), task.confusion_matrix


def images_of(trained: pretrained.Pretrained, root: str | None = None, **arguments: Any) -> Images:
    """The set that a net was trained on, at its size and with its preprocessing, loaded.

    Args:
        trained: the net.
        root: folder of the sets, as in `nin.data.Images`, which takes the other `arguments` too.

    Raises:
        nin.pretrained.CheckpointError: the net does not say on which set it was trained.
        nin.data.DataError: the set is missing or damaged.
    """
    name, size = trained.facts.get("data"), trained.net.arguments["image_size"]
    if not isinstance(name, str) or name not in SIZES:
        raise pretrained.CheckpointError(f"the net does not say on which set it was trained (data={shown(name)})")
    data = Images(name, root, size=size if isinstance(size, int) else size[0], **arguments)
    data.preprocess = trained.preprocess
    data.prepare_data()
    data.setup()
    return data


def build_trainer(config: Config, precision: str, callbacks: Sequence[Callback] = (), **arguments: Any) -> L.Trainer:
    """Lightning's Trainer, as far as training and evaluation share it."""
    return L.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        strategy=config.trainer.strategy,
        sync_batchnorm=config.trainer.devices > 1 and config.trainer.accelerator != "cpu" and torch.cuda.is_available(),
        precision=precision,
        limit_test_batches=config.trainer.limit_test_batches,
        callbacks=[*callbacks, *([RunProgress()] if config.trainer.progress_bar else [])],
        enable_progress_bar=config.trainer.progress_bar,
        enable_model_summary=False,
        **arguments,
    )


def precision(config: Config) -> str:
    """The precision that "auto" means here: bf16 where the hardware computes with it, else fp32."""
    if config.trainer.precision != "auto":
        return config.trainer.precision
    accelerator, device = config.trainer.accelerator, "cpu"
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        device = "cuda"
    elif accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        device = "mps"
    return "bf16-mixed" if computes_bfloat16(device) else "32-true"


def estimate(task: Classifier, data: Images, trainer: L.Trainer) -> None:
    """Prints, where it is long, how long training will take on this CPU: the last of three forward and backward passes
    of a copy of the net, 32 images each, times all that are to come. Optimiser and evaluations are not in it."""
    if trainer.strategy.root_device.type != "cpu":
        return
    images = torch.randn(32, *data.train_images.shape[1:]).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(32, dtype=torch.long)
    with torch.random.fork_rng(devices=[]):
        net = copy.deepcopy(task.net)
        for _ in range(3):
            start = time.perf_counter()
            with trainer.precision_plugin.forward_context():
                loss = F.cross_entropy(net(images), labels)
            loss.backward()
            per_image = (time.perf_counter() - start) / len(images)
    whole = len(data.train_labels) * per_image
    limit = trainer.limit_train_batches
    share = limit if isinstance(limit, float) else min(1.0, limit * data.batch_size / len(data.train_labels))
    seconds = whole * share * trainer.max_epochs / trainer.world_size
    if seconds > ESTIMATE_FROM:
        long = share == 1 and trainer.max_epochs > QUICK_EPOCHS
        advice = f"; recipe=quick takes about {in_words(whole * QUICK_EPOCHS)}" if long else ""
        print(f"training takes about {in_words(seconds)} on this CPU{advice}")


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed. By itself it gives the memory of every large tensor back to the system, and each
    training step has all its activations' pages zeroed and mapped anew: a fifth of its time on a CPU."""
    with suppress(OSError, AttributeError):  # another system's library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap too
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: which does not shrink


def quiet() -> None:
    """Keeps advice to Lightning's developers away from the run's reader; errors and our own lines stay."""
    import logging

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
