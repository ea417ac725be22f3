"""Loggers beside metrics.csv: the settings and results of a run in them."""

import json
import struct
from importlib import metadata

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from nin import NIN, Block, config
from nin.cli import compose
from nin.data import Images
from nin.errors import SettingError
from nin.run import build, loggers
from nin.run.train import train
from nin.task import Classifier
from runs import SHORT


def test_tensorboard_has_the_settings_and_the_final_errors(ended):
    folder, record = ended
    events = EventAccumulator(str(folder)).Reload()
    last = {name: events.Scalars(f"final/{name}")[-1].value for name in loggers.FINAL}
    assert last == pytest.approx({name: getattr(record, name) for name in loggers.FINAL}, abs=1e-4)
    assert len(events.Scalars("train/error")) == len(events.Scalars("test_curve/error")) == 2
    start = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert all(name.encode() in start for name in config.consequential(record.settings))


def records_of(content):
    """The records of an offline run's file, which is a log in LevelDB's format: blocks of 32 KiB, in each of them parts
    of records after a checksum, a length and a kind (1 whole, 2 first, 3 middle, 4 last)."""
    from wandb.proto import wandb_internal_pb2

    place, parts = 7, b""  # after the file's own header
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for seed in (0, 1):  # a second run in the same process is a run of its own
        settings = compose([*SHORT, "logger=wandb", "data.val=100", f"seed={seed}", "logger.project=digits"])
        record = train(settings, tmp_path / str(seed))
        (file,) = (tmp_path / str(seed) / "wandb").glob("offline-run-*/run-*.wandb")
        kept, rows, project = {}, [], ""
        for noted in records_of(file.read_bytes()):
            project = noted.run.project or project
            updates = [*noted.run.config.update, *noted.config.update]
            kept |= {each.key: json.loads(each.value_json) for each in updates if each.key}
            row = {each.key or ".".join(each.nested_key): json.loads(each.value_json) for each in noted.history.item}
            rows += [row] if row else []
        assert project == "digits" and kept["seed"] == seed and kept["recipe.lr"] == settings.recipe.lr
        assert set(config.consequential(record.settings)) <= set(kept)
        assert sum("train/error" in row for row in rows) == 2
        (last,) = [row for row in rows if "final/test_error" in row]
        assert last["final/test_error"] == pytest.approx(record.test_error, abs=1e-4)
        assert last["final/val_error"] == pytest.approx(record.val_error, abs=1e-4)


def test_a_missing_package_is_named_before_anything_is_read(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(SettingError, match=r"logger\.name=wandb: requires .*pip install 'network-in-network\[wandb\]'"):
        build.check(compose([*SHORT, "logger=wandb"]))
    build.check(compose([*SHORT, "logger=tensorboard"]))


def test_any_logger_of_lightning_by_the_library(tmp_path):
    data = Images("digits", batch_size=64)
    task = Classifier(NIN([Block(8, 5), Block((8, 8, None))], norm="batch", init="kaiming", last_relu=False), lr=0.05)
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = L.Trainer(
        max_epochs=2,
        limit_train_batches=3,
        limit_test_batches=1,
        logger=logger,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)
    head, *rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert {"train/error", "train/loss", "test/error", "lr"} <= set(head) and len(rows) >= 3
    logits = trainer.predict(task, data)
    assert sum(len(batch) for batch in logits) == 360 and all(batch.shape[1] == 10 for batch in logits)
    task.eval()
    for batch, (images, _) in zip(logits, data.test_dataloader(), strict=True):
        assert (batch - task(images)).abs().max() < 1e-4
    images, _ = next(iter(data.test_dataloader()))
    alone = trainer.predict(task, DataLoader(images, batch_size=100))  # a loader of images without labels
    assert (torch.cat(alone) - logits[0]).abs().max() < 1e-4
