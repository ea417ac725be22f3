import re
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import Ended, one_with_anything
from nin import NIN, Block, files
from nin.config import DataConfig
from nin.data import SETS, Batches, Images, ImageSet, Normalise, Set, archive
from nin.data.archive import md5
from nin.data.module import EVALUATION_BATCH, evaluation_batch
from nin.errors import DataError, SettingError
from nin.task import Classifier

QUIET = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}


# batches --------------------------------------------------------------------------------------------------------------


def batches(n=10, size=4, augment=None, seed=0, epoch=0):
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 8, 8, 3)
    same = Normalise(torch.zeros(3), torch.ones(3))
    return Batches(images, torch.arange(n), size, same, augment=augment, seed=seed, epoch=lambda: epoch)


def test_evaluation_sees_each_image_once_in_order():
    labels = torch.cat([y for _, y in batches()])
    assert labels.tolist() == list(range(10))
    assert len(batches()) == 3


def test_training_drops_the_rest_and_shuffles_anew_each_epoch():
    def order(**k):
        return [y.tolist() for _, y in batches(augment=lambda x, g: x, **k)]

    assert [len(y) for y in order()] == [4, 4]
    assert order() == order()
    assert order() != order(epoch=1)
    assert order() != order(seed=1)
    assert len(batches(n=3, augment=lambda x, g: x)) == 1  # a set smaller than a batch is a batch


def test_images_and_labels_stay_together_and_channels_last():
    for x, y in batches(augment=lambda x, g: x):
        assert torch.equal(x[:, 0, 0, 0], y.float())
        assert x.is_contiguous(memory_format=torch.channels_last)


# the module -----------------------------------------------------------------------------------------------------------


def ready(*arguments, **changed) -> Images:
    data = Images(*arguments, **changed)
    data.setup()
    return data


def test_a_square_of_each_training_image_is_blanked_and_of_no_test_image():
    data = ready("digits", batch_size=64, pad=0, cutout=9)
    plain = ready("digits", batch_size=64, pad=0)
    assert data.augments and not plain.augments
    for (images, labels), (others, same) in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        assert torch.equal(labels, same)
        changed = (images != others).any(1)
        assert (images[changed[:, None].expand_as(images)] == 0).all()
        assert (changed.flatten(1).sum(1) > 0).float().mean() > 0.9 and changed.flatten(1).sum(1).max() <= 81
    for (images, _), (others, _) in zip(data.test_dataloader(), plain.test_dataloader(), strict=True):
        assert torch.equal(images, others)


def test_batches_are_those_of_before():
    """Order, augmentation and preprocessing to the last bit: a change of them changes every published result."""
    digest = ""
    for x, y in ready("digits", seed=3, batch_size=256, share=0.5, pad_mode="reflect").train_dataloader():
        digest = md5(digest.encode() + (x * 256).round().to(torch.int32).numpy().tobytes() + y.numpy().tobytes())
    assert digest == "3099aef5177e1c2b0fa87ffe1e0ca34f"


def test_held_out_images_are_the_last_of_the_training_set():
    data, digits = ready("digits", val=300), SETS["digits"].parse({}, 32)
    assert torch.equal(data.train_images, digits.train_images[:1137])
    assert torch.equal(data.val_images, digits.train_images[1137:])
    assert data.val_stages == ("val/",)
    assert Images("digits", eval_curve=True).val_stages == ("test_curve/",)
    fitted = Normalise.fit(digits.train_images[:1137])
    assert torch.equal(data.preprocess.mean, fitted.mean)
    both = ready("digits", val=300, eval_curve=True)
    assert both.val_stages == ("val/", "test_curve/")
    assert [len(loader.labels) for loader in both.val_dataloader()] == [300, 360]
    assert len(data.train_as_test_dataloader().labels) == 1137


def test_a_share_is_of_every_class_and_part_of_a_larger_one():
    def drawn(**arguments):
        return ready("digits", **arguments)

    whole, half, tenth = (drawn(share=share, val=300, seed=3) for share in (1.0, 0.5, 0.1))
    counts = whole.train_labels.bincount()
    assert torch.equal(tenth.train_labels.bincount(), (counts * 0.1).round().long())
    pixels = [{image.numpy().tobytes() for image in data.train_images} for data in (tenth, half, whole)]
    assert pixels[0] < pixels[1] < pixels[2]
    assert torch.equal(drawn(share=0.1, val=300, seed=3).train_images, tenth.train_images)
    assert not torch.equal(drawn(share=0.1, val=300, seed=4).train_images, tenth.train_images)
    assert not torch.equal(tenth.preprocess.mean, whole.preprocess.mean)  # fitted on what is trained on
    assert sorted(drawn(share=1e-6).train_labels.tolist()) == list(range(10))


def test_digits_are_never_flipped():
    data = ready("digits", flip=True, pad=0)
    images, labels = next(iter(data.train_dataloader()))
    original = data.preprocess(data.train_images)
    for image, label in zip(images[:20], labels, strict=False):
        same = (original[data.train_labels == label] - image).abs().amax((1, 2, 3)).min()
        assert same < 1e-4


def test_whitened_batches_are_those_of_the_preprocessing(flowers_root):
    data = ready("flowers17", root=flowers_root, size=8, preprocessing="whiten", flip=False, pad=0)
    images, _ = next(iter(data.train_as_test_dataloader()))
    torch.testing.assert_close(images, data.preprocess(data.train_images[: len(images)]), atol=1e-4, rtol=1e-4)
    assert len(images) == 1190  # smaller images are evaluated in larger batches
    assert data.test_dataloader().batch_size == EVALUATION_BATCH * 16


@pytest.mark.parametrize(("memory", "images"), [(141e9, 2000), (16e9, 2000), (6e9, 750), (1e6, 1)])
def test_a_small_gpu_evaluates_fewer_images_at_a_time(memory, images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory))
    assert evaluation_batch(torch.device("cuda", 0), 32 * 32) == images
    assert evaluation_batch(torch.device("cuda", 0), 64 * 64) == max(1, images // 4)
    assert evaluation_batch(torch.device("cpu"), 32 * 32) == EVALUATION_BATCH


def test_a_class_without_training_images_is_named():
    with pytest.warns(UserWarning, match=r"no training image shows .*: the net cannot learn it") as said:
        data = ready("digits", val=1430)
    shown = {str(label) for label in data.train_labels.tolist()}
    named = str(said[0].message).split(" shows ")[1].split(":")[0].split(", ")
    assert set(named) == set("0123456789") - shown and named
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready("digits")


@pytest.mark.parametrize(("size", "val", "steps"), [(1436, 0, 1), (1, 1436, 1), (128, 1436, 1), (718, 0, 2)])
def test_a_rest_of_one_image_does_not_stop_batch_norm(size, val, steps):
    data = Images("digits", batch_size=size, val=val)
    narrow = [Block((8, 8, None), stride=4 if val else 40)]  # 1×1 maps cannot be normalised over one image
    task = Classifier(NIN(narrow, norm="batch"), lr=1e-3)
    trainer = L.Trainer(max_epochs=1, enable_model_summary=False, limit_val_batches=0, **QUIET)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no training image", UserWarning)
        trainer.fit(task, data)
    assert trainer.global_step == steps
    assert all(value.isfinite().all() for value in task.net.state_dict().values())


# a set of the table ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small(made, monkeypatch):
    """CIFAR-10's entry with the files of a small set."""
    entry = replace(SETS["cifar10"], train=100, fetch=made.archive.fetch)
    monkeypatch.setitem(SETS, "cifar10", entry)
    return entry


def test_each_file_is_read_and_hashed_once_a_start(tmp_path, made, small, monkeypatch):
    (tmp_path / made.archive.file).write_bytes(made.packed)
    small.fetch(tmp_path, download=False)
    read, hashed = [], []
    monkeypatch.setattr(files, "read", lambda file: read.append(file.name) or Path(file).read_bytes())
    monkeypatch.setattr(archive, "md5", lambda data: hashed.append(len(data)) or md5(data))
    data = Images(root=tmp_path, batch_size=50, download=False)
    task = Classifier(NIN([Block((8, 8, None))]), lr=1e-3)
    trainer = L.Trainer(max_epochs=1, enable_model_summary=False, limit_val_batches=0, **QUIET)
    data.prepare_data()
    data.setup()
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)
    assert sorted(read) == sorted(made.parts) and len(hashed) == len(made.parts)
    assert data.set.train_images.shape == (100, 3, 32, 32)


def test_the_addresses_of_the_settings_replace_those_of_the_set(tmp_path, made, small, server):
    url, asked = server
    ready(root=tmp_path, urls=[url("/missing"), url("/good")], batch_size=50)
    assert asked == ["/missing", "/good"]
    with pytest.raises(DataError, match=r"data\.download=false"):
        ready(root=tmp_path / "elsewhere", download=False, batch_size=50)


def test_a_set_that_is_known_only_when_it_is_read(monkeypatch):
    """A grey one, whose classes, channels, size and number of images its entry does not know."""
    images, labels = torch.randint(0, 256, (30, 1, 12, 10), dtype=torch.uint8), torch.arange(30) % 3

    def read(files, size):
        assert (files, size) == ({"a": b"A"}, 32)
        return ImageSet(images, labels, images[:9], labels[:9], ("x", "y", "z"), flip=True)

    def fetch(root, *, download, urls):
        return {"a": b"A"}

    new = Set("new", None, None, None, None, fetch=fetch, read=read)
    monkeypatch.setitem(SETS, "new", new)
    for preprocessing in ("normalise", "whiten"):
        data = ready("new", val=10, batch_size=8, preprocessing=preprocessing)
        assert data.set.flip and len(data.train_labels) == 20
        net = NIN([Block((8, 8, None))], num_classes=len(data.set.classes), in_channels=data.set.channels)
        for loader in (data.train_dataloader(), data.test_dataloader()):
            x, y = next(iter(loader))
            assert x.shape == (len(y), 1, 12, 10) and net(x).shape == (len(y), 3)
    with pytest.raises(SettingError, match=r"^val=30: expected an integer from 0 to 29"):
        ready("new", val=30)
    with pytest.raises(SettingError, match=r"^images=1×12×10: expected 3 channels"):
        next(iter(ready("new", preprocessing="imagenet").test_dataloader()))


def test_a_set_may_be_assigned_before_setup():
    images, labels = torch.zeros(40, 3, 32, 32, dtype=torch.uint8), torch.arange(40) % 10
    data = Images(batch_size=128)
    data.set = ImageSet(images, labels, images, labels, tuple("0123456789"), flip=True)
    data.preprocess = Normalise(torch.ones(3), torch.ones(3))
    data.prepare_data()
    data.setup()
    assert next(iter(data.train_dataloader()))[0].shape == (40, 3, 32, 32)
    assert data.preprocess.mean.flatten().tolist() == [1, 1, 1]


# settings -------------------------------------------------------------------------------------------------------------


def test_settings_come_from_a_name_an_object_or_keywords():
    plain = DataConfig(name="digits", batch_size=7, pad=1)
    for data in (Images(plain), Images("digits", batch_size=7, pad=1), Images(name="digits", batch_size=7, pad=1)):
        assert data.settings == plain and data.batch_size == 7 and data.entry is SETS["digits"]
    assert Images(plain, pad=2).settings.pad == 2 and plain.pad == 1
    plain.pad = 40  # changed after it was checked
    with pytest.raises(SettingError, match="pad=40"):
        Images(plain)
    with pytest.raises(TypeError, match="sise"):
        Images("digits", sise=32)


def test_the_size_of_a_set_of_one_size_is_its_own(monkeypatch):
    monkeypatch.setitem(SETS, "mnist", replace(SETS["digits"], name="mnist", channels=1, size=28))
    assert Images("mnist").settings.size == 28
    with pytest.raises(SettingError, match=r"^size=32: the images of mnist have 28 pixels a side"):
        Images("mnist", size=32)
    with pytest.raises(SettingError, match=r"^preprocessing=imagenet: requires images with 3 channels, those of mnist"):
        Images("mnist", preprocessing="imagenet")


def test_the_root_is_data_root_or_nin_data_or_data(monkeypatch):
    monkeypatch.setenv("NIN_DATA", "~/elsewhere")
    assert Images(root="here").root == "here" == Images(root=Path("here")).root
    assert Images().root.endswith("/elsewhere") and "~" not in Images().root
    monkeypatch.delenv("NIN_DATA")
    assert Images().root == "data"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "cifar11"}, "name=cifar11: must be one of cifar10, cifar100, svhn, mnist"),
        ({"name": 5}, "name=5: must be one of cifar10"),
        ({"size": 40}, "size=40: the images of cifar10 have 32 pixels a side"),
        ({"batch_size": 0}, "batch_size=0: expected an integer from 1"),
        ({"batch_size": 50_001}, "batch_size=50001: expected an integer from 1 to 50000"),
        ({"val": 50_000}, "val=50000: expected an integer from 0 to 49999"),
        ({"share": 0.0}, "share=0.0: expected a number above 0 and at most 1"),
        ({"pad": -1}, "pad=-1"),
        ({"data": "flowers17", "size": 8, "pad": 8, "pad_mode": "reflect"}, "pad=8: pad_mode=reflect requires less"),
        ({"cutout": 32}, "cutout=32: requires less than the size, 32 pixels"),
        ({"pad_mode": "edge"}, "pad_mode=edge: must be one of zero, reflect"),
        ({"preprocessing": "gcn"}, "preprocessing=gcn: must be one of normalise, whiten, imagenet"),
        ({"seed": -1}, "seed=-1: expected an integer from 0"),
        ({"eval_curve": 1}, "eval_curve=1: must be one of true, false"),
    ],
)
def test_impossible_settings_are_refused_by_name(arguments, message):
    with pytest.raises(SettingError, match=f"^{re.escape(message)}"):
        Images(**arguments)


GOOD = {
    "name": st.just("digits"),
    "root": st.none() | st.just("/data"),
    "download": st.booleans(),
    "urls": st.lists(st.just("http://localhost/x.tar.gz"), max_size=2),
    "preprocessing": st.sampled_from(["normalise", "whiten"]),
    "val": st.integers(0, 1436),
    "share": st.floats(0.01, 1),
    "batch_size": st.integers(1, 256),
    "pad": st.integers(0, 31),
    "pad_mode": st.sampled_from(["zero", "reflect"]),
    "flip": st.booleans(),
    "cutout": st.integers(0, 31),
    "eval_curve": st.booleans(),
    "seed": st.integers(0, 2**32 - 1),
}


def test_images_with_any_values():
    ended = Ended()

    @settings(max_examples=120)
    @given(one_with_anything(GOOD))
    def one(arguments):
        data = ended.build(Images, arguments)
        if data is None or data.settings.preprocessing == "whiten":  # whitening takes a second each
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # few images need not show every class
            data.setup()
        images, labels = next(iter(data.train_dataloader()))
        assert images.shape == (min(data.batch_size, len(data.train_labels)), 3, 32, 32) and images.isfinite().all()
        assert len(labels) == len(images)

    one()
    ended.assert_both(20)
