from pathlib import Path

import pytest
import torch

from nin import optim
from nin.errors import SettingError
from nin.optim import Muon, computes_bfloat16, orthogonalise


@pytest.fixture
def hardware(monkeypatch):
    """Sets what is said of this machine's bfloat16."""
    return lambda native: monkeypatch.setattr(optim, "computes_bfloat16", lambda device: native)


@pytest.mark.parametrize("native", [True, False])
def test_singular_values_come_near_one_and_directions_stay(native, hardware):
    hardware(native)
    torch.manual_seed(0)
    for shape in ((16, 64), (64, 16)):
        matrix = torch.randn(shape)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        found = orthogonalise(matrix).float()
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6 and values.max() < 1.3
        assert torch.nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_bfloat16_is_multiplied_where_the_hardware_does(hardware):
    """Where it is emulated it takes many times as long as fp32."""
    torch.manual_seed(0)
    matrix = torch.randn(30, 12)
    found = {}
    for native in (True, False):
        hardware(native)
        found[native] = orthogonalise(matrix)
        assert found[native].dtype == torch.float32
        assert torch.equal(found[native].bfloat16().float(), found[native]) is native  # rounded to bfloat16 or not
    torch.testing.assert_close(found[True], found[False], atol=0.05, rtol=0)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="what the CPU can is told by Linux alone")
def test_what_the_cpu_multiplies_is_known():
    can = {"avx512_bf16", "amx_tile"} & {*Path("/proc/cpuinfo").read_text().split()}
    assert computes_bfloat16("cpu") == (bool(can) and torch.backends.mkldnn.is_available())
    assert not computes_bfloat16("mps")


def test_on_a_matrix_it_steps_as_torchs_muon_does(hardware):
    hardware(native=True)  # torch's always computes in bfloat16
    torch.manual_seed(0)
    for shape in ((12, 30), (30, 12)):
        ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
        a = Muon([{"params": [ours], "lr": 0.02, "weight_decay": 0.1, "orthogonal": True}], momentum=0.9)
        b = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=True)
        for _ in range(5):
            gradient = torch.randn(shape)
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
            a.step()
            b.step()
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert (ours - 1).abs().max() > 0.02


def test_a_convolution_is_read_as_a_matrix_whatever_its_memory_format():
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    ends = []
    for form in (torch.contiguous_format, torch.channels_last):
        weight = torch.nn.Parameter(start.clone(memory_format=torch.contiguous_format).contiguous(memory_format=form))
        weight.grad = gradient.contiguous(memory_format=form)
        Muon([{"params": [weight], "lr": 0.1, "orthogonal": True}], momentum=0.9).step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends)
    step = (start - ends[0]).flatten(1) / 0.1
    values = torch.linalg.svdvals(step)
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("native", [True, False])
def test_padded_batches_orthogonalise_each_matrix(native, hardware):
    """Also where tall and wide, small and large ones share a batch: the padding is exact."""
    hardware(native)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        shapes = torch.randint(1, 60, (7, 2), generator=generator).tolist()
        matrices = [torch.randn(shape, generator=generator) for shape in shapes]
        together = optim.orthogonalise_together(matrices)
        assert sorted(n for members, _, _ in optim.batches(shapes) for n in members) == list(range(7))
        for matrix, found in zip(matrices, together, strict=True):
            torch.testing.assert_close(found.float(), orthogonalise(matrix), atol=0.05 if native else 1e-5, rtol=0)


def test_the_papers_net_takes_few_batches():
    shapes = [(192, 75), (160, 192), (96, 160), (192, 2400), *[(192, 192)] * 2, (192, 1728), (192, 192)]
    assert [(len(members), rows, columns) for members, rows, columns in optim.batches(shapes)] == [
        (2, 192, 2400),
        (6, 192, 192),
    ]


def test_steps_in_batches_are_the_steps_one_by_one():
    torch.manual_seed(0)
    starts = [torch.randn(8, 4, 3, 3), torch.randn(12, 8, 1, 1), torch.randn(6, 20), torch.randn(4, 8, 5, 5)]
    ends = []
    for way in ("_orthogonalise_each", "_orthogonalise_together"):
        weights = [torch.nn.Parameter(start.clone()) for start in starts]
        weights[0].data = weights[0].data.contiguous(memory_format=torch.channels_last)
        muon, generator = Muon([{"params": weights, "lr": 0.1, "orthogonal": True}], 0.9), torch.Generator()
        muon._orthogonalise_each = getattr(muon, way)
        for step in range(3):
            generator.manual_seed(step)
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            muon.step()
            strides = [weight.grad.stride() == weight.stride() for weight in weights]
        assert all(strides) or way == "_orthogonalise_each"  # fused optimisers require it
        ends.append([weight.detach() for weight in weights])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_fused_steps_are_the_same_whatever_the_gradients_strides():
    """torch's own fused SGD reads a weight and its gradient in the order of their memory, whatever that is."""
    torch.manual_seed(0)
    start, gradient, ends = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3), []
    for fused in (False, True):
        weight = torch.nn.Parameter(start.clone().contiguous(memory_format=torch.channels_last))
        sgd = Muon([{"params": [weight], "lr": 0.1, "fused": fused}], momentum=0.9)
        for _ in range(2):
            weight.grad = gradient.clone()
            sgd.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends)


def test_parameters_may_come_from_a_generator_or_be_one_tensor():
    weight = torch.nn.Parameter(torch.ones(3, 4))
    for params in ((each for each in [weight]), weight, [weight]):
        optimizer = Muon([{"params": params, "orthogonal": True, "lr": 0.1}])
        weight.grad = torch.ones(3, 4)
        before = weight.detach().clone()
        optimizer.step()
        assert not torch.equal(weight, before)


def test_other_groups_are_sgd():
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    a = Muon([{"params": [ours], "lr": 0.1, "weight_decay": 0.01}], momentum=0.9, nesterov=True)
    b = torch.optim.SGD([theirs], lr=0.1, weight_decay=0.01, momentum=0.9, nesterov=True)
    for _ in range(3):
        ours.grad, theirs.grad = torch.arange(5.0), torch.arange(5.0)
        a.step()
        b.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1}, "momentum=1: expected a number of at least 0 and less than 1"),
        ({"nesterov": "yes"}, "nesterov=yes"),
        ({"nesterov": True}, "nesterov=true: requires a momentum above 0"),
        ({"params": [{"params": [torch.nn.Parameter(torch.ones(5))], "orthogonal": True}]}, r"params=\(5,\)"),
    ],
)
def test_impossible_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(SettingError, match=message):
        Muon(**{"params": [{"params": [torch.nn.Parameter(torch.ones(5, 5))]}], **arguments})
