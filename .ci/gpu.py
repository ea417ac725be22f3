"""Measures training on a GPU in less than three minutes; prints lines that can be pasted, as it goes.

python .ci/gpu.py            on a machine with an NVIDIA GPU; CIFAR-10 is found in NIN_DATA or downloaded
python .ci/gpu.py rehearse   on a CPU, with narrow nets and few steps: that it runs, not how fast

Its parts: kernels of the captured step by time; images per second of Lightning, captured and not, beside the step and
its kernels alone; captured against uncaptured losses; recipe=speedrun, one seed after the other until the time is up.
A part that takes longer than its limit is given up, so that all of them are reached.
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
STEPS = 100 if CUDA else 1
SECONDS = 165  # of all parts together; 10 more are for imports
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


def kernels(recipe: str, batch: int, most: int = 15) -> None:
    """Time by kernel, and launches, of the captured step."""
    bench = speed.Bench(config(recipe, batch), STEPS)
    step, steps = bench.captured_step(CudaGraph if CUDA else StandIn), 5 if CUDA else 1
    step()
    kind = torch.profiler.ProfilerActivity.CUDA if CUDA else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        for _ in range(steps):
            step()
        speed.now(bench.device)

    def milliseconds(event: object) -> float:
        return (event.self_device_time_total if CUDA else event.self_cpu_time_total) / steps / 1e3

    events = sorted(profile.key_averages(), key=milliseconds, reverse=True)
    launches = sum(event.count for event in events) / steps
    say(f"{recipe} at {batch}: {sum(map(milliseconds, events)):.2f} ms a step in {launches:.0f} kernels")
    for event in events[:most]:
        say(f"    {milliseconds(event):8.3f} ms  {event.count / steps:5.0f} ×  {event.key[:110]}")


def rates(recipe: str, batch: int) -> None:
    """Milliseconds of a step, by row; then Lightning's without the capture."""
    rows = ("kernels alone", "bare step", "captured step", "lightning")
    for compiled, chosen in (("null", rows), ("false", ("lightning",))):
        made = config(recipe, batch, f"trainer.compile={compiled}")
        for speeds, row in speed.benchmark(made, rounds=1, steps=STEPS, rows=chosen, seconds=10):
            images, share = speeds.images_per_second(row), speeds.share(row)
            name = f"{recipe} at {batch}, trainer.compile={compiled}: {row}"
            say(f"{name} {1e3 * batch / images:.2f} ms, {images:,.0f} images/s, {share:.3f} of the peak")


def capture() -> None:
    """Losses of captured steps beside those of steps, without dropout; with dropout as many losses as steps."""
    spec = importlib.util.spec_from_file_location("captures", ROOT / "tests/run/test_capture.py")
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    captured, device = (tests.CapturedClassifier, "cuda") if CUDA else (tests.OnCPU, "cpu")
    length = {"steps": 200, "epochs": 5} if CUDA else {"steps": 10, "epochs": 5}
    for optimiser in ("sgd", "muon"):
        found = [tests.losses(kind, optimiser, device, **length)[0][:, 0] for kind in (tests.Classifier, captured)]
        gaps = (found[0] - found[1]).abs()
        largest = f"{gaps[:20].max():.2e} in the first 20, {gaps.max():.2e} in all"
        say(f"captured beside uncaptured losses, {optimiser}, {len(gaps)} steps: largest gap {largest}")
    losses = tests.losses(captured, "sgd", device, dropout=0.5, **length)[0][:, 0]
    say(f"with dropout {len(losses.unique())} losses in {len(losses)} steps")


def speedrun(until: float) -> None:
    """Seconds and errors of recipe=speedrun by seed; a seed begins if the longest so far would end in time."""
    from nin.run.train import train

    short = ["data=digits", "trainer.max_epochs=1", "trainer.limit_train_batches=4"]
    seed, longest = 0, 0.0
    while seed == 0 or time.monotonic() - BEGAN + longest < until:
        start = time.monotonic()
        made = config("speedrun", LARGE, f"seed={seed}", *([] if CUDA else short))
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            record = train(made, Path(folder))
        longest, seed = max(longest, time.monotonic() - start), seed + 1
        pace = f"{record.images_per_second:,.0f} images/s, device memory {record.device_memory_gb} GB"
        say(f"speedrun, seed {record.seed}: {record.test_error} % in {record.seconds} s, {pace}")


def main() -> None:
    quiet()
    keep_freed_memory()
    card = torch.cuda.get_device_name() if CUDA else "a rehearsal on the CPU: no figure here means anything"
    say(card, torch.__version__)
    for recipe, batch in (("paper", SMALL), ("modern", LARGE)):
        with at_most(20):
            kernels(recipe, batch)
    for recipe, batch in (("modern", SMALL), ("paper", SMALL), ("modern", LARGE), ("paper", LARGE)):
        with at_most(20):
            rates(recipe, batch)
    with at_most(20):
        capture()
    with at_most(max(30, SECONDS - (time.monotonic() - BEGAN))):
        speedrun(until=SECONDS - 10 if CUDA else 0)


if __name__ == "__main__":
    main()
