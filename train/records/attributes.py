"""What a study keeps in its database, as records: attributes of the study and of its trials."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from train.records.keys import HOLDOUT_SCORE, IDENTITY, UUID
from train.records.record_files import decode
from train.records.stored import HoldoutScore, Identity, SplitFigures

logger = logging.getLogger(__name__)

SPLIT = "split_"  # and its number: attribute of a trial for every split that it was scored on


def uuid_in(attributes: Mapping[str, Any]) -> str:
    """Id of the study; empty of one that is not ours."""
    return str(attributes.get(UUID, ""))


def identity_in(attributes: Mapping[str, Any]) -> Identity | None:
    """What a study was begun under; None of a study that is not ours.

    Raises:
        StudyError: it is damaged.
    """
    content = attributes.get(IDENTITY)
    if content is None:
        return None
    return decode(content, Identity, "the study's identity", advice="another --study-name starts afresh")


def labels_in(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Labels of the study's data sets."""
    return tuple(attributes.get("data", ()))


def holdout_score_in(attributes: Mapping[str, Any]) -> HoldoutScore | None:
    """The study's score on the held-out bars; None before it is there.

    Raises:
        StudyError: it is damaged.
    """
    content = attributes.get(HOLDOUT_SCORE)
    return None if content is None else decode(content, HoldoutScore, "the study's score on the held-out bars")


def splits_in(attributes: Mapping[str, Any]) -> dict[int, SplitFigures]:
    """Figures of every split that a trial was scored on, by number; a damaged one is left out."""
    numbers = {name: name.removeprefix(SPLIT) for name in attributes if name.startswith(SPLIT)}
    found = {}
    for name, number in numbers.items():
        try:
            found[int(number)] = decode(attributes[name], SplitFigures, name)
        except ValueError as error:  # a StudyError is one, too
            logger.warning("%s of a trial is left out: %s", name, error)
    return dict(sorted(found.items()))
