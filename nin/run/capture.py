"""A training step as one CUDA graph: forward, backward, clipping and optimiser, started by a single launch.

At batch 128 the host of a GPU takes longer to launch a step's kernels than the GPU to run them. A graph launches all of
them at once. Everything else about the training, its hooks, schedule, checkpoints and record, stays Lightning's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nin.checks import one_line
from nin.errors import RunError
from nin.run.kernels import matrix_products
from nin.task import Classifier

WARMUP = 3  # steps before the capture: cuDNN chooses its algorithms in them, and the optimiser makes its buffers


class CudaGraph:
    """A recorded step: recording does not run it; `replay` runs it and returns its result."""

    def __init__(self, step: Callable[[], Any]) -> None:
        self.graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream()  # torch.cuda.graph does not return to it where the capture fails
        with torch.cuda.stream(before), torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.result = step()  # its tensors are the graph's own: each replay fills them again

    def replay(self) -> Any:
        self.graph.replay()
        return self.result


@contextmanager
def rates_in_tensors(optimizer: Any, rates: Iterable[Tensor]) -> Iterator[None]:
    """In the block the groups' rates are these tensors, and the optimiser is fused, which reads them on the device."""
    numbers = [group["lr"] for group in optimizer.param_groups]
    try:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group |= {"lr": rate, "fused": True}
        yield
    finally:
        for group, number in zip(optimizer.param_groups, numbers, strict=True):
            group |= {"lr": number, "fused": None}


class CapturedClassifier(Classifier):
    """A `Classifier` whose training step is captured after `WARMUP` steps, which are steps of the training too.

    A graph repeats addresses and numbers, so what changes from step to step lies in tensors: the batch, the rates, and
    the sums of `Classifier`. Dropout draws anew in each replay: torch's generators support graphs. A batch of another
    size than the largest before the capture, as a folder with a damaged picture makes it, is a step of its own outside
    the graph.
    """

    graph_type: type = CudaGraph  # tests without a GPU replace it

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.graph: Any = None
        self.warmed = 0  # steps before the capture so far
        self.static: tuple[Tensor, ...] = ()  # images and labels at the addresses that the graph reads
        groups = self.optimizers(use_pl_optimizer=False).param_groups
        self.rates = torch.zeros(len(groups), device=self.device)  # the groups' rates, where the graph reads them
        self.numbers = [0.0] * len(groups)  # the same on the host

    def on_fit_end(self) -> None:
        self.graph, self.static = None, ()  # the weights may move now

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if not self.static or (self.graph is None and len(batch[1]) > len(self.static[1])):
            self.static = tuple(part.clone() for part in batch)
            self.warmed = 0
        self.fits = batch[1].shape == self.static[1].shape
        if self.fits:
            for place, part in zip(self.static, batch, strict=True):
                place.copy_(part)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        with matrix_products(self.net) if self.trainer.precision == "bf16-mixed" else nullcontext():
            return super().training_step(self.static if self.fits else batch, batch_idx)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Lightning's optimiser step, which runs forward and backward in `optimizer_closure`."""

        def step() -> Any:
            super(CapturedClassifier, self).optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            result = optimizer_closure._result
            result.closure_loss = None  # it would keep the backward pass's nodes, which belong to the graph's stream
            return result

        with self._rates_in_a_tensor(optimizer):
            if self.warmed < WARMUP or not self.fits:
                self.warmed += self.fits
                with side_stream(self.device):
                    step()
                return
            if self.graph is None:
                optimizer.zero_grad(set_to_none=True)  # the graph's gradients are its own
                self.graph = self._captured(step)
            optimizer_closure._result = self.graph.replay()

    def _captured(self, step: Callable[[], Any]) -> Any:
        """The step as a graph.

        Raises:
            RunError: CUDA refuses to capture it. What ran of it is undefined, so no step can follow.
        """
        try:
            return self.graph_type(step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = one_line(str(error).partition("\n")[0])
            raise RunError(f"the training step cannot be captured ({reason}); set trainer.compile=false") from error

    @contextmanager
    def _rates_in_a_tensor(self, optimizer: Any) -> Iterator[None]:
        """`rates_in_tensors` with the elements of `self.rates`, after those that the schedule changed are filled in.
        Outside the block the rates are numbers, for schedule and checkpoint."""
        numbers = [group["lr"] for group in optimizer.param_groups]
        rates = self.rates.unbind()
        for rate, number, before in zip(rates, numbers, self.numbers, strict=True):
            if number != before:
                rate.fill_(number)  # a copy from the host would wait for the earlier steps
        self.numbers = numbers
        with rates_in_tensors(optimizer, rates):
            yield


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """A stream beside the current one, as CUDA graphs require of the steps before the capture; nothing on another
    device."""
    if device.type != "cuda":
        yield
        return
    stream = _stream_of(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """The device's side stream: one for all steps, for torch keeps the freed memory of each stream apart."""
    return torch.cuda.Stream(device)
