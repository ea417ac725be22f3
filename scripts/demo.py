"""A page to try trained nets on: drop a picture, see its classes and their maps, two nets side by side.

python scripts/demo.py checkpoint=runs/A,runs/B               then open http://127.0.0.1:7860
python scripts/demo.py checkpoint=A port=8000                 published names, weights files and runs' folders alike

data.root=     folder of CIFAR-10, whose test images are the examples, by default NIN_DATA; where it is not, none are

It serves this machine alone and reports nothing to anyone. Needs gradio: pip install 'network-in-network[demo]'
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

from PIL import Image

from nin import pictures, pretrained
from nin.command import plain_settings
from nin.config import ConfigError
from nin.data import DataError
from nin.pretrained import Pretrained
from nin.run import images_of
from nin.studies import maps

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
PIXELS = 512  # side of the picture that the maps are laid over


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    defaults = {"checkpoint": "", "port": "7860", "data.root": ""}
    try:
        settings = plain_settings(arguments, defaults)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not settings["port"].isdecimal() or not 0 < int(settings["port"]) < 65_536:
        print(f"error: port={settings['port']}: from 1 to 65535", file=sys.stderr)
        return 2
    if not settings["checkpoint"]:
        print("error: checkpoint= must be given: runs' folders, weights files or published names", file=sys.stderr)
        return 2
    try:
        nets = {name: pretrained.load(name) for name in settings["checkpoint"].split(",")}
        with tempfile.TemporaryDirectory() as folder:
            serve(nets, examples(next(iter(nets.values())), settings["data.root"] or None, folder), settings["port"])
    except ImportError as error:
        print(f"error: {error}; install it with pip install 'network-in-network[demo]'", file=sys.stderr)
        return 1
    except (pretrained.CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def examples(trained: Pretrained, root: str | None, folder: str) -> list[str]:
    """Files of one test image of each class, where the net's test set is at hand."""
    try:
        data = images_of(trained, root, download=False)
    except (DataError, pretrained.CheckpointError) as error:
        print(f"no examples: {error}")
        return []
    files = []
    for k, name in enumerate(data.set.classes):
        image = data.set.test_images[(data.set.test_labels == k).nonzero()[0, 0]]
        files.append(str(Path(folder) / f"{name}.png"))
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
    return files


def describe(trained: Pretrained, name: str) -> str:
    error = trained.facts.get("test_error")
    return f"{trained.net.arguments['head']}, " + (f"{error:.2f} % test error, " if error is not None else "") + name


def serve(nets: dict[str, Pretrained], files: list[str], port: str) -> None:
    """The page, until Ctrl-C."""
    import gradio as gr

    def look(file: str | None, name: str):
        if file is None:
            return None, None
        try:
            trained, picture = nets[name], pictures.read_picture(Path(file))
            small = pictures.resize(picture, trained.net.arguments["image_size"])
            seen = maps.look(trained, small)
            figure = maps.draw(trained, small, seen, pictures.resize(picture, PIXELS), rows=2)
        except (pictures.PictureError, ValueError) as error:
            raise gr.Error(str(error)) from error
        figure.set_dpi(150)
        return dict(zip(trained.classes, seen[0].tolist(), strict=True)), figure

    with gr.Blocks(title="Network in Network", analytics_enabled=False) as page:
        gr.Markdown(
            "# Network in Network\nDrop a picture or pick one. The net sees its middle square; what speaks for a class "
            "glows in the class's map."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=240):
                picture = gr.Image(type="filepath", image_mode=None, label="picture", height=280)
                if files:
                    gr.Examples([[file] for file in files], picture, label="test images")
            choices = [(describe(trained, name), name) for name, trained in nets.items()]
            for side in range(min(len(nets), 2)):
                with gr.Column(scale=3, min_width=300):
                    name = gr.Dropdown(choices, value=choices[side][1], label="net", elem_id=f"net{side}")
                    classes = gr.Label(num_top_classes=3, show_label=False, elem_id=f"classes{side}")
                    shown = gr.Plot(show_label=False, elem_id=f"maps{side}")
                for event in (picture.change, name.change):
                    event(look, [picture, name], [classes, shown], show_progress="minimal")
    system = ["ui-sans-serif", "system-ui", "sans-serif"]  # no font is fetched from anywhere
    theme = gr.themes.Default(primary_hue="emerald", font=system, font_mono=system)
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=int(port),
            share=False,
            quiet=True,
            footer_links=[],
            prevent_thread_lock=True,
            theme=theme,
        )
    except OSError as error:
        raise OSError(f"port={port}: it cannot be served on; choose another") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    print(f"open {address} (Ctrl-C ends it)", flush=True)
    page.block_thread()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
