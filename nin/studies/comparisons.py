"""Comparisons of runs, for all claims about runs: groups that may be compared, and verdicts of paired differences."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from nin.config import consequential, set_of
from nin.pretrained import available, read_card
from nin.studies.answer import of_differences, overall
from nin.studies.rows import NOT_COMPARED, Condition, defaults
from nin.studies.tables import LEAST_SEEDS, file_stem, paired


class Group(NamedTuple):
    """Rows that differ only in head, seed and the settings that a claim varies.

    Attributes:
        condition: of the rows; its epochs are 0 if they may differ.
        label: the settings in which they differ from other groups of this condition, as after an edit of a recipe.
        rows: a frame of `nin.studies.rows`.
    """

    condition: Condition
    label: str
    rows: pd.DataFrame

    @property
    def title(self) -> str:
        """The group in words."""
        return ", ".join(filter(None, [self.condition.title, self.label]))

    @property
    def stem(self) -> str:
        """The group as part of a file's name."""
        return file_stem(self.condition.stem, self.label)


def training_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """The training of a net but for its head, by fact and setting, as JSON.

    Args:
        facts: of the net's card, or of the record in its weights file. Older ones lack settings.
    """
    start = facts.get("start") or {"name": facts.get("started_from")}
    known = {name: facts.get(name) for name in ("data", "recipe", "epochs", "seed", "precision")}
    known |= {"start": start.get("sha256") or start["name"], "frozen": bool(facts.get("frozen"))}
    if facts.get("settings"):
        settings = {**defaults(), **consequential(facts["settings"])}
        known |= {name: value for name, value in settings.items() if name not in NOT_COMPARED}
    return {name: json.dumps(value) for name, value in known.items()}


def trained_alike(facts: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether two nets were trained in the same way but for their heads, as far as the facts of both say."""
    one, other = training_of(facts), training_of(others)
    return all(one[name] == other[name] for name in one.keys() & other.keys())


def published_cards() -> dict[str, dict]:
    """The cards of the published nets, with their `name`, by the sha256 of the weights.

    Raises:
        CheckpointError: a card is damaged.
    """
    cards = {name: read_card(name) for name in available()}
    return {card["sha256"]: {**card, "name": name} for name, card in cards.items()}


def refined(rows: pd.DataFrame) -> pd.Series:
    """Whether each row's run started from a net of the row's own set. Older rows do not say; of a published net the
    card does. Raises nin.errors.CheckpointError."""
    of_cards = rows.start_sha256.map({sha256: set_of(card) for sha256, card in published_cards().items()})
    own = rows.settings.map(_set_of_row)
    return rows.start_data.mask(rows.start_data == "", of_cards) == own


def _set_of_row(settings: Mapping[str, Any]) -> str | None:
    return set_of({"data": settings["data.name"], "settings": {"data": {"sha256": settings["data.sha256"]}}})


def comparable(rows: pd.DataFrame, varied: Sequence[str] = (), named: Sequence[str] = ()) -> list[Group]:
    """Groups of rows that a claim compares, sorted by condition.

    Args:
        rows: of a study, without stopped runs.
        varied: names of the settings that the claim varies. Rows in which any other setting was varied are left out;
            so are runs that started from a checkpoint, or from a share of the images, unless the claim varies it.
        named: names of settings that may be varied too, in which the rows of a group agree.
    """
    rows = rows[rows.variant.map(lambda variant: _names_of(variant) <= {*varied, *named}).astype(bool)]
    if "checkpoint" not in varied:
        rows = rows[rows.start_name == ""]
    if "data.share" not in varied:
        rows = rows[rows.share == 1]
    conditions = rows.condition.tolist()
    if "trainer.max_epochs" in varied:
        conditions = [condition._replace(epochs=0) for condition in conditions]
    common = [json.dumps(_common(settings, varied), sort_keys=True) for settings in rows.settings]
    rows = rows.assign(common=common)
    groups = []
    for condition in sorted(set(conditions)):
        of_condition = rows[[each == condition for each in conditions]]
        labels = _labels(of_condition.common.unique())
        for settings, group in of_condition.groupby("common", sort=False):
            groups.append(Group(condition, labels[settings], group.drop(columns="common")))
    return groups


def _names_of(variant: str) -> set[str]:
    """The names of the settings that a variant, NAME=VALUE …, states."""
    return set(re.findall(r"(?:^|\s)([\w.]+)=", variant))


def _common(settings: Mapping[str, Any], varied: Sequence[str]) -> dict[str, Any]:
    """The settings in which rows of one group must agree."""
    free = (*NOT_COMPARED, *varied)
    return {name: value for name, value in settings.items() if name not in free}


def _labels(groups: Sequence[str]) -> dict[str, str]:
    """For each group's settings (JSON) those in which the groups differ: "recipe.lr=0.05"."""
    settings = [json.loads(group) for group in groups]
    names = sorted(name for name in set().union(*settings) if len({json.dumps(s.get(name)) for s in settings}) > 1)
    labels = [" ".join(f"{name}={json.dumps(each.get(name))}" for name in names) for each in settings]
    return dict(zip(groups, labels, strict=True))


def judge(
    pairs: Sequence[tuple[str, Sequence[float]]], quantity: str, below: bool = True, also: str = ""
) -> tuple[str, str]:
    """Verdict and finding of paired differences, a fully connected head's minus GAP's.

    Each comparison is undecided with fewer than three seeds, if its 95 % interval contains 0, or if all differences are
    equal, for then they have no interval.

    Args:
        pairs: for each comparison its name and the difference of each seed.
        quantity: the differences in words, with their unit.
        below: whether differences below 0 support the claim; else those above 0 do.
        also: what runs must have besides equal seeds: " and …".
    """
    sign = -1 if below else 1
    verdicts = [of_differences([sign * each for each in differences], LEAST_SEEDS) for _, differences in pairs]
    if not pairs:
        requires = f"runs of `gap` and of a fully connected head with equal seeds{also}"
        return overall([]), f"Judging the claim requires {requires}."
    unanimous = len(set(verdicts)) == 1
    cells = []
    for (name, differences), verdict in zip(pairs, verdicts, strict=True):
        cell = f"{name} {paired(differences)}"
        cells.append(cell if unanimous else f"{cell}, {verdict}")
    few = max(len(differences) for _, differences in pairs) < LEAST_SEEDS
    note = f" A verdict requires {LEAST_SEEDS} seeds." if few else ""
    return overall(verdicts), f"{quantity}: {(', ' if unanimous else '; ').join(cells)}.{note}"
