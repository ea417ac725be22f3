"""From a command line to a checked configuration; from an error to one sentence and an exit code.

Only this folder uses Hydra and OmegaConf. It does not import torch, so that a typo is refused, and --help answers,
before anything slow is loaded.
"""

from nin.cli.configuration import compose, sweep
from nin.cli.help import plain_settings
from nin.cli.overrides import command_of, overrides_of, points, variant_of
from nin.cli.refusals import as_setting, looks_like_checkpoint, similar
from nin.cli.script import command, new_folder, run_script

__all__ = [
    "as_setting",
    "command",
    "command_of",
    "compose",
    "looks_like_checkpoint",
    "new_folder",
    "overrides_of",
    "plain_settings",
    "points",
    "run_script",
    "similar",
    "sweep",
    "variant_of",
]
