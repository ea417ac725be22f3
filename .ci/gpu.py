"""Measures on a GPU what this project has not measured yet; prints lines that can be pasted. Meant for three minutes.

python .ci/gpu.py            on a machine with an NVIDIA GPU
python .ci/gpu.py rehearse   on a CPU, with narrow nets and few steps: that it runs, not how fast

It prints as it goes. Each part has a limit of its own, so that all of them are reached.
"""

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import torch

# the tests are no package: what follows is imported after the path is set
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]


from builders import NARROW  # noqa: E402
from nin.cli import compose  # noqa: E402
from nin.run.machine import keep_freed_memory  # noqa: E402
from nin.run.trainer import quiet  # noqa: E402
from nin.studies import speed  # noqa: E402

CUDA = torch.cuda.is_available() and "rehearse" not in sys.argv
DEVICE = ["trainer.accelerator=cuda"] if CUDA else ["trainer.accelerator=cpu", NARROW]
BATCHES = (128, 1024) if CUDA else (4, 8)
STEPS = 50 if CUDA else 1
BEGAN = time.monotonic()


def say(*words: object) -> None:
    print(f"[{time.monotonic() - BEGAN:5.1f} s]", *words, flush=True)


def config(*overrides: str):
    return compose([*DEVICE, "trainer.progress_bar=false", *overrides])


def kernels(recipe: str, batch: int, most: int = 12) -> None:
    """Time by kernel, and launches, of a step."""
    bench = speed.Bench(config(f"recipe={recipe}", f"data.batch_size={batch}"), STEPS)
    step, steps = bench.step(), 5 if CUDA else 1
    step()
    kind = torch.profiler.ProfilerActivity.CUDA if CUDA else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        for _ in range(steps):
            step()
        speed.now(bench.device)

    def spent(event: object) -> float:
        return event.self_device_time_total if CUDA else event.self_cpu_time_total

    events = sorted(profile.key_averages(), key=spent, reverse=True)
    total = sum(map(spent, events)) / steps / 1e3
    launches = sum(event.count for event in events) / steps
    say(f"{recipe} at {batch}, {bench.precision}: {total:.2f} ms a step in {launches:.0f} kernels")
    for event in events[:most]:
        say(f"    {spent(event) / steps / 1e3:8.3f} ms  {event.count / steps:5.0f} ×  {event.key[:90]}")


def rates(recipe: str, batch: int, *more: str, rows: tuple[str, ...] = ("bare step", "lightning")) -> None:
    """Milliseconds of a step and images a second, by row."""
    chosen = config(f"recipe={recipe}", f"data.batch_size={batch}", *more)
    for speeds, row in speed.benchmark(chosen, rounds=1, steps=STEPS, rows=rows, seconds=10):
        value, share = speeds.images_per_second(row), speeds.share(row)
        what = f"{recipe} at {batch} {' '.join(more)}: {row}"
        say(f"{what} {1e3 * batch / value:.2f} ms, {value:,.0f} images/s, {share:.3f} of the peak")


def capture() -> None:
    """Losses of captured steps beside those of steps, without dropout; with dropout as many losses as steps."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("captures", Path(__file__).parents[1] / "tests/run/test_capture.py")
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    captured, device = (tests.CapturedClassifier, "cuda") if CUDA else (tests.OnCPU, "cpu")
    steps = 88 if CUDA else 8  # of digits' 44 an epoch
    for optimiser in ("sgd", "muon") if CUDA else ("sgd",):
        found = [tests.losses(kind, optimiser, device, steps=steps)[0][:, 0] for kind in (tests.Classifier, captured)]
        gaps = (found[0] - found[1]).abs()
        say(f"captured beside uncaptured, {optimiser}: gap {gaps[:20].max():.2e} in 20 steps, {gaps.max():.2e} in all")
    masks = tests.losses(captured, "sgd", device, dropout=0.5, steps=steps)[0][:, 0].unique()
    say(f"with dropout {len(masks)} losses in {steps} steps")


def speedrun(limit: float) -> None:
    """Seconds and errors of recipe=speedrun, one seed after the other, until the time is up."""
    from nin.run.train import train

    short = (
        [] if CUDA else ["data=digits", "data.batch_size=32", "trainer.max_epochs=1", "trainer.limit_train_batches=4"]
    )
    start, seed = time.monotonic(), 0
    while time.monotonic() - start < limit or seed == 0:
        for compiled in ("true", "false") if CUDA else ("false",):
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
                record = train(
                    config("recipe=speedrun", f"seed={seed}", f"trainer.compile={compiled}", *short), Path(folder)
                )
            say(
                f"speedrun, compile={compiled}, seed {seed}: {record.test_error} % in {record.seconds} s, "
                f"{record.images_per_second:,.0f} images/s, device memory {record.device_memory_gb} GB"
            )
        seed += 1


def main() -> None:
    quiet()
    keep_freed_memory()
    say(
        torch.cuda.get_device_name() if CUDA else "a rehearsal on the CPU: no figure here means anything",
        torch.__version__,
    )
    small, large = BATCHES
    parts = [lambda: kernels("paper", small), lambda: kernels("modern", large)]
    on_gpu = ("kernels alone", "bare step", "lightning")
    parts += [
        lambda: rates("modern", small, rows=on_gpu),
        lambda: rates("paper", small),
        lambda: rates("modern", large),
    ]
    if CUDA:
        compiled = ("trainer.compile=true",)
        parts += [lambda: rates("modern", small, *compiled, rows=("lightning",))]
        parts += [lambda: rates("paper", small, *compiled, rows=("lightning",))]
        parts += [lambda: rates("modern", large, "trainer.compile=true", rows=("lightning",))]
    parts += [capture]
    for part in parts:
        try:
            part()
        except Exception as error:  # the other parts are measured all the same
            say("FAILED", type(error).__name__, str(error)[:300])
    torch.backends.cudnn.benchmark = True
    say("with cudnn.benchmark:")
    rates("modern", small, rows=("bare step",))
    rates("modern", large, rows=("bare step",))
    torch.backends.cudnn.benchmark = False
    speedrun(limit=60 if CUDA else 1)


if __name__ == "__main__":
    main()
