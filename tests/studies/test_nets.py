from pathlib import Path

import pytest
import torch

from claims import cells, subject, tiny
from nin import config, pretrained
from nin.config import Config, ModelConfig
from nin.errors import CheckpointError
from nin.studies import channels, objects, shift, size
from nin.studies.nets import batches, described, error_of, gather, images_in_words, progress


@pytest.fixture
def saved(tmp_path):
    """Saves a net, and returns its file."""

    def save(name, *arguments, **facts):
        file = tmp_path / f"{name}.safetensors"
        pretrained.save(file, tiny(*arguments, **facts))
        return str(file)

    return save


def test_seeds_have_one_name_and_what_differs_is_named(saved):
    gap, again, fc, longer = saved("a"), saved("b", seed=1), saved("c", "fc"), saved("d", epochs=20)
    assert [net.name for net in gather([fc, gap, again])] == ["gap", "gap", "fc"]
    assert [net.name for net in gather([longer, gap])] == ["gap 20 epochs", "gap 8 epochs"]
    assert [net.name for net in gather([gap, saved("f", epochs=1)])] == ["gap 1 epoch", "gap 8 epochs"]
    other = saved("e", "fc", test_error=8.0)
    assert [net.name for net in gather([fc, other])] == [f"fc {fc}", f"fc {other}"]  # one seed: no seeds of one thing


def test_nets_of_other_settings_are_no_seeds_of_one_training(saved):
    def settings(**of_model):
        return config.settings_of(Config(model=ModelConfig(**of_model)))

    plain = [saved(f"p{seed}", seed=seed, settings=settings()) for seed in range(2)]
    other = saved("o", seed=2, settings=settings(norm="batch"))
    old = saved("old", seed=3)
    assert [net.name for net in gather(plain)] == ["gap", "gap"]
    assert [net.name for net in gather([*plain, other])] == ['gap model.norm="batch"', *['gap model.norm="none"'] * 2]
    assert [net.name for net in gather([plain[0], old])] == ["gap", "gap"]  # as far as its card says
    tuned = [saved(f"t{each}", seed=int(each == "b"), start={"name": "net", "sha256": each * 64}) for each in "ab"]
    assert len({net.name for net in gather(tuned)}) == 2  # the start was published again


@pytest.mark.parametrize("start", [{"start": {"name": "net", "sha256": None, "head": "gap"}}, {"started_from": "net"}])
def test_a_start_is_named(saved, start):
    tuned = saved("tuned", frozen=True, **start)
    assert [net.name for net in gather([saved("a"), tuned])] == ["gap from net, frozen", "gap from scratch"]


def test_names_of_one_head_have_line_styles_of_their_own(saved):
    files = [saved("a"), saved("b", seed=1), saved("c", epochs=20), saved("d", "fc")]
    styles = {(net.name, net.style) for net in gather(files)}
    assert styles == {("gap 8 epochs", "-"), ("gap 20 epochs", "--"), ("fc 8 epochs", "-")}


def test_images_are_drawn_once_for_all_nets_of_a_set(saved):
    gap, fc = gather([saved("a"), saved("b", "fc")], images=7)
    assert len(gap.images) == len(gap.labels) == 7
    assert torch.equal(gap.images, fc.images) and gap.blank.shape == (3, 1, 1)
    (other,) = gather([saved("a")], images=7, seed=1)
    assert not torch.equal(gap.images, other.images)
    assert not gap.trained.training and (gap.head, fc.head, gap.pools, fc.pools) == ("gap", "fc", True, False)
    (whole,) = gather([saved("a")])
    assert len(whole.images) > 300


def test_seeds_are_averaged_in_a_table(saved):
    answer = channels.answer(gather([saved("a"), saved("b", seed=1)], images=50))
    assert all(" ± " in cell for cell in cells(answer.table, "`gap`"))


def test_a_net_that_is_there_twice_is_refused(saved, tmp_path):
    again = tmp_path / "run"
    again.mkdir()
    (again / "model.safetensors").write_bytes(Path(saved("a")).read_bytes())
    with pytest.raises(CheckpointError, match=r"checkpoint=\S+run: is the same net as \S+a\.safetensors; name it once"):
        gather([saved("a"), saved("b", "fc"), str(again)])


def test_a_checkpoint_that_does_not_exist_is_refused():
    with pytest.raises(CheckpointError, match="checkpoint=net"):
        gather(["net"])


def test_nets_are_described_by_their_facts():
    net = subject(tiny(seed=3, test_error=8.41, commit="0123456789abcdef"), "gap")
    assert cells(described([net]), "`gap`") == ["digits", "quick", "8", "3", "8.41", "01234567"]


def test_batches_have_the_memory_of_an_evaluation():
    net = subject(tiny(), "gap", 2500)
    with progress("test", [net], 2) as bar:
        own = [len(images) for images in batches(net, bar)]
        wide = [len(images) for images in batches(net, bar, 64)]
        assert bar.n == bar.total == 5000
    assert sum(own) == sum(wide) == 2500
    assert max(wide) == max(own) // 4


def test_an_error_is_a_share_of_the_images():
    net = subject(tiny(), "gap", 20)
    assert error_of(net.labels, net) == 0 and error_of(torch.zeros_like(net.labels), net) == 90
    numbers = [net, net, subject(tiny(), "gap", 1200), subject(tiny(), "gap", 1)]
    assert images_in_words(numbers) == "1 test image, 20 test images, 1,200 test images"


@pytest.mark.parametrize("claim", [channels, objects, shift, size])
def test_claims_are_measured_in_full_fp32(claim):
    """As errors are: NVIDIA's GPUs convolve in TF32 by torch's default."""
    trained, found = tiny(), []
    trained.net.register_forward_pre_hook(lambda *_: found.append(torch.backends.cudnn.allow_tf32))
    trained.net.blocks.register_forward_pre_hook(lambda *_: found.append(torch.backends.cudnn.allow_tf32))
    claim.measure([subject(trained, "gap", count=10)], *([[32]] if claim is size else []))
    assert found and not any(found)
    assert torch.backends.cudnn.allow_tf32
