"""Measures training on a GPU in less than three minutes; prints lines that can be pasted, as it goes.

python .ci/gpu.py            on a machine with an NVIDIA GPU; CIFAR-10 is found in NIN_DATA or downloaded
python .ci/gpu.py rehearse   on a CPU, with narrow nets and few steps: that it runs, not how fast

Its parts: kernels of the captured step by time; milliseconds of Lightning, captured and not, beside the step and its
kernels alone, at batch 128; captured against uncaptured losses; the same milliseconds at batch 1024; recipe=speedrun:
two seeds, one run as long as the time allows, then further seeds until the time is up. A part that takes longer than
its limit is given up, so that all of them are reached.
"""

import contextlib
import importlib.util
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
# the tests are no package, and the project may not be installed: what follows is imported after the path is set
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from builders import NARROW, StandIn  # noqa: E402
from nin.cli import compose  # noqa: E402
from nin.config import Config  # noqa: E402
from nin.run.capture import CudaGraph  # noqa: E402
from nin.run.machine import keep_freed_memory  # noqa: E402
from nin.run.trainer import quiet  # noqa: E402
from nin.studies import speed  # noqa: E402

CUDA = torch.cuda.is_available() and "rehearse" not in sys.argv
DEVICE = ["trainer.accelerator=cuda"] if CUDA else ["trainer.accelerator=cpu", NARROW]
if not CUDA:
    speed.PEAK_SIDES["cpu"] = (256,)
SMALL, LARGE = (128, 1024) if CUDA else (4, 8)  # images a step
STEPS = {128: 100, 1024: 40} if CUDA else {4: 1, 8: 1}  # of a row, by images a step
SECONDS = 160  # of all parts together; the others of the three minutes are for imports
EPOCHS = 40, 90  # the fewest and the most of the long run: `modern` has 6.64 % after 40
BEGAN = time.monotonic()


def say(*words: object) -> None:
    print(f"[{time.monotonic() - BEGAN:5.1f} s]", *words, flush=True)


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Ends the block after so many seconds. What fails in it is printed, and the next part is measured."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"given up after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:  # the other parts are measured all the same
        say("FAILED", type(error).__name__, str(error)[:300])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def config(recipe: str, batch: int, *overrides: str) -> Config:
    precision = ["trainer.precision=bf16-mixed"] if CUDA else []
    names = [f"recipe={recipe}", f"data.batch_size={batch}", "trainer.progress_bar=false"]
    return compose([*DEVICE, *names, *precision, *overrides])


def kernels(recipe: str, batch: int, most: int = 0) -> float:
    """The milliseconds of a captured step's kernels; prints them, their number, and `most` of them by time."""
    bench = speed.Bench(config(recipe, batch), STEPS[batch])
    step, steps = bench.captured_step(CudaGraph if CUDA else StandIn), 5 if CUDA else 1
    step()
    kind = torch.profiler.ProfilerActivity.CUDA if CUDA else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        for _ in range(steps):
            step()
        speed.now(bench.device)

    def milliseconds(event: object) -> float:
        return (event.self_device_time_total if CUDA else event.self_cpu_time_total) / steps / 1e3

    kind_of_device = torch.autograd.DeviceType.CUDA if CUDA else torch.autograd.DeviceType.CPU
    events = [event for event in profile.key_averages() if event.device_type == kind_of_device]  # no calls of the host
    events.sort(key=milliseconds, reverse=True)
    launches, busy = sum(event.count for event in events) / steps, sum(map(milliseconds, events))
    say(f"{recipe} at {batch}, captured: {busy:.2f} ms a step in {launches:.0f} kernels")
    for event in events[:most]:
        say(f"    {milliseconds(event):8.3f} ms  {event.count / steps:5.0f} ×  {event.key[:110]}")
    return busy


def rates(recipe: str, batch: int, busy: float | None) -> None:
    """Milliseconds of a step, by row, beside those of its kernels; then Lightning's without the capture."""
    for compiled, chosen in (("null", ("captured step", "bare step", "lightning")), ("false", ("lightning",))):
        made, left = config(recipe, batch, f"trainer.compile={compiled}"), [*chosen]
        for speeds, row in speed.benchmark(made, rounds=1, steps=STEPS[batch], rows=chosen, seconds=14):
            images, share = speeds.images_per_second(row), speeds.share(row)
            milliseconds = 1e3 * batch / images
            of_kernels = f", {busy / milliseconds:.2f} of it the captured step's kernels" if busy else ""
            name = f"{recipe} at {batch}, trainer.compile={compiled}: {row}"
            say(f"{name} {milliseconds:.2f} ms{of_kernels}, {images:,.0f} images/s, {share:.3f} of the peak")
            left.remove(row)
        if left:
            say(f"{recipe} at {batch}, trainer.compile={compiled}: not measured: {', '.join(left)}")


def capture() -> None:
    """Losses of captured steps beside those of steps, without dropout. On one batch with dropout, each step has another
    loss; without it all have one."""
    spec = importlib.util.spec_from_file_location("captures", ROOT / "tests/run/test_capture.py")
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    captured, device = (tests.CapturedClassifier, "cuda") if CUDA else (tests.OnCPU, "cpu")
    length = {"steps": 200, "epochs": 5} if CUDA else {"steps": 10, "epochs": 5}
    for optimiser, precision in (("sgd", "32-true"), ("muon", "32-true"), ("muon", "bf16-mixed")):
        found = [
            tests.losses(kind, optimiser, device, precision=precision, **length)[0][:, 0]
            for kind in (tests.Classifier, captured)
        ]
        gaps = (found[0] - found[1]).abs()
        largest = f"{gaps[:20].max():.2e} in the first 20, {gaps.max():.2e} in all"
        say(f"captured beside uncaptured losses, {optimiser}, {precision}, {len(gaps)} steps: largest gap {largest}")
    for dropout in (0.5, 0.0):
        say(f"dropout {dropout}, one batch, 12 steps, different losses: {tests.masks(captured, device, dropout)}")


def speedrun(until: float) -> None:
    """Seconds and errors of recipe=speedrun: of two seeds, of one long run, then of further seeds. A run begins if it
    would end in time, by the longest so far."""
    seconds, longest = one_run(0)
    if time.monotonic() - BEGAN + longest < until:
        longest = max(longest, one_run(1)[1])
    beside = longest - seconds  # reading the set, evaluating, writing
    fewest, most = EPOCHS
    epochs = min(most, int((until - (time.monotonic() - BEGAN) - beside) / (seconds / 8)))
    if epochs >= fewest:
        one_run(0, epochs)
    seed = 2
    while time.monotonic() - BEGAN + longest < until:
        longest, seed = max(longest, one_run(seed)[1]), seed + 1


def one_run(seed: int, epochs: int = 8) -> tuple[float, float]:
    """Trains, and prints what came of it; returns the seconds of the training and those of the whole run."""
    from nin.run.train import train

    start = time.monotonic()
    short = [f"trainer.max_epochs={epochs}"]
    if not CUDA:
        short = ["data=digits", "trainer.max_epochs=1", "trainer.limit_train_batches=4"]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        record = train(config("speedrun", LARGE, f"seed={seed}", *short), Path(folder))
    pace = f"{record.images_per_second:,.0f} images/s, device memory {record.device_memory_gb} GB"
    say(f"speedrun, {record.epochs} epochs, seed {seed}: {record.test_error} % in {record.seconds} s, {pace}")
    return record.seconds, time.monotonic() - start


def main() -> None:
    quiet()
    keep_freed_memory()
    card = torch.cuda.get_device_name() if CUDA else "a rehearsal on the CPU: no figure here means anything"
    say(card, torch.__version__)
    small, large = [("modern", SMALL), ("paper", SMALL)], [("modern", LARGE), ("paper", LARGE)]
    busy: dict[tuple[str, int], float] = {}
    for recipe, batch in small + large:
        with at_most(12):
            is_listed = (recipe, batch) in (("paper", SMALL), ("modern", LARGE))
            busy[recipe, batch] = kernels(recipe, batch, 15 if is_listed else 0)
    for recipe, batch in small:
        with at_most(20):
            rates(recipe, batch, busy.get((recipe, batch)))
    with at_most(20):
        capture()
    for recipe, batch in large:
        with at_most(20):
            rates(recipe, batch, busy.get((recipe, batch)))
    with at_most(max(30, SECONDS + 5 - (time.monotonic() - BEGAN))):
        speedrun(until=SECONDS - 5 if CUDA else 0)


if __name__ == "__main__":
    main()
