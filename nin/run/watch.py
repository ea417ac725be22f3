"""Ends the training of a net that has died."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from nin.checks import is_real
from nin.errors import DeadNetError
from nin.run.callbacks import ends_step


class DeadNetWatch(Callback):
    """Ends the training of a net that cannot learn any more, as DeadNetError.

    A net has died when its loss is not finite, or when it has collapsed: the mean loss of the last 100 steps is within
    0.01 of ln K, and the scores have lost their spread over images. Either sign alone proves nothing: a slow net has
    the loss of chance too, and a spread that was small from the start has not been lost. All processes compare the
    same numbers, so they end together.
    """

    EVERY = 50  # steps between two checks; each check waits for the device
    WINDOW = 100  # losses that a check reads
    COLLAPSE_FROM = 300  # steps before which a loss near ln K is normal; a run that is shorter has WINDOW instead
    NEAR_CHANCE = 0.01  # distance from ln K
    NO_SPREAD = 1e-4  # standard deviation of the scores over images

    def __init__(self) -> None:
        self.losses = torch.zeros(self.WINDOW)
        self.first_spread = math.inf

    def on_train_batch_start(self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == batch_idx == 0:
            self.first_spread = spread(trainer, task, batch[0])

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        step, last = trainer.global_step, trainer.estimated_stepping_batches
        loss = outputs["cross_entropy"]
        self.losses = self.losses.to(loss.device)
        self.losses[(step - 1) % self.WINDOW] = loss
        if step % self.EVERY and step != last:
            return
        recent = self._recent(trainer)
        chance = math.log(task.net.num_classes)
        watched_from = self.WINDOW if last < self.COLLAPSE_FROM else self.COLLAPSE_FROM
        if step < watched_from or abs(recent.mean().item() - chance) > self.NEAR_CHANCE:
            return
        now = spread(trainer, task, batch[0])
        if now < self.NO_SPREAD and now <= 0.1 * self.first_spread:  # it was larger at the start: not a slow net
            raise DeadNetError(
                f"the net has collapsed by step {step}: the mean loss of the last {self.WINDOW} steps is ln "
                f"{task.net.num_classes} = {chance:.4f}, and its scores no longer depend on the image; choose "
                f"{remedies(task)}"
            )

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._recent(trainer)  # before the checkpoint of this epoch is saved

    def _recent(self, trainer: L.Trainer) -> Tensor:
        """The mean over processes of the last losses. Raises DeadNetError where one is not finite."""
        step, recipe = trainer.global_step, trainer.lightning_module.recipe
        first = max(step - self.WINDOW, 0) + 1
        recent = trainer.strategy.reduce(self.losses[: min(step, self.WINDOW)].clone())
        if not recent.isfinite().all():
            raise DeadNetError(
                f"the loss is not finite any more (steps {first} to {step}): training has diverged; lower recipe.lr "
                f"(now {recipe.lr:g}) or lengthen recipe.warmup (now {recipe.warmup:g} epochs)"
            )
        return recent

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses.cpu(), "first_spread": self.first_spread}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        losses, first_spread = state_dict["losses"], state_dict["first_spread"]
        if not isinstance(losses, Tensor) or losses.shape != (self.WINDOW,) or not is_real(first_spread):
            raise ValueError(f"losses, first_spread: expected {self.WINDOW} losses and a number")
        self.losses, self.first_spread = losses.float(), first_spread


def remedies(task: L.LightningModule) -> str:
    """Settings that may keep a net from collapsing, for people: "another seed, … or model.norm=batch". Those that the
    net already has are left out."""
    recipe, plan = task.recipe, getattr(task.net, "plan", None)  # other nets than NIN have no plan
    choices = ["another seed", f"a longer recipe.warmup (now {recipe.warmup:g} epochs)"]
    choices.append(f"a lower recipe.lr (now {recipe.lr:g})")
    choices += ["model.init=kaiming"] if plan is not None and plan.init != "kaiming" else []
    choices += ["model.norm=batch"] if plan is not None and plan.norm != "batch" else []
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


@torch.no_grad()
def spread(trainer: L.Trainer, task: L.LightningModule, images: Tensor) -> float:
    """How much the logits depend on the image: their standard deviation over these images and an all-zero one, for the
    class where it is largest; the mean over processes. In eval mode, because dropout's noise would count as spread."""
    task.eval()
    with trainer.precision_plugin.forward_context():
        logits = task.net(torch.cat([images, torch.zeros_like(images[:1])])).float()
    task.train()
    return trainer.strategy.reduce(logits.std(dim=0).max()).item()
