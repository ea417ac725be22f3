"""A page to try trained nets on: drop a picture, see its classes and their maps, two nets side by side.

python scripts/demo.py checkpoint=runs/A,runs/B               then open http://127.0.0.1:7860
python scripts/demo.py checkpoint=A port=8000                 published names, weights files and runs' folders alike

data.root=     folder of the sets, by default NIN_DATA. The examples are test images of the set that the first net was
               trained on; where that set is missing there are none

The page is served to this machine alone and reports nothing to anyone. It requires gradio:
pip install 'network-in-network[demo]'
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nin.cli import plain_settings, run_script
from nin.errors import PictureError, SettingError, UsageError

if TYPE_CHECKING:
    from nin.pretrained import Pretrained

HOST = "127.0.0.1"
FONT = ["ui-sans-serif", "system-ui", "sans-serif"]  # no font is fetched from anywhere
TITLE = """# Network in Network
Drop a picture or pick one. The net sees its middle square; positive evidence for a class is overlaid on the picture."""


def main(arguments: list[str]) -> None:
    settings = plain_settings(arguments, {"checkpoint": "", "port": "7860", "data.root": ""})
    port = int(settings["port"]) if settings["port"].isdecimal() and len(settings["port"]) < 6 else 0
    if not 0 < port < 65_536:
        raise SettingError("port", settings["port"], "expected an integer from 1 to 65535")
    if not settings["checkpoint"]:
        raise UsageError("checkpoint= is required: runs' folders, weights files or published names")

    from nin import predict, pretrained
    from nin.run.machine import keep_freed_memory

    keep_freed_memory()
    nets = {name: pretrained.load(name, fold=True) for name in settings["checkpoint"].split(",")}
    if importlib.util.find_spec("gradio") is None:
        raise UsageError("the page requires gradio: pip install 'network-in-network[demo]'")
    if not is_free(port):
        raise SettingError("port", port, "cannot be served on; choose another")
    with tempfile.TemporaryDirectory() as folder:
        first = next(iter(nets.values()))
        examples, reason = predict.save_examples(first, Path(folder), settings["data.root"] or None)
        if reason:
            print(f"no examples: {reason}")
        serve(page(nets, examples), port)


def is_free(port: int) -> bool:
    """Whether this port can be served on."""
    with suppress(OSError), socket.create_server((HOST, port)):
        return True
    return False


def describe(trained: Pretrained, name: str) -> str:
    """A net as the page lists it: head, test error and name."""
    error = trained.facts.get("test_error")
    return f"{trained.net.arguments['head']}, " + (f"{error:.2f} % test error, " if error is not None else "") + name


def page(nets: dict[str, Pretrained], examples: list[Path]) -> Any:
    """The page: pictures on the left, one or two nets on the right."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    from nin import predict

    def look(file: str | None, name: str) -> tuple[Any, Any]:
        if file is None:
            return None, None
        ((_, prediction),) = predict.predict_each(nets[name], [("the picture", Path(file))])
        if isinstance(prediction, PictureError):
            raise gr.Error(str(prediction))
        figure = predict.draw(nets[name], prediction, rows=2, whole=False)
        figure.set_dpi(150)
        return dict(zip(prediction.classes, prediction.probabilities.tolist(), strict=True)), figure

    choices = [(describe(trained, name), name) for name, trained in nets.items()]
    with gr.Blocks(title="Network in Network", analytics_enabled=False) as blocks:
        gr.Markdown(TITLE)
        with gr.Row():
            with gr.Column(scale=2, min_width=240):
                picture = gr.Image(type="filepath", image_mode=None, label="picture", height=280)
                if examples:
                    gr.Examples([[str(file)] for file in examples], picture, label="test images")
            for side in range(min(len(nets), 2)):
                with gr.Column(scale=3, min_width=300):
                    name = gr.Dropdown(choices, value=choices[side][1], label="net", elem_id=f"net{side}")
                    classes = gr.Label(num_top_classes=3, show_label=False, elem_id=f"classes{side}")
                    maps = gr.Plot(show_label=False, elem_id=f"maps{side}")
                for event in (picture.change, name.change):
                    event(look, [picture, name], [classes, maps], show_progress="minimal")
    return blocks


def serve(blocks: Any, port: int) -> None:
    """Serves the page until Ctrl-C or SIGTERM."""
    import gradio as gr

    theme = gr.themes.Default(primary_hue="emerald", font=FONT, font_mono=FONT)
    of_page = {"share": False, "quiet": True, "footer_links": [], "theme": theme}
    _, address, _ = blocks.launch(server_name=HOST, server_port=port, prevent_thread_lock=True, **of_page)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    print(f"open {address} (Ctrl-C ends it)", flush=True)
    blocks.block_thread()


def start() -> None:
    run_script(main)
