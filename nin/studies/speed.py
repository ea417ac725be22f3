"""Speed of training and inference beside the most that this machine multiplies, in a limited time.

Each row of the table is timed in turn, round after round, so that a drift of the machine's speed affects all of them. A
round repeats the matrix products, too, before each row; each row's operations are stated as a share of the fastest
repeat of its round.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from nin.config import Config
from nin.cost import multiply_accumulates
from nin.data.module import Images
from nin.data.preprocess import Whiten
from nin.data.sets import ImageSet
from nin.errors import SettingError
from nin.fold import fold
from nin.run import capture
from nin.run.build import build_data, build_net, build_task, captures
from nin.run.kernels import matrix_products
from nin.run.machine import device_name, keep_freed_memory, now
from nin.run.trainer import build_trainer, precision_of, quiet

WARMUP = 2  # steps before the clock starts; with trainer.compile two more, and the capture
SIDE = 32  # pixels, as CIFAR-10 has them
CLASSES = 10
INFERENCE = (1, 128, 1000)  # images at a time
SECONDS = 90  # after which no row ends, as far as the rows before tell
START = 15  # seconds, about, in which a process starts and imports torch and Lightning
LONGEST = 4.0  # seconds of a row in a round, as far as one step allows it
BUSY = 1.1  # fastest repeat of the matrix products : median, above which the machine is too busy to trust
GIVEN = 0.9  # of the threads' time: the median of what the repeats on a CPU got, below which it is too busy, too
TRAINING = 3  # passes of a training step: forward, and two backward
PEAK_SIDES = {"cpu": (1024, 2048), "mps": (4096,), "cuda": (8192,)}  # of the square matrices
PEAK_SECONDS = 0.4  # of a repeat: their product, again and again
PEAK_REPEATS = 3  # when a round begins; one more comes before each row


@dataclass
class Speeds:
    """Images a second of each row, and operations a second of the matrix products, one value a round.

    Attributes:
        rows: images a second by row.
        peaks: multiply-accumulates a second by precision, of a round's fastest repeat.
        repeats: the same of every repeat of all rounds.
        given: CPU seconds : seconds of this process's threads, of each repeat on a CPU.
        per_image: by row: multiply-accumulates of an image, and the precision in which they are computed.
        device: its name.
    """

    device: str
    rows: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, list[float]] = field(default_factory=dict)
    repeats: dict[str, list[float]] = field(default_factory=dict)
    given: list[float] = field(default_factory=list)
    per_image: dict[str, tuple[float, str]] = field(default_factory=dict)

    def add_repeats(self, kind: str, repeats: list[float], *, begins: bool = False) -> None:
        """Adds repeats of the matrix products to this round, or to one that begins with them."""
        peaks = self.peaks.setdefault(kind, [])
        peaks.append(max(repeats) if begins else max(peaks.pop(), *repeats))
        self.repeats.setdefault(kind, []).extend(repeats)

    def images_per_second(self, row: str) -> float:
        """The median of the rounds."""
        return statistics.median(self.rows[row])

    def share(self, row: str) -> float:
        """The row's operations as a share of the matrix products', the median of the rounds' ratios."""
        operations, kind = self.per_image[row]
        pairs = zip(self.rows[row], self.peaks[kind], strict=False)  # the last round may have been cut short
        return statistics.median(speed * operations / peak for speed, peak in pairs)

    def ratio(self, row: str, other: str) -> float:
        """Speed of a row : speed of another, the median of the rounds' ratios."""
        pairs = zip(self.rows[row], self.rows[other], strict=False)
        return statistics.median(own / others for own, others in pairs)

    def busy(self) -> str:
        """A sentence where the machine had other work: most matrix products were much slower than the fastest, or got
        little of the CPU."""
        if self.given and (given := statistics.median(self.given)) < GIVEN:
            return (
                f"The matrix products got {100 * given:.0f} % of their threads' time: this machine has other work; do "
                "not trust these figures."
            )
        spread = max((max(each) / statistics.median(each) for each in self.repeats.values()), default=1.0)
        if spread <= BUSY:
            return ""
        return (
            f"The fastest matrix product is {100 * (spread - 1):.0f} % faster than the median one: this machine has "
            "other work; do not trust these figures."
        )


ROWS: tuple[str, ...] = ("kernels alone", "bare step", "captured step", "lightning")
ROWS += ("usual port", "usual port with memory kept")
ROWS += tuple(f"{kind} {number}" for number in INFERENCE for kind in ("eager", "folded"))


def benchmark(
    config: Config, *, rounds: int = 3, steps: int = 20, rows: tuple[str, ...] = ROWS, seconds: float = SECONDS
) -> Iterator[tuple[Speeds, str]]:
    """Times rows in rounds; yields the speeds so far and the row that was just timed.

    The images are random and of CIFAR-10's size: their content does not matter here.

    Args:
        config: the run.
        rounds: as many as fit into `seconds`.
        steps: at most so many a row and round, and at least one: fewer where they would take more than 4 s.
        rows: names of `ROWS`. The kernels alone and the captured step are timed on a GPU only.
        seconds: no row or round begins that would not end in this time, by the pace of those before.

    Raises:
        SettingError: a net for images of another size.
    """
    quiet()
    keep_freed_memory()
    if config.data.size != SIDE:
        raise SettingError("data.size", config.data.size, f"the steps are timed on images of {SIDE} pixels a side")
    config = replace(
        config,
        data=replace(config.data, val=0, share=1.0),
        trainer=replace(config.trainer, progress_bar=False),
        eval_curve=False,
    )
    L.seed_everything(config.seed, verbose=False)
    bench = Bench(config, steps)
    speeds = Speeds(device_name(bench.device), given=bench.given)
    began, longest = time.monotonic(), 0.0
    for number in range(rounds):
        start = time.monotonic()
        if number and start - began + longest > seconds:
            return
        for kind in dict.fromkeys(bench.per_image(row)[1] for row in filter(bench.can, rows)):
            speeds.add_repeats(kind, bench.peaks(kind), begins=True)
        for row in filter(bench.can, rows):
            if speeds.rows and time.monotonic() - began + bench.least(row) > seconds:
                return  # a slow or busy machine: the rows that are left out say so
            _, kind = speeds.per_image[row] = bench.per_image(row)
            speeds.add_repeats(kind, [bench.product(kind, bench.sides[kind])])
            speeds.rows.setdefault(row, []).append(bench.images_per_second(row))
            yield speeds, row
        longest = max(longest, time.monotonic() - start)


class Bench:
    """What is timed: images a second of each row.

    Args:
        config: the run.
        steps: at most so many are timed at a time.
    """

    def __init__(self, config: Config, steps: int) -> None:
        self.config, self.steps = config, steps
        trainer = build_trainer(config, precision_of(config.trainer), logger=False, enable_checkpointing=False)
        self.device, self.precision = trainer.strategy.root_device, precision_of(config.trainer)
        self.context = trainer.precision_plugin.forward_context
        self.batch = config.data.batch_size
        self.operations = multiply_accumulates(self.net(), 3, SIDE, SIDE)
        self.pace = 1.0  # seconds of the last bare step, by which the length of a Lightning run is chosen
        self.sides: dict[str, int] = {}  # of the matrices by precision
        self.pace_of_an_image = 0.0  # seconds, of the last inference
        self.given: list[float] = []

    def net(self) -> nn.Module:
        return build_net(self.config, classes=CLASSES, channels=3)

    def can(self, row: str) -> bool:
        """Whether this machine has the row."""
        on_cuda = self.device.type == "cuda"
        return {"kernels alone": on_cuda, "captured step": on_cuda and captures(self.config)}.get(row, True)

    def least(self, row: str) -> float:
        """Seconds that the row takes at least, by the pace of the rows before."""
        kind, _, number = row.partition(" ")
        if kind in ("eager", "folded"):
            return 2 * int(number) * self.pace_of_an_image
        return (WARMUP + 1) * self.pace + START * (row == "usual port")

    def per_image(self, row: str) -> tuple[float, str]:
        """Multiply-accumulates of an image in this row, and the precision in which they are computed."""
        if row.startswith(("eager", "folded")):
            return self.operations, "32-true"
        return TRAINING * self.operations, "32-true" if row.startswith("usual") else self.precision

    def images_per_second(self, row: str) -> float:
        kind, _, number = row.partition(" ")
        if kind in ("eager", "folded"):
            return self.inference(int(number), folded=kind == "folded")
        if row == "usual port":
            return in_a_fresh_process(self.config, self.steps)
        if row == "usual port with memory kept":
            return self.port()
        timed = {"kernels alone": self.kernels, "captured step": self.captured, "lightning": self.lightning}
        return timed.get(row, self.bare)()

    def peaks(self, kind: str) -> list[float]:
        """Multiply-accumulates a second of square matrices in this precision, some repeats, at the side that has the
        fastest."""
        sides = [self.sides[kind]] if kind in self.sides else PEAK_SIDES[self.device.type]
        found = {side: [self.product(kind, side) for _ in range(PEAK_REPEATS)] for side in sides}
        self.sides[kind] = max(found, key=lambda side: max(found[side]))
        return found[self.sides[kind]]

    def product(self, kind: str, side: int) -> float:
        """Multiply-accumulates a second of square matrices in this precision."""
        dtype = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[kind]
        a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
        start, cpu_start = time.perf_counter(), time.process_time()
        with as_convolutions():
            pace = seconds_of(lambda: a @ b, self.device, 50, longest=PEAK_SECONDS)
        if self.device.type == "cpu":
            threads_time = (time.perf_counter() - start) * torch.get_num_threads()
            self.given.append((time.process_time() - cpu_start) / threads_time)
        return side**3 / pace

    def bare(self) -> float:
        """Forward, backward and the recipe's optimiser step on one batch again and again."""
        self.pace = seconds_of(self.step()[0], self.device, self.steps)
        return self.batch / self.pace

    def step(self, *, products: bool = False) -> tuple[Callable[[], None], torch.optim.Optimizer]:
        """A training step without data, hooks and metrics, and its optimiser.

        Args:
            products: convolutions as matrix products, as the captured training computes them in bf16.
        """
        images = torch.randn(self.batch, 3, SIDE, SIDE).to(self.device, memory_format=torch.channels_last)
        labels = torch.randint(0, CLASSES, (self.batch,), device=self.device)
        net = self.net().to(self.device, memory_format=torch.channels_last)
        optimizer = build_task(self.config, net).build_optimizer()

        def step() -> None:
            with self.context(), matrix_products(net) if products else nullcontext():
                loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step, optimizer

    def captured(self) -> float:
        """The bare step as the training captures it: without the host that launches its kernels."""
        return self.batch / seconds_of(self.captured_step(), self.device, self.steps)

    def captured_step(self, graph_type: type = capture.CudaGraph) -> Callable[[], object]:
        """A training step without data, hooks and metrics as one graph, which reads its rates on the device."""
        step, optimizer = self.step(products=self.precision == "bf16-mixed")
        rates = torch.tensor([group["lr"] for group in optimizer.param_groups], device=self.device)
        with capture.rates_in_tensors(optimizer, rates.unbind()):
            with capture.side_stream(self.device):
                for _ in range(capture.WARMUP):
                    step()
            optimizer.zero_grad(set_to_none=True)
            graph = graph_type(step)
        self.kept = step, optimizer, rates  # the graph reads and writes their tensors
        return graph.replay

    def kernels(self) -> float:
        """The bare step as long as its kernels take on the GPU, by torch's profiler: without the host that launches
        them."""
        (step, _), steps = self.step(), 5
        for _ in range(WARMUP):
            step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(steps):
                step()
            torch.cuda.synchronize()
        microseconds = sum(event.self_device_time_total for event in profile.key_averages())
        return steps * self.batch / microseconds * 1e6

    def lightning(self) -> float:
        """The training of scripts/train.py: batches cut, flipped and normalised in memory, Lightning, metrics."""
        steps = max(1, min(self.steps, int(LONGEST / self.pace)))
        warmup = WARMUP + 3 * captures(self.config)
        data = random_images(self.config, count=max(2000, (steps + warmup) * self.batch))
        clock = Clock(warmup)
        trainer = build_trainer(
            self.config,
            self.precision,
            [clock],
            max_epochs=1,
            gradient_clip_val=self.config.trainer.gradient_clip_val,
            limit_train_batches=steps + warmup,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
        )
        trainer.fit(build_task(self.config, self.net().to(memory_format=torch.channels_last)), datamodule=data)
        return steps * self.batch / clock.seconds

    def port(self) -> float:
        """The usual port: fp32, channels first, SGD, PIL pictures in a DataLoader with worker processes."""
        from torchvision import transforms

        count = max(2000, (self.steps + WARMUP + 1) * self.batch)
        images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8)
        augment = [transforms.RandomCrop(SIDE, padding=4), transforms.RandomHorizontalFlip()]
        scale = [transforms.ToTensor(), transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))]
        pictures = PILImages(images, torch.randint(0, CLASSES, (count,)), transforms.Compose([*augment, *scale]))
        net = self.net().to(self.device)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
        loader = iter(DataLoader(pictures, self.batch, shuffle=True, num_workers=2, drop_last=True))

        def step() -> None:
            images, labels = (part.to(self.device) for part in next(loader))
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return self.batch / seconds_of(step, self.device, self.steps)

    @torch.inference_mode()
    def inference(self, number: int, *, folded: bool) -> float:
        """A trained net on so many images at a time, in fp32, channels last, as `nin.load` returns it."""
        net = (fold(self.net()) if folded else self.net()).eval().to(self.device, memory_format=torch.channels_last)
        images = torch.randn(number, 3, SIDE, SIDE).to(self.device, memory_format=torch.channels_last)
        pace = seconds_of(lambda: net(images), self.device, 50, warmup=1)
        self.pace_of_an_image = pace / number
        return number / pace


@contextmanager
def as_convolutions() -> Iterator[None]:
    """In the block fp32 matrix products on NVIDIA's GPUs are in TF32 where convolutions are, as by torch's default."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def in_a_fresh_process(config: Config, steps: int) -> float:
    """The usual port's images a second where the system gets freed memory back, as every process starts: what this
    process keeps, it keeps."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # unlike Pool's, its processes may fork
        return pool.submit(_port, config, steps, torch.get_num_threads()).result()


def _port(config: Config, steps: int, threads: int) -> float:
    torch.set_num_threads(threads)
    quiet()
    return Bench(config, steps).port()


def random_images(config: Config, count: int) -> Images:
    """The data module of these settings with `count` random training images, set up."""
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (count,))
    data = build_data(config)
    if config.data.preprocessing == Whiten.name:  # fitting one takes 15 s, and any takes as long to apply
        data.preprocess = Whiten(torch.zeros(3 * SIDE**2), torch.eye(3 * SIDE**2), (3, SIDE, SIDE))
    data.set = ImageSet(images, labels, images[:500], labels[:500], tuple("0123456789"), flip=True)
    data.setup()
    return data


class PILImages(Dataset):
    """Images as torchvision's CIFAR-10 returns them: arrays made into PIL pictures, then transformed, one by one."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Clock(L.Callback):
    """Seconds from the end of the warm-up to the end of the last step."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup

    def on_train_batch_end(self, trainer: L.Trainer, *rest: object) -> None:
        if trainer.global_step == self.warmup:
            self.start = now(trainer.strategy.root_device)

    def on_train_end(self, trainer: L.Trainer, *rest: object) -> None:
        self.seconds = now(trainer.strategy.root_device) - self.start


def seconds_of(
    step: Callable[[], object],
    device: torch.device,
    most: int,
    warmup: int = WARMUP,
    longest: float | None = None,
) -> float:
    """Seconds of a step: the mean of as many as fit into `longest`, by default 4 s, at most `most`, after a warm-up."""
    longest = LONGEST if longest is None else longest
    for _ in range(warmup):
        start = now(device)
        step()
        pace = now(device) - start
        if pace > longest:
            break
    count = max(1, min(most, int(longest / pace)))
    start = now(device)
    for _ in range(count):
        step()
    return (now(device) - start) / count


def line(speeds: Speeds, row: str) -> str:
    """A row of the table, or of what is printed meanwhile."""
    values = speeds.rows[row]
    spread = f"{min(values):,.0f} to {max(values):,.0f}" if len(values) > 1 else ""
    return f"  {row:<28}{speeds.images_per_second(row):>10,.1f}  {speeds.share(row):5.2f}  {spread}".rstrip()


def table(speeds: Speeds) -> str:
    """Medians, shares of the peak and ranges, then the ratios, then a warning where the machine is busy."""
    rounds = max(len(values) for values in speeds.rows.values())
    spread = f"; range of {rounds} rounds" if rounds > 1 else ", one round"
    lines = [f"{'':30}{'images/s':>10}  share of the peak{spread}"]
    lines += [line(speeds, row) for row in speeds.rows]
    lines += [
        f"  matrix peak, {kind}: {2 * statistics.median(peaks) / 1e9:,.0f} GFLOP/s"
        for kind, peaks in speeds.peaks.items()
    ]
    lines.append("")
    for other in ("kernels alone", "bare step", "captured step", "usual port", "usual port with memory kept"):
        if other in speeds.rows and "lightning" in speeds.rows:
            lines.append(f"  lightning is {speeds.ratio('lightning', other):.3f} of: {other}")
    return "\n".join([*lines, *filter(None, [speeds.busy()])])
