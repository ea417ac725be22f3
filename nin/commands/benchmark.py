"""Images per second: training and inference beside the matrix products that this machine computes.

python scripts/benchmark.py                                     the default recipe; ends within two minutes
python scripts/benchmark.py recipe=paper data.batch_size=64     any setting of scripts/train.py
python scripts/benchmark.py rows=lightning,bare\\ step rounds=9 steps=50
python scripts/benchmark.py growth=batch,size,threads,processes out=maps

rows=       kernels alone and captured step (on a GPU), bare step, lightning, usual port, usual port with memory kept,
            and inference with 1, 128 and 1000 images, eager and with batch norm folded; part of a name chooses all
            rows that contain it
rounds=     by default 3, of which as many are run as end in time
steps=      of a row in a round, at most; by default 20, and fewer where they take long
seconds=    nothing begins that would end later; by default 90. A round takes about a minute on an idle CPU core
growth=     instead of the rows: training images per second by images per step, by image size, by threads, by processes;
            a table, and a picture in out=FOLDER. On a CPU, sizes above 32 pixels are timed with smaller batches, of as
            many pixels as data.batch_size images of 32; the batch stands beside each size

A share is of the matrix products of the row's precision: inference and the usual port are in fp32. They are timed
before every row; the fastest of a round counts.
"""

from __future__ import annotations

from nin import cli
from nin.checks import one_of, whole_number
from nin.config import Config
from nin.errors import SettingError

OWN = {"rows": "", "rounds": "3", "steps": "20", "seconds": "90", "growth": "", "out": "maps"}
SETTINGS = ("model", "head", "data", "recipe", "trainer", "experiment", "seed")
GROWTH = ("batch", "size", "threads", "processes")


def main(arguments: list[str]) -> None:
    own = cli.plain_settings([each for each in arguments if each.partition("=")[0] in OWN], OWN)
    overrides = [each for each in arguments if each.partition("=")[0] not in OWN]
    numbers = {name: whole_number(1, 999_999, **{name: own[name]}) for name in ("rounds", "steps", "seconds")}
    rows, axes = ([*filter(None, own[name].split(","))] for name in ("rows", "growth"))
    for axis in axes:
        one_of(GROWTH, growth=axis)
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0]
        if name.partition(".")[0].partition("/")[0] not in SETTINGS:
            known = ", ".join((*OWN, *SETTINGS))
            raise SettingError(name, override.partition("=")[2], f"unknown setting; must be one of {known}")
    config = cli.compose(overrides)

    from nin.run import build

    build.check(config)
    if config.trainer.processes > 1:
        raise SettingError("trainer.devices", config.trainer.devices, "benchmark measures one process; set it to 1")
    if axes:
        _grow(config, axes, own["out"])
    else:
        _time(config, rows, numbers)


def _time(config: Config, parts: list[str], numbers: dict[str, int]) -> None:
    from nin.run.machine import versions
    from nin.run.trainer import precision_of
    from nin.studies import speed

    chosen = tuple(row for row in speed.ROWS if not parts or any(part in row for part in parts))
    if not chosen:
        raise SettingError("rows", ",".join(parts), f"names none of: {'; '.join(speed.ROWS)}")
    speeds = None
    for speeds, row in speed.benchmark(config, rows=chosen, **numbers):
        if speeds.rows[row][1:] == [] and row == next(iter(speeds.rows)):
            print(f"{speeds.device}, torch {versions()['torch']}")
            print(f"batch {config.data.batch_size}, {precision_of(config.trainer)}, norm {config.model.norm}\n")
        print(f"round {len(speeds.rows[row])}: {row}, {speeds.rows[row][-1]:,.1f} images/s", flush=True)
    if speeds is None:
        raise SettingError("rows", ",".join(parts), "requires a GPU")
    print(f"\n{speed.table(speeds)}")


def _grow(config: Config, axes: list[str], out: str) -> None:
    from nin import files
    from nin.studies import growth

    folder, curves = files.make_folder(out), {}  # before minutes of measurements
    for axis in axes:
        curves[axis] = growth.measure(config, axis)
        print(growth.table(axis, curves[axis]), flush=True)
    file = folder / "growth.png"
    files.save_figure(growth.draw(curves), file)
    print(file)


def start() -> None:
    cli.run_script(main)
