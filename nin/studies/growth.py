"""How training speed grows: by images per step, by the size of an image, by threads and by processes."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from nin.checks import cores
from nin.config import Config
from nin.cost import multiply_accumulates
from nin.run.build import build_net, build_task
from nin.run.machine import keep_freed_memory
from nin.run.trainer import quiet
from nin.studies import speed
from nin.studies.tables import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 10  # of a point at most; fewer where they take more than 4 s
AXES = {  # in words, and the values that are measured, as far as the machine has them
    "batch": ("images per step", (1, 4, 16, 64, 128, 512)),
    "size": ("pixels a side", (16, 32, 64, 96)),
    "threads": ("threads of one process", (1, 2, 4, 8, 16, 32, 64)),
    "processes": ("processes of one thread", (1, 2, 4, 8, 16)),
}
ON_A_GPU = {"batch": (1, 16, 128, 512, 1024, 2048, 4096), "size": (16, 32, 64, 96, 128)}


class Point(NamedTuple):
    """The speed of the bare training step at one value of an axis.

    Attributes:
        value: of the axis.
        batch: images per step of a process.
        images: per second.
        gflops: GFLOP per second.
    """

    value: int
    batch: int
    images: float
    gflops: float


Curve = list[Point]


def measure(config: Config, axis: str) -> Curve:
    """The speed of the bare training step at each value of an axis."""
    quiet()
    keep_freed_memory()
    bench = speed.Bench(config, STEPS)
    threads = torch.get_num_threads()
    values = ON_A_GPU.get(axis, AXES[axis][1]) if bench.device.type == "cuda" else AXES[axis][1]
    if axis in ("threads", "processes"):
        values = tuple(value for value in values if value <= cores())
    curve: Curve = []
    for value in values:
        if axis == "processes":
            batch, size = config.data.batch_size, speed.SIDE
            images = _side_by_side(config, value)
        else:
            torch.set_num_threads(value if axis == "threads" else threads)
            size = value if axis == "size" else speed.SIDE
            batch = value if axis == "batch" else batch_at(config.data.batch_size, size, bench.device)
            images = images_per_second(bench, batch, size)
        operations = speed.TRAINING * multiply_accumulates(_net(config, size), 3, size, size)
        curve.append(Point(value, batch, images, 2 * operations * images / 1e9))
    torch.set_num_threads(threads)
    return curve


def batch_at(batch: int, size: int, device: torch.device) -> int:
    """The images per step at a size: on a CPU fewer above 32 pixels, so that a step has as many pixels."""
    if size <= speed.SIDE or device.type == "cuda":
        return batch
    return max(1, batch * speed.SIDE**2 // size**2)


def images_per_second(bench: speed.Bench, batch: int, size: int) -> float:
    """Training images a second of the bare step; where a step takes long, few are timed."""
    images = torch.randn(batch, 3, size, size).to(bench.device, memory_format=torch.channels_last)
    labels = torch.randint(0, speed.CLASSES, (batch,), device=bench.device)
    net = _net(bench.config, size).to(bench.device, memory_format=torch.channels_last)
    optimizer = build_task(bench.config, net).build_optimizer()

    def step() -> None:
        with bench.context():
            loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return batch / speed.seconds_of(step, bench.device, STEPS, warmup=1)


def _net(config: Config, size: int) -> torch.nn.Module:
    sized = replace(config, data=replace(config.data, size=size))
    return build_net(sized, classes=speed.CLASSES, channels=3)


def _side_by_side(config: Config, processes: int) -> float:
    """Images a second of several processes of one thread that train a net each at the same time, together."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with context.Pool(processes, _wait_for, (barrier,)) as pool:
        return sum(pool.map(_of_a_process, [config] * processes, chunksize=1))


_barrier: list = []


def _wait_for(barrier: object) -> None:
    _barrier.append(barrier)


def _of_a_process(config: Config) -> float:
    quiet()
    keep_freed_memory()
    torch.set_num_threads(1)
    bench = speed.Bench(config, STEPS)
    _barrier[0].wait()  # they begin together
    return images_per_second(bench, config.data.batch_size, speed.SIDE)


def table(axis: str, curve: Curve) -> str:
    """A curve in lines."""
    lines = [f"{AXES[axis][0]:>24}  {'batch':>7}  {'images/s':>10}  {'GFLOP/s':>9}"]
    for point in curve:
        lines.append(f"{point.value:>24,}  {point.batch:>7,}  {point.images:>10,.1f}  {point.gflops:>9,.1f}")
    return "\n".join(lines)


def draw(curves: dict[str, Curve]) -> Figure:
    """A panel for each axis: GFLOP a second over its values, each point with its images a second. The batch stands in
    the axis's name, or under each value if it differs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(curves), 3.2), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for axis, (name, curve) in zip(axes, curves.items(), strict=True):
        values, batches, images, rates = zip(*curve, strict=True)
        axis.plot(values, rates, "o-", color=COLOURS["gap"])
        axis.set_xscale("log", base=2)
        axis.set_xticks(values, [f"{value:,}" for value in values])
        axis.set_xlabel(AXES[name][0])
        if len(set(batches)) == 1:
            axis.set_xlabel(f"{AXES[name][0]} (batch {batches[0]:,})")
        elif batches != values:
            axis.set_xticks(values, [f"{value:,}\n{batch:,}" for value, batch in zip(values, batches, strict=True)])
            axis.set_xlabel(f"{AXES[name][0]}; below them the batch")
        axis.minorticks_off()
        axis.margins(x=0.15)
        axis.set(ylim=(0, max(point.gflops for points in curves.values() for point in points) * 1.2))
        for value, speed_there, rate in zip(values, images, rates, strict=True):
            axis.annotate(
                f"{speed_there:,.0f}", (value, rate), (0, 6), textcoords="offset points", ha="center", fontsize=8
            )
    axes[0].set_ylabel("GFLOP/s of the training step\n(numbers: images/s)")
    return figure
