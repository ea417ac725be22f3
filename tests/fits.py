"""Small trainings without a command line, for the tests of what accompanies one."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from nin import NIN, Block
from nin.data import Batches, Normalise
from nin.task import Classifier


def small_net(**arguments) -> NIN:
    blocks = [Block(8, dropout=True), Block((8, 8, None))]
    return NIN(blocks, image_size=8, **{"init": "kaiming", **arguments})


def loader(steps: int, size: int = 4, noise: bool = False) -> Batches:
    torch.manual_seed(0)
    labels = torch.arange(steps * size) % 10
    images = torch.randint(0, 256, (steps * size, 3, 8, 8), dtype=torch.uint8)
    if not noise:
        images = (images // 8 + (labels * 20)[:, None, None, None]).to(torch.uint8)
    normalise = Normalise(torch.full((3,), 120.0), torch.full((3,), 60.0))
    return Batches(images.permute(0, 2, 3, 1), labels, size, normalise, augment=lambda x, g: x)


def fit(task: Classifier, train: Batches, *callbacks: L.Callback, **arguments) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_model_summary=False,
        **{"max_epochs": 1, "enable_progress_bar": False, **arguments},
    )
    trainer.fit(task, train)
    return trainer
