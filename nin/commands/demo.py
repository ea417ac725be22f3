"""A page to try trained nets on: drop a picture, see its classes and their maps, two nets side by side.

python scripts/demo.py checkpoint=cifar10-gap                       then open http://127.0.0.1:7860
python scripts/demo.py checkpoint=cifar10-gap,cifar10-fc            two published nets side by side
python scripts/demo.py checkpoint=runs/A,weights.safetensors port=8000    a run's folder, a weights file, another port

checkpoint=    runs' folders, weights files or published names; the page offers all of them
port=7860      of the page
host=          address to serve on, by default 127.0.0.1: this machine alone. In a container, host=0.0.0.0
data.root=     folder of the sets, by default NIN_DATA. The examples are a photograph and test images of the set that
               the first net was trained on, where that set is on this machine

The page opens with the first example answered. It accepts pictures of up to 20 MB and deletes them when it ends; those
of a page that was killed are deleted when the next one starts.
It answers no request that another site's page sends, and reports nothing to anyone. It requires gradio:
pip install 'network-in-network[demo]'
"""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import re
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nin import files
from nin.checks import is_number, printable, whole_number
from nin.cli import plain_settings, run_script
from nin.errors import PictureError, RunError, SettingError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nin.pretrained import Pretrained

HOST = "127.0.0.1"
LARGEST_UPLOAD = "20mb"
FOLDER, BEGINNING = "nin-page-", "nin-beginning-"  # how the names of a page's folders begin, and before they are locked
LOCK = ".lock"
FONT = ["ui-sans-serif", "system-ui", "sans-serif"]  # no font is fetched from anywhere
TITLE = """# Network in Network
Drop a picture or pick one. The net sees its middle square; positive evidence for a class is overlaid on the picture."""
PHOTOGRAPH, SHOWS = files.shipped("scripts") / "chelsea.png", "cat"  # CC0; its source stands beside it


def main(arguments: list[str]) -> None:
    settings = plain_settings(arguments, {"checkpoint": "", "host": HOST, "port": "7860", "data.root": ""})
    port = whole_number(1, 65_535, port=settings["port"])
    if not settings["checkpoint"]:
        raise UsageError("checkpoint= is required: runs' folders, weights files or published names")

    from nin import predict, pretrained
    from nin.run.machine import keep_freed_memory

    keep_freed_memory()
    nets = {name: pretrained.load(name, fold=True) for name in settings["checkpoint"].split(",")}
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("the page requires gradio: pip install 'network-in-network[demo]'")
    check_address(settings["host"], port)
    with all_files_in_one_folder() as folder:
        first = next(iter(nets.values()))
        photographs = [PHOTOGRAPH] if SHOWS in first.classes else []
        test_images, reason = predict.save_examples(first, folder, settings["data.root"] or None)
        if reason:
            print(f"no test images among the examples: {printable(reason)}")
        serve(page(nets, [*photographs, *test_images]), port, settings["host"])


def check_address(host: str, port: int) -> None:
    """Raises SettingError where nothing can be served on this address."""
    try:
        if not host:
            raise SettingError("host", host, "expected an address; choose 127.0.0.1 or 0.0.0.0")
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no name server can be asked for
        if isinstance(error, socket.gaierror | UnicodeError) or error.errno == errno.EADDRNOTAVAIL:
            raise SettingError("host", host, "is no address of this machine; choose 127.0.0.1 or 0.0.0.0") from error
        raise SettingError("port", port, "cannot be served on; choose another") from error


def is_address(host: str) -> bool:
    """Whether it is an IP address rather than a name."""
    with suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


@contextmanager
def all_files_in_one_folder() -> Iterator[Path]:
    """Yields the folder of all files that the page makes, uploads included; it is removed at the end."""
    before = tempfile.tempdir, os.environ.get("GRADIO_TEMP_DIR")
    for number in (signal.SIGTERM, signal.SIGHUP):  # end as Ctrl-C does, so that the folder goes
        signal.signal(number, signal.default_int_handler)
    remove_leftovers()
    with own_folder() as folder:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before[0]
            del os.environ["GRADIO_TEMP_DIR"]
            if before[1] is not None:
                os.environ["GRADIO_TEMP_DIR"] = before[1]


@contextmanager
def own_folder() -> Iterator[Path]:
    """Yields a new folder whose lock this process holds, which shows that it is in use; it is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=BEGINNING))
    try:
        with files.lock(folder / LOCK):
            folder = folder.rename(folder.with_name(folder.name.replace(BEGINNING, FOLDER, 1)))
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers() -> None:
    """Removes the folders of this user's pages that were killed: no process holds their locks any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with suppress(OSError, RunError):  # RunError: its page is still served
            about = folder.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and (folder / LOCK).is_file():
                with files.lock(folder / LOCK):
                    shutil.rmtree(folder)


class OwnHost:
    """Answers requests to this page's own names alone: a site whose name is pointed at this machine, and a page of
    another site that sends something here, are refused. As ASGI middleware.

    An address of this machine is a name of its own, and so is localhost; a page that is served to others has the
    machine's name as well.
    """

    def __init__(self, app: Any, host: str) -> None:
        self.app = app
        self.host = host

    @cached_property
    def names(self) -> set[str]:
        """The names of the page that are no addresses."""
        return {"localhost"} if self.is_local(self.host) else {"localhost", self.host, socket.gethostname().lower()}

    @staticmethod
    def is_local(host: str) -> bool:
        """Whether it is a name of this machine that no other machine can use."""
        return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)

    def is_own(self, host: str) -> bool:
        """Whether a host, which may have a port, is this page's."""
        parts = re.fullmatch(r"(?:\[([\da-fA-F:.]+)\]|([^][:@/?#\s]+))(?::\d+)?", host)
        name = (parts[1] or parts[2]).lower() if parts else ""
        return name in self.names or (self.is_local(name) if self.is_local(self.host) else is_address(name))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        sent = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        origin = sent.get(b"origin", "//" + sent.get(b"host", "")).partition("//")[2]
        if scope["type"] == "lifespan" or (self.is_own(sent.get(b"host", "")) and self.is_own(origin)):
            await self.app(scope, receive, send)
        else:
            refusal = PlainTextResponse("This page answers to the address that it printed.\n", status_code=421)
            await refusal(scope, receive, send)


def describe(trained: Pretrained, name: str) -> str:
    """A net as the page lists it: head, test error and name."""
    error = trained.facts.get("test_error")
    measured = f"{error:.2f} % test error, " if is_number(error) else ""
    return f"{trained.net.arguments['head']}, {measured}{printable(name)}"


def known(nets: dict[str, Pretrained]) -> str:
    """Which classes the nets know, in Markdown: once, or a line for each net where they differ."""
    from nin import predict

    classes = {name: predict.known_classes(trained) for name, trained in nets.items()}
    if len(set(classes.values())) == 1:
        return f"{'It knows' if len(nets) == 1 else 'They know'} {classes.popitem()[1]}."
    return "\n".join(f"- {printable(name)} knows {each}." for name, each in classes.items())


def answer(trained: Pretrained, file: str | None) -> tuple[dict[str, float] | None, Figure | None]:
    """The probabilities of a picture's classes, and its class maps as a figure. Raises PictureError."""
    from nin import predict

    if file is None:
        return None, None
    ((_, prediction),) = predict.predict_each(trained, [("the picture", Path(file))])
    if isinstance(prediction, PictureError):
        raise prediction
    figure = predict.draw(trained, prediction, rows=2, whole=False)
    figure.set_dpi(150)
    return dict(zip(prediction.classes, prediction.probabilities.tolist(), strict=True)), figure


def page(nets: dict[str, Pretrained], examples: list[Path]) -> Any:
    """The page: pictures on the left, one or two nets on the right. It opens with the first example answered."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    def look(file: str | None, name: str) -> tuple[Any, Any]:
        try:
            return answer(nets[name], file)
        except PictureError as error:
            raise gr.Error(str(error).replace(file, "the picture"), print_exception=False) from error

    choices = [(describe(trained, name), name) for name, trained in nets.items()]
    first = str(examples[0]) if examples else None
    with gr.Blocks(title="Network in Network", analytics_enabled=False) as blocks:
        gr.Markdown(f"{TITLE}\n\n{known(nets)}")
        with gr.Row():
            with gr.Column(scale=2, min_width=240):
                picture = gr.Image(first, type="filepath", image_mode=None, label="picture", height=280)
                picture.preprocess = uploaded  # Gradio's own opens it with every decoder of Pillow
                if examples:
                    gr.Examples([[str(file)] for file in examples], picture, label="examples", examples_per_page=20)
            for side in range(min(len(nets), 2)):
                probabilities, figure = answer(nets[choices[side][1]], first)
                with gr.Column(scale=3, min_width=300):
                    name = gr.Dropdown(choices, value=choices[side][1], label="net", elem_id=f"net{side}")
                    classes = gr.Label(probabilities, num_top_classes=3, show_label=False, elem_id=f"classes{side}")
                    maps = gr.Plot(figure, show_label=False, elem_id=f"maps{side}")
                for event in (picture.change, name.change):
                    event(look, [picture, name], [classes, maps], show_progress="minimal")
    return blocks


def uploaded(payload: Any) -> str | None:
    """The file of an upload."""
    return payload.path if payload else None


def serve(blocks: Any, port: int, host: str = HOST) -> None:
    """Serves the page until Ctrl-C, SIGTERM or SIGHUP."""
    import gradio as gr
    from starlette.middleware import Middleware

    theme = gr.themes.Default(primary_hue="emerald", font=FONT, font_mono=FONT)
    of_page = {"share": False, "quiet": True, "footer_links": [], "theme": theme, "max_file_size": LARGEST_UPLOAD}
    of_page["app_kwargs"] = {"middleware": [Middleware(OwnHost, host=host)]}
    _, address, _ = blocks.launch(server_name=host, server_port=port, prevent_thread_lock=True, **of_page)
    print(f"open {address} (Ctrl-C ends it)", flush=True)
    blocks.block_thread()


def start() -> None:
    run_script(main)
