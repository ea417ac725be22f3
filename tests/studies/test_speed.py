from types import SimpleNamespace

import pytest
import torch

from builders import StandIn
from nin.cli import compose
from nin.errors import SettingError
from nin.studies import growth, speed
from nin.studies.speed import Speeds, benchmark, table

TINY = ["data.batch_size=4", "data.share=0.01", "model=plain", "trainer.accelerator=cpu"]


@pytest.fixture
def small(monkeypatch):
    """Matrices that take no time, and rows of a step."""
    monkeypatch.setattr(speed, "PEAK_SIDES", {"cpu": (32, 64)})
    monkeypatch.setattr(speed, "PEAK_SECONDS", 0.0)
    monkeypatch.setattr(speed, "LONGEST", 0.0)


@pytest.mark.parametrize("overrides", [[], ["model.norm=none", "recipe=paper"]])
def test_each_row_is_timed_beside_the_peak(overrides, small):
    settings = compose([*overrides, *TINY])
    chosen = ("kernels alone", "captured step", "bare step", "lightning", "usual port with memory kept")
    chosen += ("eager 1", "folded 1")
    seen = []
    for speeds, row in benchmark(settings, steps=1, rounds=2, rows=chosen, seconds=1000):
        seen.append((row, len(speeds.rows[row])))
    assert seen == [(row, number) for number in (1, 2) for row in chosen[2:]]  # the others are timed on a GPU
    assert settings.data.share == 0.01  # the caller's settings stay as they were
    assert all(value > 0 for row in chosen[2:] for value in speeds.rows[row])
    assert all(speeds.share(row) > 0 for row in chosen[2:])
    of_fp32 = speeds.repeats["32-true"]
    assert speeds.peaks["32-true"] == [max(of_fp32[: len(of_fp32) // 2]), max(of_fp32[len(of_fp32) // 2 :])]


@pytest.mark.parametrize("overrides", [[], ["model.norm=none", "recipe=paper"], ["trainer.precision=bf16-mixed"]])
def test_the_captured_step_repeats_the_step_of_the_training(overrides, small):
    """With a stand-in for the graph, which runs on a CPU."""
    bench = speed.Bench(compose([*overrides, *TINY]), steps=2)
    replay = bench.captured_step(StandIn)
    _, optimizer, rates = bench.kept
    groups = optimizer.param_groups
    assert rates.tolist() == pytest.approx([group["lr"] for group in groups]) and min(rates) > 0
    before = [weight.clone() for group in groups for weight in group["params"]]
    replay()
    after = [weight for group in groups for weight in group["params"]]
    assert all((new != old).any() for new, old in zip(after, before, strict=True))
    assert bench.can("bare step") and not bench.can("captured step")


def test_the_usual_port_is_timed_in_a_process_that_keeps_no_memory(small, monkeypatch):
    asked = []
    monkeypatch.setattr(speed, "in_a_fresh_process", lambda config, steps: asked.append(steps) or 7.0)
    ((speeds, row),) = benchmark(compose(TINY), steps=3, rounds=1, rows=("usual port",))
    assert (row, speeds.rows, asked) == ("usual port", {"usual port": [7.0]}, [3])


def test_no_round_begins_that_does_not_end_in_time(small):
    rows = list(benchmark(compose(TINY), steps=1, rounds=9, rows=("eager 1",), seconds=0))
    assert len(rows) == 1


def test_no_row_begins_that_does_not_end_in_time(small):
    bench = speed.Bench(compose(TINY), steps=1)
    bench.pace, bench.pace_of_an_image = 2.0, 0.5
    assert (bench.least("lightning"), bench.least("folded 128")) == (6, 128)
    assert bench.least("usual port") == 6 + speed.START


def speeds(**rows):
    made = Speeds("a machine", rows, {"32-true": [100.0, 100.0, 105.0]})
    made.per_image = dict.fromkeys(rows, (10.0, "32-true"))
    return made


def test_medians_shares_and_ratios():
    measured = speeds(**{"lightning": [4, 2, 6], "bare step": [8, 2, 4], "usual port": [2, 2, 2]})
    assert measured.images_per_second("lightning") == 4
    assert (measured.ratio("lightning", "bare step"), measured.ratio("lightning", "usual port")) == (1, 2)
    assert measured.share("lightning") == 0.4
    text = table(measured)
    assert "  lightning                          4.0   0.40  2 to 6" in text
    assert "lightning is 1.000 of: bare step" in text and "lightning is 2.000 of: usual port" in text
    assert "other work" not in text


def test_a_busy_machine_is_said_to_be_one():
    measured = speeds(lightning=[1.0])
    measured.add_repeats("32-true", [100.0, 80.0], begins=True)
    for repeat in (100.0, 125.0, 90.0):
        measured.add_repeats("32-true", [repeat])
    assert measured.peaks["32-true"][-1] == 125  # the fastest of the round
    assert measured.busy() == (
        "The fastest matrix product is 25 % faster than the median one: this machine has other work; do not trust "
        "these figures."
    )
    assert table(measured).endswith(measured.busy())
    measured.repeats["32-true"] = [50.0, 50.0]
    measured.given = [0.5, 0.6, 1.0]
    assert measured.busy() == (
        "The matrix products got 60 % of their threads' time: this machine has other work; do not trust these figures."
    )
    measured.given = [0.5, 0.95, 1.0]
    assert measured.busy() == ""


def test_images_of_another_size_are_refused():
    with pytest.raises(SettingError, match=r"data\.size=64: the steps are timed"):
        next(benchmark(compose(["data=flowers17", "data.size=64"])))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rounds=0"], "rounds=0: expected an integer"),
        (["rows=nosuch"], "rows=nosuch: names none of: kernels alone; bare step"),
        (["growth=nosuch"], "growth=nosuch: must be one of batch, size, threads, processes"),
        (["nosuch=1"], "nosuch=1: unknown setting; must be one of rows, rounds"),
        (["eval_curve=true"], "eval_curve=true: unknown setting"),
        (["data=flowers17", "data.size=64"], "data.size=64"),
        (["trainer.devices=2", "trainer.accelerator=cpu"], "trainer.devices=2: benchmark measures one process"),
    ],
)
def test_what_the_command_refuses(arguments, words, script):
    code, _, errors = script("benchmark.py", *arguments)
    assert code == 2 and words in errors


def test_the_command_prints_as_it_goes(script, small):
    code, said, _ = script("benchmark.py", *TINY, "rows=bare step,", "rounds=1")
    lines = said.splitlines()
    assert code == 0 and lines[0].startswith("cpu: ") and lines[3].startswith("round 1: bare step, ")
    assert lines[4] == ""  # no other row


def test_growth_is_a_table_and_a_picture(script, small, monkeypatch, tmp_path):
    monkeypatch.setattr(growth, "AXES", {"batch": ("images per step", (1, 2)), "size": ("pixels a side", (16, 32))})
    code, said, errors = script("benchmark.py", *TINY, "growth=batch,size,", "out=pictures")
    assert code == 0, errors
    assert "images per step" in said and "pixels a side" in said and " batch " in said
    assert (tmp_path / "pictures" / "growth.png").stat().st_size > 10_000


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_growth_states_the_batch_that_was_timed(device, monkeypatch):
    timed = []
    monkeypatch.setattr(growth, "images_per_second", lambda _, batch, size: timed.append((size, batch)) or 5.0)
    monkeypatch.setattr(growth, "_side_by_side", lambda *_: 5.0)
    monkeypatch.setattr(growth.speed, "Bench", lambda *_: SimpleNamespace(device=torch.device(device)))
    monkeypatch.setattr(growth, "multiply_accumulates", lambda *_: 1000)
    monkeypatch.setattr(growth, "cores", lambda: 3)  # of a machine that has more: a container, or taskset
    curves = {}
    for batch in (1, 100):
        config = compose([*TINY, f"data.batch_size={batch}"])
        for axis in growth.AXES:
            timed.clear()
            curves[axis] = curve = growth.measure(config, axis)
            if axis != "processes":
                assert [point.batch for point in curve] == [each for _, each in timed]
            for point in curve:
                size = point.value if axis == "size" else 32
                expected = batch if device == "cuda" else max(1, batch * 32**2 // max(size, 32) ** 2)
                assert point.batch == (point.value if axis == "batch" else expected)
            rows = [line.split() for line in growth.table(axis, curve).splitlines()[1:]]
            assert [(row[0], row[1]) for row in rows] == [(f"{p.value:,}", f"{p.batch:,}") for p in curve]
        assert {point.value for point in curves["threads"]} == {point.value for point in curves["processes"]} == {1, 2}
        figure = growth.draw(curves)
        figure.draw_without_rendering()
        for axis, curve in zip(figure.axes, curves.values(), strict=True):
            ticks = [tick.get_text() for tick in axis.get_xticklabels()]
            if len({point.batch for point in curve}) == 1:
                assert axis.get_xlabel().endswith(f" (batch {curve[0].batch})")
            elif [point.batch for point in curve] != [point.value for point in curve]:
                assert ticks == [f"{point.value}\n{point.batch}" for point in curve]


@pytest.mark.parametrize("tf32", [True, False])
def test_the_peak_of_fp32_is_in_the_arithmetic_of_convolutions(tf32, small, monkeypatch):
    found = []
    monkeypatch.setattr(speed, "seconds_of", lambda *_, **__: found.append(matmul.allow_tf32) or 1.0)
    convolutions, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, matmul.allow_tf32
    convolutions.allow_tf32 = tf32
    speed.Bench(compose(TINY), steps=1).product("32-true", 32)
    assert found == [tf32] and matmul.allow_tf32 == before[1]
    convolutions.allow_tf32 = before[0]


def test_only_the_peaks_of_the_rows_are_measured(small):
    settings = compose([*TINY, "trainer.precision=bf16-mixed"])
    ((speeds, _),) = benchmark(settings, steps=1, rounds=1, rows=("captured step", "eager 1"))
    assert list(speeds.peaks) == ["32-true"]
