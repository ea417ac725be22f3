"""The training task: loss, metrics, parameter groups and schedule."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from nin import config
from nin.config import RecipeConfig
from nin.data.module import Images, draw_seed
from nin.errors import SettingError
from nin.optim import Muon

EVALUATIONS = ("val/", "test_curve/", "test/")  # prefixes of the metrics: held out, test after each epoch, final test
MANY_CLASSES = 50  # a test with as many classes or more counts top-5 errors too


class ErrorRate(MulticlassAccuracy):
    """100 · (1 − accuracy), in %."""

    higher_is_better = False
    plot_upper_bound = 100.0

    def compute(self) -> Tensor:
        return 100 * (1 - super().compute())


class Classifier(L.LightningModule):
    """Trains a net on images and labels: softmax cross-entropy, and SGD with momentum, Muon, AdamW or RMSprop.

    The default settings are the authors'. After each epoch it logs, for each set, `loss` (cross-entropy, without label
    smoothing) and `error` (100 · (1 − micro-averaged accuracy), in %), and `lr`, the rate of the weights in the epoch's
    first step. `train/loss` and `train/error` are means over the epoch's steps: of the net as it was at each step, on
    augmented images, with dropout.

    Nothing here watches over the training: add `nin.run.watch.DeadNetWatch` to the Trainer for that.

    Args:
        net: from images (N, C, H, W) to logits (N, K), with its number of classes as `num_classes`. Parameters that
            require no gradient are not trained, and their batch norms keep their statistics.
        recipe: the settings; `settings` override single fields.
        settings: fields of `nin.config.RecipeConfig`, which explains each. The last layer is the last one with weights:
            the last 1×1 convolution under gap and gmp, the linear layer under fc. Under muon `weight_decay` takes the
            share `lr · weight_decay` off every weight a step, the last layer's too.

    Raises:
        SettingError: a value outside its bounds.
    """

    def __init__(self, net: nn.Module, recipe: RecipeConfig | None = None, **settings: Any) -> None:
        super().__init__()
        self.net = net
        self.recipe = replace(recipe or RecipeConfig(), **settings)
        config.check(self.recipe)
        measures = MetricCollection(
            {"error": ErrorRate(net.num_classes, average="micro", validate_args=False), "loss": MeanMetric("disable")},
            compute_groups=False,
        )
        self.measures = nn.ModuleDict({stage: measures.clone(prefix=stage) for stage in EVALUATIONS})
        self.sums = torch.zeros(3)  # of an epoch's steps: wrong answers, losses, images
        self.confusion = MulticlassConfusionMatrix(net.num_classes, validate_args=False)  # of a test
        self.top5_error = None  # of a test, in %
        many = net.num_classes >= MANY_CLASSES
        self.top5 = ErrorRate(net.num_classes, top_k=5, average="micro", validate_args=False) if many else None

    def __setattr__(self, name: str, value: Any) -> None:
        """As in any module, but without its search of the parameters for the name of a hook, which Lightning sets 46
        times a step."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def train(self, mode: bool = True) -> Classifier:
        """As in any module, except that frozen batch norms keep their statistics."""
        super().train(mode)
        for module in self.net.modules():
            parameters = [*module.parameters()] if isinstance(module, nn.modules.batchnorm._BatchNorm) else []
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()
        return self

    def on_fit_start(self) -> None:
        self.train()  # Lightning leaves modules as they are

    # training ---------------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        self.log("lr", self.optimizers().param_groups[0]["lr"])
        self.sums = self.sums.to(self.device).zero_()
        if isinstance(self.trainer.datamodule, Images):
            # dropout's draws, like order and augmentation, are a function of seed, epoch and process
            seed = self.trainer.datamodule.seed
            torch.manual_seed(draw_seed(seed, self.current_epoch, "dropout", self.global_rank))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The loss to minimise as `loss`, and the one without label smoothing as `cross_entropy`."""
        images, labels = batch
        logits = self.net(images).float()
        log_probabilities = F.log_softmax(logits, 1)  # of both losses
        losses = F.nll_loss(log_probabilities, labels, reduction="none")  # (N)
        self._count(logits.detach(), labels, losses.detach())
        loss = cross_entropy = losses.mean()
        if smoothing := self.recipe.label_smoothing:
            loss = (1 - smoothing) * cross_entropy - smoothing * log_probabilities.mean()
        return {"loss": loss, "cross_entropy": cross_entropy.detach()}

    def _count(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Adds a step to the epoch's sums: in place and on the device, so that no step waits for it and a captured one
        repeats it. torchmetrics takes 21 launches for the same, and replaces its tensors."""
        wrong = (logits.argmax(1) != labels).sum()
        self.sums += torch.stack((wrong.float(), losses.sum(), torch.full_like(losses[0], len(labels))))

    def on_train_epoch_end(self) -> None:
        wrong, loss, images = self.trainer.strategy.reduce(self.sums.clone(), reduce_op="sum").tolist()
        self.log_dict({"train/error": 100 * wrong / images, "train/loss": loss / images}, prog_bar=True)

    # optimisation -----------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict]:
        """Four groups with their `lr` and `weight_decay`: weights and biases, of the last layer and of the others.

        A parameter of one dimension counts as a bias, so batch norm's weights do."""
        recipe = self.recipe
        last = [m for m in self.net.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
        muon = recipe.optimiser == "muon"
        decay = last_decay = recipe.weight_decay
        if muon and recipe.last_lr:
            # SGD sends its decay through the momentum, which makes it 1 / (1 − momentum) times as strong. Muon does
            # not. With this the last layer loses the same share a step as the others.
            last_decay = decay / recipe.last_lr * (1 - recipe.momentum)
        groups: list[dict[str, Any]] = [
            {"name": "weights", "params": [], "lr": recipe.lr, "weight_decay": decay, "orthogonal": muon},
            {"name": "biases", "params": [], "lr": recipe.lr * recipe.bias_lr, "weight_decay": 0.0},
            {"name": "last weights", "params": [], "lr": recipe.lr * recipe.last_lr, "weight_decay": last_decay},
            {"name": "last bias", "params": [], "lr": recipe.lr * recipe.last_bias_lr, "weight_decay": 0.0},
        ]
        for parameter in filter(lambda p: p.requires_grad, self.net.parameters()):
            is_last = any(parameter is p for p in last.parameters())
            groups[2 * is_last + (parameter.ndim < 2)]["params"].append(parameter)
        return groups

    def lr_factor(self, step: int, total: int, steps_per_epoch: float) -> float:
        """The factor of the learning rates at `step` of `total`."""
        warmup = min(self.recipe.warmup * steps_per_epoch, total / 2)
        if step + 1 < warmup:
            return (step + 1) / warmup
        if self.recipe.schedule == "step":
            return 0.1 ** sum(step >= round(share * total) for share in self.recipe.drops)
        progress = min(1.0, (step + 1 - warmup) / (total - warmup + 1))
        return 1 - progress if self.recipe.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2

    def build_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the net's parameters, at the rates before any schedule."""
        recipe = self.recipe
        if recipe.optimiser == "rmsprop":  # Keras's decay rate and epsilon, for which published rates are chosen
            return torch.optim.RMSprop(self.parameter_groups(), alpha=0.9, eps=1e-7, momentum=recipe.momentum)
        if recipe.optimiser == "adamw":
            return torch.optim.AdamW(self.parameter_groups(), betas=(recipe.momentum, 0.999))
        # without an orthogonal group this is torch's SGD
        return Muon(self.parameter_groups(), momentum=recipe.momentum, nesterov=recipe.nesterov)

    def configure_optimizers(self) -> dict:
        optimizer = self.build_optimizer()
        self.trainer.fit_loop.setup_data()  # before it the trainer does not know the number of batches of an epoch
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise SettingError("max_epochs", self.trainer.max_epochs, "the schedule requires max_epochs or max_steps")
        per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.lr_factor(step, total, per_epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def predict_step(self, batch: tuple[Tensor, Tensor] | Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Logits (B, K) of a batch of images, with or without labels."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return self.net(images).float()

    # evaluation -------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(self._val_stages[dataloader_idx], batch)

    def on_validation_epoch_end(self) -> None:
        for name in self._val_stages:
            self._log(name)

    def on_test_epoch_start(self) -> None:
        self.confusion.reset()
        if self.top5:
            self.top5.reset()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits, labels = self._evaluate("test/", batch), batch[1]
        self.confusion.update(logits, labels)
        if self.top5:
            self.top5.update(logits, labels)

    def on_test_epoch_end(self) -> None:
        self._log("test/")
        self.confusion_matrix = self.confusion.compute().cpu()  # summed over processes, which must all be here
        self.top5_error = self.top5.compute().item() if self.top5 else None

    @property
    def _val_stages(self) -> tuple[str, ...]:
        return getattr(self.trainer.datamodule, "val_stages", ("val/",))

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self.net(images).float()
        losses = F.cross_entropy(logits, labels, reduction="none")  # (N)
        self.measures[stage]["error"].update(logits, labels)
        self.measures[stage]["loss"].update(losses)  # one an image: "disable" would drop a batch's weight
        return logits

    def _log(self, stage: str) -> None:
        self.log_dict(self.measures[stage].compute(), prog_bar=True)
        self.measures[stage].reset()
