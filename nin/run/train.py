"""One run: train, evaluate, and fill the run's folder (`nin.run.folder`)."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from torch import Tensor

from nin import files, pretrained
from nin.backbones import Backbone
from nin.checks import counted, is_integer, one_line, shortened, some_of
from nin.config import Config, TrainerConfig, pasted, set_of, settings_of, to_yaml
from nin.data.folder import table_of
from nin.data.module import Images
from nin.data.streamed import Streamed
from nin.errors import DeadNetError, RunError, SettingError
from nin.model import NIN
from nin.pretrained import Pretrained
from nin.run import folder as folders
from nin.run import record as records
from nin.run.build import build_data, build_net, build_task, identified, settings_under
from nin.run.callbacks import MetricsFile, MovingAverage, Stopwatch, drop_empty_hooks
from nin.run.checkpoint import CHECKSUMS, AtomicCheckpointIO
from nin.run.curves import plot_curves
from nin.run.evaluate import check_limits, check_start, evaluate
from nin.run.loggers import build_logger, log_result, log_settings
from nin.run.machine import (
    commit_at_start,
    device_memory_gb,
    device_name,
    forget_peak_memory,
    keep_freed_memory,
    peak_memory_gb,
    versions,
)
from nin.run.processes import connect, ending_together, is_left_alone, rank_zero_first, world_size
from nin.run.progress import EpochLines, Estimate, in_words, say
from nin.run.record import Record, Start
from nin.run.signals import HeedSignals, stoppable
from nin.run.started import spelled
from nin.run.trainer import build_trainer, enough_memory, exact_fp32, precision_of, quiet
from nin.run.watch import DeadNetWatch
from nin.task import Classifier

MOST_CLASSES = 40  # whose errors are printed
# errors by which torch and Lightning refuse a damaged checkpoint
NOT_RESTORED = (RuntimeError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError)
# entries of a checkpoint without which a run cannot resume
ENTRIES = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "pytorch-lightning_version")


@dataclass
class _Run:
    """A run in progress: its settings, its folder, and the parts of its Trainer that are read after the training."""

    config: Config
    folder: Path
    trainer: L.Trainer
    stopwatch: Stopwatch
    metrics: MetricsFile

    @property
    def checkpoint(self) -> Path:
        return self.folder / folders.CHECKPOINT

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.trainer.is_global_zero


def train(config: Config, folder: Path) -> Record:
    """Trains one net, fills `folder` and returns the run's record.

    The test set and the held-out images are evaluated after the last epoch, in fp32, and the training images in the
    run's precision: all in eval mode and unaugmented.

    With `resume=auto` a run in `folder` resumes after its last whole epoch. Its weights are those of an uninterrupted
    run to the last bit, on the same CPU and with the same number of threads; on a GPU that requires
    `trainer.deterministic=true`. A finished run is left as it is.

    With several devices, each of as many processes calls this (`nin.run.processes`), and each gets the record. Process
    0 writes.

    Raises:
        SettingError: a folder that contains another run; settings that do not fit the set, the checkpoint or the number
            of processes.
        RunError: another process trains in the folder; a checkpoint that cannot be written or resumed; the GPU has
            too little memory.
        LeftAloneError: another process of this run has exited.
        InterruptedRunError: Ctrl-C or SIGTERM.
        DataError: the set is missing or damaged.
        CheckpointError: the run cannot start from `config.checkpoint`.
        DeadNetError: the net died; the record says so.
    """
    quiet()
    keep_freed_memory()
    _check_processes(config.trainer)
    same_folder = pasted("hydra.run.dir", folder)
    advice = f"to resume after the last whole epoch, run the same command with resume=auto {same_folder}"
    smaller = f"choose a data.batch_size below {config.data.batch_size}, or trainer.accelerator=cpu"
    with stoppable(advice), ending_together(), enough_memory(smaller):
        run = _begin(config, folder)
        commit_at_start()  # a download or a listing may take long
        connect(run.trainer)
        run.config = run.trainer.strategy.broadcast(identified(config) if run.writes else config)
        if (finished := _finished(run)) is not None:
            return finished
        with folders.training_in(folder) if run.writes else nullcontext():
            if (finished := _finished(run)) is not None:  # another process may have been first
                return finished
            return _train(run)


def _check_processes(settings: TrainerConfig) -> None:
    """Raises SettingError where another number of processes is running than the settings require."""
    running = world_size()
    if settings.processes == running:
        return
    count = "1 process is" if running == 1 else f"{running} processes are"
    if settings.processes == 1:
        reason = f"{count} running; set trainer=ddp and trainer.devices={running}, or start one process"
        raise SettingError("trainer.devices", settings.devices, reason)
    if settings.num_nodes > 1:
        raise SettingError("trainer.num_nodes", settings.num_nodes, f"{count} running; start with srun or torchrun")
    reason = f"{count} running; start with {spelled('train')} or torchrun"
    raise SettingError("trainer.devices", settings.devices, reason)


def _begin(config: Config, folder: Path) -> _Run:
    """The run with its Trainer. No file is read or written yet."""
    stopwatch, metrics = Stopwatch(), MetricsFile(folder / folders.METRICS)
    saving = ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    callbacks = [stopwatch, HeedSignals(), DeadNetWatch(), Estimate(), metrics, saving, EpochLines()]
    if config.recipe.ema:
        callbacks.append(MovingAverage(config.recipe.ema))
    trainer = build_trainer(
        config,
        precision_of(config.trainer),
        callbacks,
        default_root_dir=folder,
        max_epochs=config.trainer.max_epochs,
        accumulate_grad_batches=config.trainer.accumulate_grad_batches,
        gradient_clip_val=config.trainer.gradient_clip_val,
        limit_train_batches=config.trainer.limit_train_batches,
        limit_val_batches=config.trainer.limit_test_batches,
        num_sanity_val_steps=0,
        logger=build_logger(config, folder),
        plugins=[AtomicCheckpointIO()],
    )
    return _Run(config, folder, trainer, stopwatch, metrics)


def _finished(run: _Run) -> Record | None:
    """The record of this run if it is finished, else None; process 0 reads it for all."""
    record = folders.finished_run(run.config, run.folder) if run.writes else None
    record = run.trainer.strategy.broadcast(record)
    if record is not None and run.writes:
        print(f"{run.folder} already contains this run, finished")
    return record


def _train(run: _Run) -> Record:
    L.seed_everything(run.config.seed, verbose=False)
    forget_peak_memory(run.trainer.strategy.root_device)
    data, start = _load_images(run)
    net, new = _build_net(run, data, start)
    task = build_task(run.config, _trained_part(run, net, data))
    data.trainer = run.trainer  # the batches are made on its device
    check_limits(run.config, data)
    record = _record_of(run, net, start)
    resumed = run.checkpoint if run.checkpoint.exists() else None
    begun = check_checkpoint(run.trainer, task, resumed) if resumed else None
    if resumed:
        record = _continued(record, run)
    elif run.config.resume and run.writes:
        print(f"resume=auto: {run.folder} has no whole epoch to resume; training starts at epoch 1")
    if run.writes:  # what is known before the first step: a run that dies leaves it too
        files.write(run.folder / folders.SETTINGS, to_yaml(run.config))
        records.write(run.folder, record)
        if data.listing:
            files.write(run.folder / folders.SPLIT, table_of(data.listing, run.config.seed))
        log_settings(run.trainer.logger, run.config)
        print(opening_lines(record, run.trainer, data, run.folder, new), flush=True)
    try:
        fit(run.trainer, task, data, begun)
        measured = _measured(record, run, task, data)
    except DeadNetError:
        if run.writes:
            records.write(run.folder, replace(record, status="dead"))
        raise
    return _written(measured, run, net, data) if run.writes else measured


def _load_images(run: _Run) -> tuple[Images, Pretrained | None]:
    """The images, set up, and the net that the run starts from, whose preprocessing they get. Process 0 alone reads and
    decodes the pictures of a folder to list them."""
    config = run.config
    data = build_data(config)
    with rank_zero_first(run.trainer):
        start = pretrained.load(config.checkpoint) if config.checkpoint else None
        if run.writes or not data.entry.is_folder:
            data.prepare_data()
        if run.writes:
            folders.drop_leftovers(run.folder)
    if data.entry.is_folder:
        data.listing = run.trainer.strategy.broadcast(data.listing)
    if start:
        data.preprocess = start.preprocess
        own = start.preprocess.name
        if config.data.preprocessing != own:
            reason = f"the checkpoint was trained with {own}; set data.preprocessing={own}"
            raise SettingError("data.preprocessing", config.data.preprocessing, reason)
    with settings_under("data"):
        data.setup()
    if start:
        pretrained.check_fit(start, data.set, config.data.name, same_classes=False)
        check_start(start, config, data)
    return data, start


def _build_net(run: _Run, data: Images, start: Pretrained | None) -> tuple[NIN | Backbone, list[str]]:
    """The net, with the weights that it starts from, frozen where the settings say so; and the names of new weights."""
    net = build_net(run.config, classes=len(data.set.classes), channels=data.set.train_images.shape[1])
    if start:
        new = pretrained.copy_weights(start, net, data.set.classes)
    else:
        new = [name for name, _ in net.named_parameters() if not name.startswith("features.")]
    if run.config.freeze:
        if not new:
            reason = "nothing is left to train: the checkpoint has this head and these classes, and brings all layers"
            raise SettingError("freeze", True, reason)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name in new)
    return net.to(memory_format=torch.channels_last), new


def _trained_part(run: _Run, net: NIN | Backbone, data: Images) -> torch.nn.Module:
    """The net, or the layers above a backbone's features where these are frozen and the same in every epoch: `data`
    then computes them once."""
    if not isinstance(net, Backbone) or data.augments or any(p.requires_grad for p in net.features.parameters()):
        return net
    net.features.to(run.trainer.strategy.root_device).eval()

    def encode(images: Tensor) -> Tensor:
        with exact_fp32():  # the evaluations, which are in fp32, read the same features
            return net.forward_features(images)

    data.encode = encode
    return net.above_features()


def _start_of(config: Config, start: Pretrained) -> Start:
    """The net that a run starts from, as its record keeps it."""
    return Start(config.checkpoint, start.sha256, start.net.arguments["head"], set_of(start.facts))


def _record_of(run: _Run, net: NIN | Backbone, start: Pretrained | None) -> Record:
    """What is known of a run before its first step."""
    config, trainer = run.config, run.trainer
    name, clean = commit_at_start()
    return Record(
        status="running",
        settings=settings_of(config),
        start=_start_of(config, start) if start else None,
        parameters=sum(p.numel() for p in net.parameters()),
        precision=precision_of(config.trainer),
        device=f"{trainer.world_size} × " * (trainer.world_size > 1) + device_name(trainer.strategy.root_device),
        versions=versions(),
        commit=name,
        clean=clean,
    )


def _continued(record: Record, run: _Run) -> Record:
    """The record of a run that resumes here.

    Raises:
        RunError: it was trained in another precision so far, or started from other weights of the same name.
    """
    before = records.read(run.folder)
    if before.precision != record.precision:
        raise RunError(
            f"{run.folder} was trained in {before.precision} so far, and trainer.precision="
            f"{run.config.trainer.precision} is {record.precision} on this machine; resume it where it began, or "
            "choose another folder"
        )
    first, now = before.start, record.start
    if first and now and first.sha256 not in (None, now.sha256):
        raise RunError(
            f"checkpoint={now.name}: {run.folder} started from weights with sha256 {first.sha256}, and they are "
            f"{now.sha256} now; choose another folder"
        )
    devices = before.device if before.device.endswith(record.device) else f"{before.device}, then {record.device}"
    alike = (before.commit, before.versions) == (record.commit, record.versions)  # else not the result of these alone
    return replace(record, device=devices, clean=alike and record.clean and before.clean)


@dataclass
class Resumed:
    """A run's own checkpoint, from which it resumes: its file, epoch and step, and whether it has checksums."""

    file: Path
    epoch: int
    step: int
    has_checksums: bool


def check_checkpoint(trainer: L.Trainer, task: Classifier, checkpoint: Path) -> Resumed:
    """Returns what a run resumes from. Only plain values are unpickled; nothing is written.

    Raises:
        RunError: the checkpoint is damaged, contains more than plain values, or is of another net.
    """
    try:
        parts = trainer.strategy.checkpoint_io.check(checkpoint)
        if missing := [name for name in ENTRIES if name not in parts]:
            raise ValueError(f"{', '.join(missing)} missing")
        task.load_state_dict(parts["state_dict"])
        if not all(is_integer(parts[name]) for name in ("epoch", "global_step")):
            raise ValueError("epoch and global_step: expected integers")
    except (*NOT_RESTORED, pickle.UnpicklingError, EOFError, OSError) as error:
        raise _damaged(checkpoint, error) from error
    return Resumed(checkpoint, parts["epoch"], parts["global_step"], CHECKSUMS in parts)


def fit(trainer: L.Trainer, task: Classifier, data: Images, resumed: Resumed | None) -> None:
    """Trains from the start, or from a run's own checkpoint as `check_checkpoint` returns it.

    Raises:
        RunError: Lightning cannot restore the checkpoint's parts.
    """
    begun: list[bool] = []  # not empty once the checkpoint has been restored: later errors are not its doing
    trainer.callbacks.append(LambdaCallback(on_train_start=lambda *_: begun.append(True)))
    if resumed:
        say(trainer, f"resumed after epoch {resumed.epoch + 1} of {trainer.max_epochs}, step {resumed.step}")
        if not resumed.has_checksums:  # an older checkpoint: damage may show as late as in the first step
            trainer.callbacks[-1] = LambdaCallback(on_train_batch_end=lambda *_: begun.append(True))
    drop_empty_hooks(trainer.callbacks)
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resumed.file if resumed else None, weights_only=True)
    except NOT_RESTORED as error:
        if begun or not resumed or is_left_alone(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        raise _damaged(resumed.file, error) from error


def _damaged(checkpoint: Path, error: Exception) -> RunError:
    reason = one_line(str(error).splitlines()[0]) if str(error) else type(error).__name__
    if isinstance(error, pickle.UnpicklingError):  # torch advises to unpickle whatever it is
        reason = "it contains more than plain values, or is cut"
    return RunError(
        f"{checkpoint} is damaged or not a checkpoint of a run ({reason}); delete it to train from the start"
    )


def _measured(record: Record, run: _Run, task: Classifier, data: Images) -> Record:
    """The record with the errors of the trained net, and with the pace of its training.

    Raises:
        DeadNetError: its loss on the test images is not finite, as after a last step that was too large.
    """
    images = run.trainer.current_epoch * run.trainer.num_training_batches * min(data.batch_size, len(data.train_labels))
    stopwatch = run.stopwatch
    test = evaluate(run.config, task, data, "test")
    if not math.isfinite(test.loss):
        raise DeadNetError(f"the trained net's loss is not finite; lower recipe.lr (now {run.config.recipe.lr:g})")
    train_error = evaluate(run.config, task, data, "train").error
    val_error = round(evaluate(run.config, task, data, "val").error, 4) if run.config.data.val else None
    return replace(
        record,
        status="finished",
        test_error=round(test.error, 4),
        train_error=round(train_error, 4),
        val_error=val_error,
        top5_error=None if test.top5_error is None else round(test.top5_error, 4),
        seconds=round(stopwatch.seconds, 1),
        images_per_second=round(images / (stopwatch.seconds - stopwatch.evaluating), 1),
        peak_memory_gb=peak_memory_gb(),
        device_memory_gb=device_memory_gb(run.trainer.strategy.root_device),
        test_images=test.images,
        chance_error=round(test.chance_error, 4),
        class_errors=test.class_errors if data.listing else None,
    )


def _written(record: Record, run: _Run, net: NIN | Backbone, data: Images) -> Record:
    """The record with the sha256 of the weights, after all files of the folder are written: a resumed run may lack any
    of them."""
    trained = Pretrained(net.cpu(), data.preprocess.cpu(), data.set.classes, record.to_dict())
    sha256 = pretrained.save(run.folder / folders.WEIGHTS, trained)
    run.metrics.write()
    log_result(run.trainer.logger, run.config, record, run.trainer.global_step)
    plot_curves(run.folder / folders.METRICS, run.folder / folders.CURVES, record)
    record = replace(record, weights_sha256=sha256)
    records.write(run.folder, record)  # last: it says that the run is finished
    return record


def opening_lines(record: Record, trainer: L.Trainer, data: Images, folder: Path, new: Sequence[str] = ()) -> str:
    """A run in a few lines for people, before its first step; `new` are the names of weights that no start brings."""
    images = [counted(len(data.train_labels), "training image"), counted(len(data.set.test_labels), "test image")]
    if record.held_out:
        images.insert(1, f"{record.held_out:,} held out")
    model = record.settings["model"]
    limit, batches = trainer.limit_train_batches, len(data.train_dataloader())
    batches = int(limit * batches) if isinstance(limit, float) else min(limit, batches)
    steps = math.ceil(batches / trainer.accumulate_grad_batches)
    return f"""\
net     {model["backbone"] or "NIN"}, head {record.head}: {record.parameters:,} parameters{_line_of_start(record, new)}
data    {record.data}: {", ".join(images)}
recipe  {record.recipe}, seed {record.seed}: {counted(record.epochs, "epoch")} of {counted(steps, "step")}
device  {record.device}, {record.precision}
folder  {folder}{_lines_of_pictures(data)}"""


def _line_of_start(record: Record, new: Sequence[str]) -> str:
    """The net that a run starts from, and the layers that it does not bring, for people; "" for a run from scratch."""
    if record.start is None:
        return ""
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in new))
    brought = f"new layers: {some_of(layers, 5)}" if layers else "all layers are its own"
    of_set = f", {record.start.data.partition(' ')[0]}" if record.start.data else ""
    return f"\nstart   {record.start.name} (head {record.start.head}{of_set}); {brought}"


def _lines_of_pictures(data: Images) -> str:
    """Classes, split and place of a folder's pictures for people; "" for another set."""
    if data.listing is None:
        return ""
    names, size = data.set.classes, data.settings.size
    kept = "decoded anew each epoch" if isinstance(data.train_images, Streamed) else "in memory"
    return f"""
classes {len(names)}: {some_of(names, 20)}
split   {data.listing.split_in_words(data.seed)}; {folders.SPLIT} lists both parts
images  {size}×{size} pixels, {kept}"""


def closing_lines(record: Record, folder: Path) -> str:
    """A finished run in a few lines for people."""
    held_out = "" if record.val_error is None else f"\n  held-out error {record.val_error:6.2f} %"
    top5 = "" if record.top5_error is None else f"\n  top-5 error    {record.top5_error:6.2f} %"
    chance = ""
    if record.at_chance:
        chance = (
            f"\nThe test error is not three standard errors below chance, which is {record.chance_error:.2f} % of "
            f"{counted(record.test_images, 'image')}: choose a higher recipe.lr, a longer run, another seed or more "
            "test images.\n"
        )
    of_classes = _lines_of_classes(record)
    named = f"./{folder}" if str(folder) in pretrained.available() else folder  # else it is the published net
    return f"""
{record.title}: {record.parameters:,} parameters
{counted(record.epochs, "epoch")} in {in_words(record.seconds)}, {record.images_per_second:.0f} images/s, \
{record.precision}, {record.device}

  training error {record.train_error:6.2f} %{held_out}
  test error     {record.test_error:6.2f} %{top5}{of_classes}
{chance}
Files in {folder}: {folders.CURVES}, {folders.WEIGHTS}, {records.FILE}, {folders.METRICS}
Evaluate it again: {spelled("evaluate")} {pasted("checkpoint", named)}"""


def _lines_of_classes(record: Record) -> str:
    """The test error of each class for people, the worst first; "" where the record has none."""
    if not record.class_errors:
        return ""
    worst = sorted(record.class_errors.items(), key=lambda item: (-item[1]["error"], item[0]))
    names = {name: shortened(name) for name, _ in worst[:MOST_CLASSES]}
    width = max(map(len, names.values()))
    lines = [
        f"    {names[name]:{width}} {facts['error']:6.2f} % of {counted(facts['images'], 'image')}"
        for name, facts in worst[:MOST_CLASSES]
    ]
    if len(worst) > MOST_CLASSES:
        lines.append(f"    … and {len(worst) - MOST_CLASSES:,} more in {records.FILE}")
    return "\n" + "\n".join(lines)
