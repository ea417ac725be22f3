import http.server
import io
import pickle
import random
import shutil
import threading
from contextlib import suppress

import pytest
import torch
from torch import nn

from builders import Payload
from nin import backbones, download, files
from nin.backbones import BACKBONES, Backbone
from nin.errors import DataError, WeightsError
from nin.model import GAP
from nin.plan import HEADS

ARTICLE_HEADS = [name for name, head in HEADS.items() if head.of_features]


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    return Backbone("vgg19", 17, "gap", image_size=64, weights="none").eval()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_every_head_fits_every_backbone(backbone, head):
    side = BACKBONES[backbone].smallest
    with torch.device("meta"):
        net = Backbone(backbone, 17, head, image_size=side)
        logits = net.eval()(torch.zeros(2, 3, side, side))
    assert logits.shape == (2, 17)


def test_gap_of_class_maps_is_a_linear_layer_on_pooled_features(vgg):
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        features = vgg.features(images)["maps"]
        linear = nn.Linear(512, 17)
        linear.weight, linear.bias = nn.Parameter(vgg.classes.weight[:, :, 0, 0]), vgg.classes.bias
        torch.testing.assert_close(vgg(images), linear(GAP()(features)), atol=1e-5, rtol=1e-4)
        assert vgg(torch.randn(1, 3, 96, 128)).shape == (1, 17)


def test_the_features_are_torchvisions(vgg):
    from torchvision.models import vgg19

    whole = vgg19().eval()
    whole.features.load_state_dict({n.removeprefix("features."): t for n, t in vgg.features.state_dict().items()})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(vgg.features(images)["maps"], whole.features(images))


def test_inception_with_imagenet_weights_is_torchvisions(monkeypatch, tmp_path):
    """Its weights want another scale than ImageNet's mean and spread, which torchvision's own net sees to."""
    from torchvision.models import Inception_V3_Weights, inception_v3

    torch.manual_seed(2)
    state = inception_v3(init_weights=False).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    file = io.BytesIO()
    torch.save(state, file)
    monkeypatch.setattr(backbones, "download", lambda urls, expected, digest: file.getvalue())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs, found = inception_v3(weights=Inception_V3_Weights.DEFAULT).eval(), []
    theirs.Mixed_7c.register_forward_hook(lambda _, inputs, maps: found.append(maps))
    ours = Backbone("inception_v3", 17, image_size=96, weights="imagenet").eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        theirs(images)
        torch.testing.assert_close(ours.features(images)["maps"], found[0])


def test_parameters_of_the_article_heads():
    """VGG19 at 224 pixels: 512 feature maps of 7×7; its convolutions have 20,024,384 parameters."""
    with torch.device("meta"):
        counted = {h: sum(p.numel() for p in Backbone("vgg19", 17, h).parameters()) - 20_024_384 for h in ARTICLE_HEADS}
    assert counted == {"fc_article": 25088 * 512 + 512 + 512 * 17 + 17, "gap_article": 8721, "gmp_article": 8721}


def test_weights_come_from_a_file_or_a_sentence_says_why_not(tmp_path, vgg):
    from torchvision.models import vgg19

    torch.manual_seed(1)
    whole = vgg19()
    torch.save(whole.state_dict(), tmp_path / "vgg19.pth")
    net = Backbone("vgg19", 17, image_size=32, weights=str(tmp_path / "vgg19.pth"))
    assert all(torch.equal(t, whole.state_dict()[n]) for n, t in net.features.state_dict().items())
    (tmp_path / "empty.pth").touch()  # of a download that was broken off
    (tmp_path / "damaged.pth").write_bytes(b"no weights")
    (tmp_path / "damaged.safetensors").write_bytes(b"no weights")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("missing.pth", "empty.pth", "damaged.pth", "damaged.safetensors", "other.pth"):
        with pytest.raises(WeightsError, match=r"give a file of torchvision's weights, or model\.weights=none"):
            Backbone("vgg19", 17, image_size=32, weights=str(tmp_path / name))


class Offers(http.server.BaseHTTPRequestHandler):
    """Answers with what the server offers, and where that is None with a byte now and then, without end."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            if self.server.offered is not None:
                self.wfile.write(self.server.offered)
            while self.server.offered is None and not self.server.ended.wait(0.02):
                self.wfile.write(b"x")

    def log_message(self, *_):
        pass


@pytest.mark.tries(9)
def test_published_weights_are_verified_kept_and_given_up_in_time(tmp_path, monkeypatch, tried, capsys):
    """From an address that has them, and from those that have others, none, too much, or never end."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(download, "MAX_DOWNLOAD_BYTES", 1e6)
    monkeypatch.setattr(download, "TRIAL", 0.2)
    good, draws = io.BytesIO(), random.Random(4)
    torch.save({"a": torch.arange(40.0)}, good)
    good = good.getvalue()
    name = f"net-{files.sha256(good)[:8]}.pth"
    kept = tmp_path / "hub" / "checkpoints" / name  # where torch.hub looks before it downloads
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Offers) as server:
        server.daemon_threads, server.ended = True, threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        bad = [None, b"", bytes(2_000_000), good + b"x", pickle.dumps(Payload(tmp_path / "marker"))]
        for offered in [*bad, *(good[: draws.randrange(len(good))] for _ in range(4))]:
            server.offered = offered
            with pytest.raises(DataError, match="no address has it"):
                backbones._published(url)
            assert not kept.exists()
            tried(offered)
        server.offered = good
        assert backbones._published(url) == kept.read_bytes() == good
        server.offered = b""
        assert backbones._published(url) == good  # without a download
        kept.write_bytes(pickle.dumps(Payload(tmp_path / "marker")))
        server.offered = good
        assert backbones._published(url) == kept.read_bytes() == good
        shutil.rmtree(tmp_path / "hub")
        (tmp_path / "hub").write_text("a file")
        capsys.readouterr()
        assert backbones._published(url) == good and "are not kept for the next time" in capsys.readouterr().out
        server.ended.set()
        server.shutdown()
    assert not (tmp_path / "marker").exists()


def test_weights_that_cannot_be_downloaded_are_one_sentence(tmp_path, monkeypatch):
    def unreachable(*_):
        raise DataError("no address has it (no route to host)")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(backbones, "download", unreachable)
    with pytest.raises(
        WeightsError, match=r"model\.weights=imagenet: .* cannot be loaded \(no address has it \(no route"
    ):
        Backbone("squeezenet1_1", 17, image_size=32)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"backbone": "vgg20"}, "backbone=vgg20: must be one of vgg19, inception_v3"),
        ({"head": "gpa"}, "head=gpa: must be one of gap, fc_dropout"),
        ({"image_size": 20}, "image_size=20: vgg19 requires at least 32 pixels"),
        ({"num_classes": 0}, "num_classes=0: expected an integer from 1 to"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Backbone(**{"weights": "none", **arguments})
