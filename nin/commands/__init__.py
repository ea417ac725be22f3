"""Network in Network: trains, evaluates and explains nets.

nin train        trains one net
nin evaluate     test error and confusions of a trained net
nin predict      classes of pictures, and where the net sees them
nin ablate       a study: one run for each combination of values
nin cost         parameters and operations, layer by layer
nin export       a trained net as one file for programs without PyTorch
nin demo         a page to try trained nets on
nin benchmark    images per second, in training and inference

In a checkout of the repository, and refused elsewhere:

nin report       tables and figures of a study
nin claims       what trained nets and studies say about pooling
nin publish      a run's net under a name of its own

nin COMMAND --help explains a command; nin --version prints the version. Results go into the current folder.
"""

from __future__ import annotations

import signal
import sys
import threading
from importlib import import_module
from pathlib import Path

ANYWHERE = ("train", "evaluate", "predict", "ablate", "cost", "export", "demo", "benchmark")
OF_A_CHECKOUT = ("report", "claims", "publish")


def main() -> None:
    """The entry point `nin`: runs the command that its first argument names. Outside a checkout the commands that
    belong to one print their help, and are refused otherwise."""
    from nin import cli, files

    name = sys.argv[1] if len(sys.argv) > 1 else ""
    answers = bool(files.CHECKOUT) or not {"--help", "-h"}.isdisjoint(sys.argv[2:])
    if name in ANYWHERE or (name in OF_A_CHECKOUT and answers):
        del sys.argv[1]
        import_module(f"nin.commands.{name}").start()
    else:
        del sys.argv[2:]  # what is no command has no help of its own
        cli.run_script(_without_command)


def _without_command(arguments: list[str]) -> None:
    """Prints the version, or raises UsageError with the commands."""

    import nin
    from nin import cli, files
    from nin.checks import one_line
    from nin.errors import UsageError

    if arguments == ["--version"]:
        print(nin.__version__)
        return
    name = one_line(arguments[0]) if arguments else ""
    if name in OF_A_CHECKOUT:
        raise UsageError(f"nin {name}: belongs to a checkout of the repository; run it there, after pip install -e .")
    known = (*ANYWHERE, *OF_A_CHECKOUT) if files.CHECKOUT else ANYWHERE
    meant = cli.similar(name, known)
    reason = f"did you mean nin {meant}?" if meant else f"must be one of {', '.join(known)}"
    raise UsageError(f"nin{f' {name}' * bool(name)}: expected a command; {reason}")


def _end_quietly() -> None:
    """Lets Ctrl-C end this process at once while it imports what a command needs; `nin.cli` heeds it from then on."""
    is_command = Path(sys.argv[0] if sys.argv else "").stem in ("nin", "__main__", *ANYWHERE, *OF_A_CHECKOUT)
    in_main = threading.current_thread() is threading.main_thread()
    if is_command and in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


_end_quietly()
