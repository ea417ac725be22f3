import shutil
from types import SimpleNamespace

import pytest
import torch

from builders import NARROW
from nin import NIN, files
from nin.backbones import Backbone
from nin.cli import compose, points
from nin.config import Config, consequential, settings_of
from nin.errors import SettingError, WeightsError
from nin.run import build
from nin.run.build import build_data, build_net, build_task, check


def test_what_a_run_needs_is_built_from_its_settings():
    config = compose(
        ["data=digits", NARROW, "seed=3", "eval_curve=true", "recipe.lr=0.5", "head=fc", "model.norm=batch"]
    )
    data, net = build_data(config), build_net(config, classes=7, channels=1)
    assert (data.seed, data.eval_curve, data.settings) == (3, True, config.data)
    assert isinstance(net, NIN) and (net.num_classes, net.arguments["in_channels"]) == (7, 1)
    assert (net.arguments["head"], net.arguments["norm"]) == ("fc", "batch")
    assert build_task(config, net).recipe == config.recipe
    config.model.backbone, config.model.weights, config.head.name = "vgg19", "none", "gap_article"
    with torch.device("meta"):
        assert isinstance(build_net(config, classes=10, channels=3), Backbone)


def test_a_file_of_weights_is_known_by_its_content(tmp_path):
    """Wherever it is; another file of the same name makes another run."""

    def known(file, *more):
        config = build.identified(compose(["experiment=flowers17_squeezenet", f"model.weights={file}", *more]))
        return consequential(settings_of(config))

    file = tmp_path / "net.pth"
    file.write_bytes(b"weights")
    first = known(file)
    assert (first["model.weights"], first["model.weights_sha256"]) == ("net.pth", files.sha256(b"weights"))
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(file, tmp_path / "elsewhere")
    assert known(moved) == first
    file.write_bytes(b"other weights")
    assert known(file) != first
    (point,) = points(["experiment=flowers17_squeezenet", f"model.weights={moved}"])
    assert point.variant == "model.weights=net.pth"
    digest = first["model.weights_sha256"]
    assert known(moved, f"model.weights_sha256={digest}") == first
    with pytest.raises(WeightsError, match=rf"weights_sha256={digest}: {file} is another file, with sha256 \w"):
        known(file, f"model.weights_sha256={digest}")
    for of_no_file in ([], ["experiment=flowers17_squeezenet"]):
        with pytest.raises(SettingError, match=r"model\.weights_sha256=\w+: requires model\.backbone and a file"):
            compose([*of_no_file, f"model.weights_sha256={digest}"])
    with pytest.raises(WeightsError, match=r"nosuch\.pth: the ImageNet weights of squeezenet1_1 cannot be loaded"):
        known(tmp_path / "nosuch.pth")


def changed(**values) -> Config:
    config = Config()
    for name, value in values.items():
        group, _, field = name.partition("__")
        setattr(getattr(config, group) if field else config, field or group, value)
    return config


# batch norm would get one value a channel
ONE_VALUE = {"model__norm": "batch", "data__batch_size": 1, "model__blocks": [{"widths": [8, 8, None], "stride": 32}]}


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        ({"recipe__lr": -1}, "recipe.lr"),
        ({"seed": -1}, "seed"),
        ({"data__name": "nosuch"}, "data.name"),
        ({"data__val": 50_000}, "data.val"),
        ({"data__size": 64}, "data.size"),
        ({"head__name": "gpa"}, "head.name"),
        ({"head__name": "gap_article"}, "head.name"),
        ({"model__blocks": [3]}, "model.blocks"),
        ({"model__blocks": "imagenet"}, "data.size"),
        ({"model__blocks": [{"widths": [8, 8, 3]}]}, "head.name"),
        ({"model__backbone": "inception_v3", "model__weights": "none"}, "data.size"),
        ({"model__backbone": "nosuch"}, "model.backbone"),
        ({"trainer__devices": 0}, "trainer.devices"),
        ({"trainer__devices": -1}, "trainer.devices"),
        ({"trainer__strategy": "nosuch"}, "trainer.strategy"),
        ({"trainer__devices": 3, "trainer__accelerator": "cpu"}, "data.batch_size"),
        ({"model__blocks": [{"widths": 60_000}] * 3 + [{"widths": [8, 8, None]}]}, "data.batch_size"),
        (ONE_VALUE, "data.batch_size"),
    ],
)  # fmt: skip
def test_a_refusal_carries_the_dotted_name_of_the_setting(values, setting):
    with pytest.raises(SettingError) as error:
        check(changed(**values))
    assert error.value.setting == setting
    assert str(error.value).startswith(f"{setting}=") and "\n" not in str(error.value)


def test_sound_settings_pass():
    check(Config())
    check(changed(trainer__devices=2, trainer__accelerator="cpu"))


def test_devices_that_this_machine_does_not_have_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for accelerator in ("gpu", "cuda", "mps"):
        with pytest.raises(SettingError, match=f"trainer.accelerator={accelerator}: .*; choose auto or cpu"):
            check(changed(trainer__accelerator=accelerator))
    with pytest.raises(SettingError, match=r"trainer\.precision=16-mixed: requires an NVIDIA GPU, got cpu"):
        check(changed(trainer__precision="16-mixed"))


@pytest.mark.parametrize(
    ("torchs", "driver", "says"),
    [
        ("Torch not compiled with CUDA enabled", "", "Torch not compiled with CUDA enabled"),
        ("Found no NVIDIA driver on your system. Please check that", "", "Found no NVIDIA driver on your system"),
        (
            "The NVIDIA driver on your system is too old (found version 11040). Please update",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 2024",
            "The NVIDIA driver on your system is too old (found version 11040) (NVIDIA driver 470.256.02)",
        ),
        (
            "",
            "NVRM version: NVIDIA UNIX Open Kernel Module  580.65.06  Release",
            "torch finds no GPU (NVIDIA driver 580.65.06)",
        ),
    ],
)
def test_a_missing_gpu_is_explained_with_its_driver(torchs, driver, says, monkeypatch, tmp_path):
    def init():
        if torchs:
            raise RuntimeError(torchs)

    (tmp_path / "version").write_text(driver)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(build, "DRIVER", tmp_path / ("version" if driver else "none"))
    assert build.why_no_gpu() == says


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: SimpleNamespace(total_memory=80e9))
    check(changed(trainer__devices=2, trainer__accelerator="gpu"))
    for accelerator in ("gpu", "auto"):
        with pytest.raises(SettingError, match=r"trainer\.devices=4: this machine has 2 GPUs"):
            check(changed(trainer__devices=4, trainer__accelerator=accelerator))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(SettingError, match=r"trainer\.strategy=ddp: Apple's MPS supports one process"):
        check(changed(trainer__strategy="ddp"))


def test_a_file_of_weights_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "weights_sha256", lambda *_: "a" * 64)
    monkeypatch.chdir(tmp_path)
    found, there = (
        build.identified(compose(["data=flowers17", "model=vgg19", "head=gap_article", f"model.weights={weights}"]))
        for weights in ("w.safetensors", tmp_path / "w.safetensors")
    )
    assert found == there and found.model.weights == str(tmp_path / "w.safetensors")
    assert consequential(settings_of(found))["model.weights"] == "w.safetensors"
