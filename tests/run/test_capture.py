"""The captured training step: on a CPU with a stand-in for the graph, on a GPU with the graph."""

from contextlib import contextmanager
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from builders import StandIn
from nin import NIN, Block
from nin.cli import compose
from nin.data import Images
from nin.errors import RunError, SettingError
from nin.optim import Muon
from nin.run import capture
from nin.run.build import captures, check
from nin.run.capture import WARMUP, CapturedClassifier, CudaGraph, side_stream
from nin.task import Classifier

SETTINGS = {"lr": 0.02, "schedule": "linear", "label_smoothing": 0.1, "weight_decay": 0.02, "nesterov": True}
STEPS = 12


class OnCPU(CapturedClassifier):
    graph_type = StandIn


def losses(
    kind, optimiser, accelerator="cpu", dropout=0.0, steps=STEPS, epochs=2, clip=None, precision="32-true", data=None,
    **settings,
):  # fmt: skip
    """The loss of each step, the last epoch's metrics, the weights and the trainer of a training of so many steps."""
    assert steps % epochs == 0 and steps // epochs <= 44  # the digits' batches
    L.seed_everything(0, verbose=False)
    blocks = [Block(8, dropout=True), Block((8, 8, None))]
    net = NIN(blocks, norm="batch", init="kaiming", dropout=dropout).to(memory_format=torch.channels_last)
    task, found = kind(net, optimiser=optimiser, **{**SETTINGS, **settings}), []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            found.append((outputs["loss"].item(), outputs["cross_entropy"].item()))

    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=epochs,
        limit_train_batches=steps // epochs,
        callbacks=[Keep()],
        gradient_clip_val=clip,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, data or Images("digits", batch_size=32))
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return torch.tensor(found), metrics, torch.cat([p.detach().cpu().flatten() for p in net.parameters()]), trainer


@pytest.mark.parametrize(("optimiser", "clip"), [("muon", None), ("sgd", 1.0)])
def test_a_captured_step_trains_as_the_step_does(optimiser, clip, monkeypatch):
    """With fused SGD and rates in a tensor, which round differently, and Muon's batches, whose strides it needs."""
    monkeypatch.setattr(Muon, "_orthogonalise_each", Muon._orthogonalise_together)
    plain, metrics, weights, trainer = losses(Classifier, optimiser, clip=clip)
    captured, own_metrics, own_weights, own_trainer = losses(OnCPU, optimiser, clip=clip)
    assert trainer.global_step == own_trainer.global_step == STEPS > 2 * WARMUP
    torch.testing.assert_close(captured[:5], plain[:5], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(captured, plain, atol=2e-2, rtol=2e-2)  # Muon makes rounding grow
    torch.testing.assert_close(own_weights, weights, atol=2e-2, rtol=2e-2)
    assert own_metrics == pytest.approx(metrics, rel=2e-2)
    groups = own_trainer.optimizers[0].param_groups
    assert all(isinstance(group["lr"], float) for group in groups)  # numbers again, for schedule and checkpoint
    assert groups[0]["lr"] == trainer.optimizers[0].param_groups[0]["lr"]


def test_what_cannot_be_captured_is_refused_by_name(monkeypatch):
    with pytest.raises(
        SettingError, match=r"trainer\.compile=true: requires an NVIDIA GPU, and .*choose trainer\.comp"
    ):
        check(compose(["trainer.compile=true", "trainer.accelerator=cpu"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("nin.run.trainer.computes_bfloat16", lambda device: True)
    assert captures(compose([]))
    for override, words in (
        ("trainer.accelerator=cpu", r"requires an NVIDIA GPU, got trainer\.accelerator=cpu"),
        ("trainer.devices=2", "requires one process"),
        ("trainer.strategy=ddp", "requires trainer.strategy=auto"),
        ("recipe.optimiser=rmsprop", "muon or sgd"),
        ("recipe.optimiser=adamw", "muon or sgd"),
        ("trainer.accumulate_grad_batches=2", "a step for each batch"),
        ("trainer.precision=16-mixed", "another precision"),
    ):
        with pytest.raises(SettingError, match=rf"trainer\.compile=true: .*{words}"):
            check(compose(["trainer.compile=true", override, "recipe.nesterov=false"]))
        assert not captures(compose([override, "recipe.nesterov=false"]))  # by default


@pytest.mark.gpu
@pytest.mark.parametrize(("optimiser", "precision"), [("muon", "32-true"), ("muon", "bf16-mixed"), ("sgd", "32-true")])
def test_captured_losses_are_the_uncaptured_ones_over_200_steps(optimiser, precision):
    length = {"steps": 200, "epochs": 5, "precision": precision}
    found = [losses(kind, optimiser, "cuda", **length) for kind in (Classifier, CapturedClassifier)]
    assert len(found[1][0]) == len(found[0][0]) == found[1][3].global_step == 200
    torch.testing.assert_close(found[1][0][:20], found[0][0][:20], atol=1e-2, rtol=1e-2)
    assert found[1][1]["train/loss"] == pytest.approx(found[0][1]["train/loss"], rel=0.1)


class OneBatch(Images):
    """The same batch in each step."""

    def train_dataloader(self):
        class Repeated:
            def __len__(self):
                return STEPS

            def __iter__(self):
                return iter([batch] * STEPS)

        batch = next(iter(super().train_dataloader()))
        return Repeated()


def masks(kind, accelerator, dropout):
    """How many different losses the steps of a training have whose weights and batch stay: with dropout, its masks."""
    data, still = OneBatch("digits", batch_size=32), {"lr": 1e-30, "weight_decay": 0.0}
    found = losses(kind, "sgd", accelerator, dropout, epochs=1, data=data, **still)[0]
    assert len(found) == STEPS
    return len(found[:, 0].unique())


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_dropout_draws_anew_in_each_step(accelerator):
    kind = OnCPU if accelerator == "cpu" else CapturedClassifier
    assert (masks(kind, accelerator, 0.5), masks(kind, accelerator, 0.0)) == (STEPS, 1)


@pytest.mark.parametrize("damaged", [(2, 7), (0, 5), (0, 1, 4)])
def test_a_batch_of_another_size_is_a_step_of_its_own(damaged, monkeypatch):
    """As a streamed folder makes it, which leaves a damaged picture out."""
    captured = []
    begin = OnCPU.graph_type.__init__
    monkeypatch.setattr(OnCPU.graph_type, "__init__", lambda graph, step: captured.append(step) or begin(graph, step))

    class Damaged(Images):
        def train_dataloader(self):
            for number, (images, labels) in enumerate(super().train_dataloader()):
                left = len(labels) - 3 * (number in damaged)
                yield images[:left], labels[:left]

    found = []
    for kind in (Classifier, OnCPU):
        L.seed_everything(0, verbose=False)
        net = NIN([Block((8, 8, None))], norm="batch", init="kaiming")
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, limit_train_batches=10, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(kind(net, optimiser="sgd", lr=0.05), Damaged("digits", batch_size=32))
        assert trainer.global_step == 10
        found.append(trainer.callback_metrics["train/loss"])
    assert len(captured) == 1
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_a_graph_keeps_no_backward_pass(monkeypatch):
    """Its nodes belong to the stream of the capture; a step outside the graph would wait for that."""
    results = []

    class Kept(StandIn):
        def __init__(self, step):
            super().__init__(step)
            results.append(step())

    monkeypatch.setattr(OnCPU, "graph_type", Kept)
    losses(OnCPU, "sgd", steps=6)
    (result,) = results
    assert result.loss.isfinite() and not any(getattr(value, "requires_grad", False) for value in vars(result).values())


@pytest.fixture
def streams(monkeypatch):
    """Streams by name in place of CUDA's: the current one, and those that were made."""
    found = SimpleNamespace(current="main", made=[])

    class Stream(str):
        def wait_stream(self, other):
            pass

    @contextmanager
    def within(stream):
        before, found.current = found.current, stream
        try:
            yield
        finally:
            found.current = before

    def make(device=None):
        found.made.append(Stream(f"stream {len(found.made)}"))
        return found.made[-1]

    found.current = Stream("main")
    monkeypatch.setattr(torch.cuda, "Stream", make)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: found.current)
    monkeypatch.setattr(torch.cuda, "stream", within)
    capture._stream_of.cache_clear()
    yield found
    capture._stream_of.cache_clear()


def test_all_steps_outside_a_graph_share_one_stream(streams):
    """torch keeps the freed memory of a stream for it: with a stream a step, each step would take memory anew."""
    for _ in range(5):
        with side_stream(torch.device("cuda", 0)):
            assert streams.current is streams.made[0]
        assert streams.current == "main"
    with side_stream(torch.device("cpu")):
        assert streams.current == "main"
    assert len(streams.made) == 1


def test_a_capture_that_fails_returns_to_the_stream_before(streams, monkeypatch):
    class Graph:
        """As torch's: where the end of the capture fails, its stream stays the current one."""

        def __init__(self, graph, capture_error_mode):
            pass

        def __enter__(self):
            streams.current = "capture"

        def __exit__(self, *_):
            raise RuntimeError("the capture is invalid")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    with pytest.raises(RuntimeError, match="the capture is invalid"):
        CudaGraph(lambda: None)
    assert streams.current == "main"


def test_a_step_that_cannot_be_captured_ends_the_run_with_advice(monkeypatch):
    class Refused:
        def __init__(self, step):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with …")

    monkeypatch.setattr(OnCPU, "graph_type", Refused)
    with pytest.raises(RunError, match=r"captured \(CUDA error: .* is capturing\); set trainer\.compile=false$"):
        losses(OnCPU, "sgd", steps=6)
