import pytest
import torch

from nin import FC, GAP, GMP, DepthPool
from nin.heads import build_head


def test_gap_is_the_mean_and_gmp_the_maximum_of_each_map():
    maps = torch.randn(2, 3, 4, 5)
    for n in range(2):
        for k in range(3):
            values = [maps[n, k, i, j].item() for i in range(4) for j in range(5)]
            assert abs(GAP()(maps)[n, k].item() - sum(values) / 20) < 1e-6
            assert GMP()(maps)[n, k].item() == max(values)


def test_depth_pooling_is_the_mean_or_maximum_over_channels():
    maps = torch.randn(2, 3, 4, 5)
    for i in range(4):
        for j in range(5):
            channels = [maps[1, k, i, j].item() for k in range(3)]
            assert abs(DepthPool("average")(maps)[1, 0, i, j].item() - sum(channels) / 3) < 1e-6
            assert DepthPool("max")(maps)[1, 0, i, j].item() == max(channels)
    assert DepthPool("max")(maps).shape == (2, 1, 4, 5)
    with pytest.raises(ValueError, match="kind=sum: choose one of average, max"):
        DepthPool("sum")


def test_fc_is_a_linear_layer_on_the_flattened_maps():
    head = FC(3, 7, (4, 5))
    maps = torch.randn(2, 3, 4, 5)
    expected = maps.reshape(2, 60) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(maps), expected)


def test_dropout_of_the_fc_head_is_on_in_training_only():
    head = FC(3, 7, (4, 5), dropout=0.5)
    maps = torch.randn(2, 3, 4, 5)
    assert not torch.equal(head(maps), head(maps))
    head.eval()
    assert torch.equal(head(maps), head(maps))


def test_gap_equals_a_linear_layer_that_averages():
    gap, fc = GAP(), FC(3, 3, (4, 5))
    with torch.no_grad():
        fc.linear.weight.copy_(torch.eye(3).repeat_interleave(20, dim=1) / 20)
        fc.linear.bias.zero_()
    maps = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(gap(maps), fc(maps))


def test_fc_dropout_differs_from_fc_in_its_dropout_alone():
    arguments = {"num_maps": 3, "num_classes": 7, "map_size": (4, 5)}
    fc, fc_dropout = (build_head(name, **arguments) for name in ("fc", "fc_dropout"))
    maps = torch.randn(2, 3, 4, 5)
    assert torch.equal(fc(maps), fc(maps))
    assert fc_dropout.dropout.p == 0.5
    assert fc.state_dict().keys() == fc_dropout.state_dict().keys()


@pytest.mark.parametrize("map_size", [(0, 5), (4, -1), (4,), (4, 2.5)])
def test_a_map_of_no_size_is_refused(map_size):
    with pytest.raises(ValueError, match="map_size="):
        FC(3, 7, map_size)
