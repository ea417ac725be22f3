import torch

from nin.optim import Muon, orthogonalise


def test_singular_values_come_near_one_and_directions_stay():
    torch.manual_seed(0)
    for shape in ((16, 64), (64, 16)):
        matrix = torch.randn(shape)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        found = orthogonalise(matrix).float()
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6 and values.max() < 1.3
        assert torch.nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_on_a_matrix_it_steps_as_torchs_muon_does():
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


def test_other_groups_are_sgd():
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    a = Muon([{"params": [ours], "lr": 0.1, "weight_decay": 0.01}], momentum=0.9, nesterov=True)
    b = torch.optim.SGD([theirs], lr=0.1, weight_decay=0.01, momentum=0.9, nesterov=True)
    for _ in range(3):
        ours.grad, theirs.grad = torch.arange(5.0), torch.arange(5.0)
        a.step()
        b.step()
    assert torch.equal(ours, theirs)
