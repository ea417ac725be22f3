"""A checked configuration back to overrides: what a run's row, its card and the points of a study are named by."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

from nin import config, files
from nin.cli import conf
from nin.cli.conf import State, current_state, default_values, files_unchanged, names_in
from nin.cli.configuration import Composed, compose, sweep
from nin.cli.tree import of_files
from nin.config import quoted

if TYPE_CHECKING:
    from nin.studies.ablation import Point


def overrides_of(settings: dict[str, Any]) -> list[str]:
    """The shortest overrides that compose to these settings.

    First the choices of set, head, recipe or experiment, and net, then the seed, then each setting that differs from
    what these bring. What the trained net does not depend on is left out: where the images are, what the run prints,
    and the accelerator.

    Args:
        settings: a nested dictionary, as `nin.config.settings_of` and a run's record have them.
    """
    wanted = config.consequential(config.settings_of(config.from_settings(settings)))
    choices = _choices(wanted)
    return [*choices, f"seed={wanted['seed']}", *_differing(wanted, choices)]


def variant_of(settings: dict[str, Any]) -> str:
    """What was varied, for people: "model=plain recipe.drops=[]".

    Set, head, recipe, seed, epochs, precision, test curve, held-out images and checksums are not named."""
    named: tuple[str, ...] = (
        "data",
        "head",
        "recipe",
        "experiment",
        "seed",
        "data.name",
        "head.name",
        "recipe.name",
        "data.val",
    )
    named += ("eval_curve", "trainer.max_epochs", "trainer.precision", "data.sha256", "model.weights_sha256")
    return " ".join(sorted(override for override in overrides_of(settings) if override.partition("=")[0] not in named))


def command_of(settings: dict[str, Any]) -> str:
    """The command that trains with these settings, as a shell reads it."""
    return shlex.join(["python", "scripts/train.py", *overrides_of(settings)])


def points(overrides: Sequence[str]) -> list[Point]:
    """The points of a study: what `sweep` returns, each with its checked configuration and what it varies.

    Raises SettingError or UsageError.
    """
    with files_unchanged():
        composed = [(point, compose(point)) for point in sweep(overrides)]  # a typo is refused before torch is loaded

        from nin.run.build import identified
        from nin.studies.ablation import Point

        made, variants = [], {}
        for point, settings in composed:
            known = identified(settings)
            alike = json.dumps(config.settings_of(replace(known, seed=0)))  # a variant names no seed
            if alike not in variants:
                variants[alike] = variant_of(config.settings_of(known))
            made.append(Point(tuple(point), known, variants[alike]))
        return made


def _choices(wanted: dict[str, Any]) -> list[str]:
    """The choices of files that bring most of these settings."""
    choices = [f"{group}={wanted[f'{group}.name']}" for group in ("data", "head") if _is_file(group, wanted)]
    recipes = [f"{group}={wanted['recipe.name']}" for group in ("recipe", "experiment") if _is_file(group, wanted)]
    choices += recipes[:1]
    if not any(override.startswith("model.") for override in _differing(wanted, choices)):
        return choices
    nets = [[], *([f"model={name}"] for name in _nets_that_may_bring(wanted, tuple(choices)))]
    return [*choices, *min(nets, key=lambda net: len(_differing(wanted, [*choices, *net])))]


def _nets_that_may_bring(wanted: dict[str, Any], choices: tuple[str, ...]) -> Iterator[str]:
    """The nets in conf/ that may bring a wanted setting which these choices do not bring: their file states it, or
    leaves the default that the file of the chosen net replaces. To compose every net takes a fifth of a second each."""
    state = current_state()
    brought, before = _brought(state, choices), _stated_by_net(state, _chosen_net(state, choices))
    for name in names_in("model"):
        stated = _stated_by_net(state, name)
        if stated is None or before is None:
            yield name
            continue
        changed = {each: stated.get(each, default_values()[each]) for each in {**before, **stated}}
        if any(wanted[each] != brought[each] and wanted[each] == value for each, value in changed.items()):
            yield name


@cache
def _chosen_net(state: State, choices: tuple[str, ...]) -> str:
    """The name of the net's file that these choices compose."""
    return str(of_files(state, choices, ()).hydra.runtime.choices.get("model"))


@cache
def _stated_by_net(state: State, name: str) -> dict[str, Any] | None:
    """The settings that a net's file in conf/ states; None where they depend on other files, or cannot be read."""
    try:
        text = files.read(conf.CONF / "model" / f"{name}.yaml").decode()
        content = yaml.load(text, files.WithoutAliases)
        settings = config.flat(config.settings_of(config.from_settings({"model": content})))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):  # or a list of defaults
        return None
    return (
        None if "@package" in text or "${" in text else {f"model.{each}": settings[f"model.{each}"] for each in content}
    )


def _is_file(group: str, wanted: dict[str, Any]) -> bool:
    """Whether the settings' set, head or recipe has a file in this group."""
    name = wanted["recipe.name" if group == "experiment" else f"{group}.name"]
    return name in names_in(group)


def _differing(wanted: dict[str, Any], stated: Sequence[str]) -> list[str]:
    """The overrides that these settings need besides those that are stated."""
    brought = _brought(current_state(), tuple(stated))
    names = [name for name in wanted if name not in ("seed", "trainer.accelerator") and wanted[name] != brought[name]]
    return [f"{name}={spelled_as(name, wanted[name])}" for name in names]


@cache
def _brought(state: State, stated: tuple[str, ...]) -> dict[str, Any]:
    """The settings that these choices of files set, by dotted name; unchecked, as the run may be another machine's."""
    return config.flat(config.settings_of(config.from_settings(Composed(stated).plain())))


def spelled_as(name: str, value: Any) -> str:
    """The value of a setting in Hydra's grammar. What is always a float is written 1, not 1.0."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    is_of_float = config.flat_types()[name] in (float, float | None)
    return str(int(value)) if is_whole and is_of_float else _spelled(value)


def _spelled(value: Any) -> str:
    """A plain value in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_spelled(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    if isinstance(value, str):
        keyword = value.lower() in ("true", "false", "null", "nan", "inf", "yes", "no", "on", "off")
        return value if re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII) and not keyword else quoted(value)
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    )
