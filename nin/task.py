"""The training task: loss, parameter groups, schedule, metrics, and the two ways in which training dies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from nin.bounds import at_least_0, is_number, one_of, share, shown, truth
from nin.data.module import Images, draw_seed
from nin.optim import Muon

OPTIMISERS = ("sgd", "muon", "rmsprop")
SCHEDULES = ("step", "linear", "cosine")

CHECK_EVERY = 50  # steps between two looks for a dead net; each look waits for the device
WINDOW = 100  # losses that the look is at
COLLAPSE_FROM = 300  # steps before which a loss near ln K is no sign of anything


STAGES = ("train/", "val/", "test_curve/", "test/")


class ErrorRate(MulticlassAccuracy):
    """100 · (1 − accuracy), in %."""

    higher_is_better = False
    plot_upper_bound = 100.0

    def compute(self) -> Tensor:
        return 100 * (1 - super().compute())


class DeadNetError(RuntimeError):
    """Training that cannot go on to anything; the message says what to change."""


class Classifier(L.LightningModule):
    """Trains a net on images and labels with the softmax cross-entropy, by SGD with momentum, Muon or RMSprop.

    The defaults are the authors' settings. Logs after each epoch, for each set, its `loss` (cross-entropy, without
    label smoothing) and `error` (100 · (1 − micro-averaged accuracy), in %), and `lr`, the weights' rate in the epoch's
    first step. `train/loss` and `train/error` are means over the epoch's steps: the net as it was at each of them,
    augmented images, dropout on.

    Args:
        net: from images (N, C, H, W) to logits (N, K), with its number of classes as `num_classes`. Parameters that
            require no gradient are not trained, and batch norms of them keep their statistics.
        optimiser: "sgd"; "muon": `nin.optim.Muon` on the weights of all layers but the last, SGD on the rest; or
            "rmsprop".
        lr: learning rate of the weights; under muon the size of a step.
        bias_lr: rate of biases (and of normalisation's scale and shift) as a multiple of the weights'.
        last_lr: rate of the last layer's weights as a multiple of the other weights'. The last layer is the last one
            that has weights: the last 1×1 convolution under gap and gmp, the linear layer under fc.
        last_bias_lr: rate of the last layer's bias as a multiple of `lr`: 0.2 in the authors' cuda-convnet release,
            0.1 in their Caffe release.
        momentum: of SGD, Muon and RMSprop.
        nesterov: whether SGD's momentum is Nesterov's; Muon's is.
        weight_decay: on weights; biases and normalisation are not decayed. Under muon it takes the share
            `lr · weight_decay` off every weight a step, the last layer's too.
        schedule: "step": divided by 10 at each of `drops`; "linear" or "cosine": down to 0 at the end.
        drops: shares of the run's length at which "step" divides: 200 and 230 of 260 epochs by default.
        warmup: epochs over which the rate rises linearly from 0, at most half of the run.
        label_smoothing: share of the target that is spread over all classes, in training only.

    Raises:
        ValueError: a value outside its bounds.
        DeadNetError: while training, where the loss is not a number or the net has collapsed.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        optimiser: str = "sgd",
        lr: float = 0.1,
        bias_lr: float = 2.0,
        last_lr: float = 0.1,
        last_bias_lr: float = 0.2,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 1e-4,
        schedule: str = "step",
        drops: Sequence[float] = (200 / 260, 230 / 260),
        warmup: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        one_of(OPTIMISERS, optimiser=optimiser)
        one_of(SCHEDULES, schedule=schedule)
        if not is_number(lr) or lr <= 0:
            raise ValueError(f"lr={shown(lr)}: a number greater than 0")
        at_least_0(bias_lr=bias_lr, last_lr=last_lr, last_bias_lr=last_bias_lr)
        at_least_0(weight_decay=weight_decay, warmup=warmup)
        share(momentum=momentum, label_smoothing=label_smoothing)
        truth(nesterov=nesterov)
        if nesterov and not momentum:
            raise ValueError(f"nesterov=true needs a momentum above 0, and momentum={momentum}")
        if not isinstance(drops, list | tuple) or not all(is_number(s) and 0 < s < 1 for s in drops):
            raise ValueError(f"drops={shown(drops)}: shares of the run's length, each between 0 and 1")
        super().__init__()
        self.net = net
        self.optimiser = optimiser
        self.lr, self.bias_lr, self.last_lr, self.last_bias_lr = lr, bias_lr, last_lr, last_bias_lr
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.schedule, self.drops, self.warmup = schedule, tuple(drops), warmup
        self.label_smoothing = label_smoothing
        measures = MetricCollection(
            {"error": ErrorRate(net.num_classes, average="micro", validate_args=False), "loss": MeanMetric("disable")},
            compute_groups=False,
        )
        self.measures = nn.ModuleDict({stage: measures.clone(prefix=stage) for stage in STAGES})
        self.confusion = MulticlassConfusionMatrix(net.num_classes, validate_args=False)  # of a test
        self.register_buffer("recent_losses", torch.zeros(WINDOW))
        self.register_buffer("first_spread", torch.tensor(math.inf))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def train(self, mode: bool = True) -> Classifier:
        """As in any module, but that the statistics of frozen batch norms stay as they are."""
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
        if isinstance(self.trainer.datamodule, Images):
            # dropout's draws, like order and augmentation, are a function of seed, epoch and process
            seed = self.trainer.datamodule.seed
            torch.manual_seed(draw_seed(seed, self.current_epoch, "dropout", self.global_rank))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.net(images).float()
        loss = self._measure("train/", logits, labels)
        self.recent_losses[self.global_step % WINDOW] = loss.detach()
        if self.global_step == 0:
            self.first_spread.fill_(self._spread(images))
        if (self.global_step + 1) % CHECK_EVERY == 0:
            self._check_alive(self.global_step + 1, images)
        if self.label_smoothing:
            loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return loss

    def on_train_epoch_end(self) -> None:
        self._check_alive(self.global_step)
        self._log("train/")

    @torch.no_grad()
    def _spread(self, images: Tensor) -> float:
        """How much the logits depend on the image: their standard deviation over these images and an empty one, of the
        class where it is largest; without dropout, whose noise is no sign of life."""
        self.eval()
        spread = self.net(torch.cat([images, torch.zeros_like(images[:1])])).float().std(dim=0).max()
        self.train()
        return self.trainer.strategy.reduce(spread).item()

    def _check_alive(self, step: int, images: Tensor | None = None) -> None:
        """Raises DeadNetError by name: a loss that is not a number, or the collapse to equal scores for all images.

        What it looks at is the same in all processes, so that they die together."""
        recent = self.trainer.strategy.reduce(self.recent_losses[: min(step, WINDOW)].clone())
        if not recent.isfinite().all():
            raise DeadNetError(
                f"the loss is not a finite number any more (steps {max(step - WINDOW, 0)} to {step}): training has "
                f"diverged; lower recipe.lr (now {self.lr:g}) or lengthen recipe.warmup (now {self.warmup:g} epochs)"
            )
        chance = math.log(self.net.num_classes)
        if images is None or step < COLLAPSE_FROM or abs(recent.mean().item() - chance) > 0.01:
            return
        spread = self._spread(images)
        if spread < 1e-4 and spread <= 0.1 * self.first_spread:  # it has lost what it had: not merely slow
            raise DeadNetError(
                f"the net has collapsed by step {step}: the mean loss of the last {WINDOW} steps is ln "
                f"{self.net.num_classes} = {chance:.4f} and its scores no longer depend on the image; try another "
                f"seed, a longer recipe.warmup (now {self.warmup:g} epochs), a lower recipe.lr (now {self.lr:g}), "
                "model.init=kaiming or model.norm=batch"
            )

    # optimisation -----------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> list[dict]:
        """Four groups with their `lr` and `weight_decay`: weights and biases, of the last layer and of the others."""
        last = [m for m in self.net.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
        muon = self.optimiser == "muon"
        decay, last_decay = self.weight_decay, self.weight_decay
        if muon and self.last_lr:
            # SGD sends its decay through the momentum, which makes it 1 / (1 − momentum) times as strong; Muon does
            # not. So the last layer loses the same share per step as the others.
            last_decay = decay / self.last_lr * (1 - self.momentum)
        groups = [
            {"name": "weights", "params": [], "lr": self.lr, "weight_decay": decay, "orthogonal": muon},
            {"name": "biases", "params": [], "lr": self.lr * self.bias_lr, "weight_decay": 0.0},
            {"name": "last weights", "params": [], "lr": self.lr * self.last_lr, "weight_decay": last_decay},
            {"name": "last bias", "params": [], "lr": self.lr * self.last_bias_lr, "weight_decay": 0.0},
        ]
        for parameter in filter(lambda p: p.requires_grad, self.net.parameters()):
            is_last = any(parameter is p for p in last.parameters())
            groups[2 * is_last + (parameter.ndim < 2)]["params"].append(parameter)
        return groups

    def lr_factor(self, step: int, total: int, steps_per_epoch: float) -> float:
        """What the learning rates are multiplied by at `step` of `total`."""
        warmup = min(self.warmup * steps_per_epoch, total / 2)
        if step + 1 < warmup:
            return (step + 1) / warmup
        if self.schedule == "step":
            return 0.1 ** sum(step >= round(share * total) for share in self.drops)
        progress = min(1.0, (step + 1 - warmup) / (total - warmup + 1))
        return 1 - progress if self.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2

    def build_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the net's parameters, at the rates before any schedule."""
        if self.optimiser == "rmsprop":  # decay rate and epsilon are Keras's, for which published rates are chosen
            return torch.optim.RMSprop(self.parameter_groups(), alpha=0.9, eps=1e-7, momentum=self.momentum)
        # without a group that is to be made orthogonal this is torch's SGD
        return Muon(self.parameter_groups(), momentum=self.momentum, nesterov=self.nesterov)

    def configure_optimizers(self) -> dict:
        optimizer = self.build_optimizer()
        self.trainer.fit_loop.setup_data()  # before it the trainer does not know how many batches an epoch has
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ValueError("the schedule needs a length: give Lightning's Trainer max_epochs or max_steps")
        per_epoch = self.trainer.num_training_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.lr_factor(step, total, per_epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # evaluation -------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(self._val_stages[dataloader_idx], batch)

    def on_validation_epoch_end(self) -> None:
        for name in self._val_stages:
            self._log(name)

    def on_test_epoch_start(self) -> None:
        self.confusion.reset()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.confusion.update(self._evaluate("test/", batch), batch[1])

    def on_test_epoch_end(self) -> None:
        self._log("test/")
        self.confusion_matrix = self.confusion.compute().cpu()  # while the processes, if several, are there to add up

    @property
    def _val_stages(self) -> tuple[str, ...]:
        return getattr(self.trainer.datamodule, "val_stages", ("val/",))

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self.net(images).float()
        self._measure(stage, logits, labels)
        return logits

    def _measure(self, stage: str, logits: Tensor, labels: Tensor) -> Tensor:
        """Counts a batch into the stage's error and loss; gives its mean cross-entropy."""
        losses = F.cross_entropy(logits, labels, reduction="none")  # (N)
        self.measures[stage]["error"].update(logits.detach(), labels)
        self.measures[stage]["loss"].update(losses.detach())  # one an image: "disable" would drop a batch's weight
        return losses.mean()

    def _log(self, stage: str) -> None:
        self.log_dict(self.measures[stage].compute(), prog_bar=True)
        self.measures[stage].reset()
