"""Attributes of a study and its trials in the database, as records."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from train.records.keys import HOLDOUT_SCORE, IDENTITY, UUID
from train.records.record_files import decode
from train.records.stored import HoldoutScore, Identity, SplitFigures

logger = logging.getLogger(__name__)

SPLIT = "split_"  # followed by the split's number: trial attribute with the figures of a scored split


def uuid_in(attributes: Mapping[str, Any]) -> str:
    """Return the uuid of a study, or "" if this program did not create it."""
    return str(attributes.get(UUID, ""))


def identity_in(attributes: Mapping[str, Any]) -> Identity | None:
    """Return the identity of a study, or None if this program did not create it.

    Raises:
        StudyError: the stored identity is damaged.
    """
    content = attributes.get(IDENTITY)
    if content is None:
        return None
    return decode(content, Identity, "the study's identity", advice="pass a different --study-name to start over")


def labels_in(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels of the study's datasets."""
    return tuple(attributes.get("data", ()))


def holdout_score_in(attributes: Mapping[str, Any]) -> HoldoutScore | None:
    """Return the study's hold-out score, or None before the hold-out is evaluated.

    Raises:
        StudyError: the stored score is damaged.
    """
    content = attributes.get(HOLDOUT_SCORE)
    return None if content is None else decode(content, HoldoutScore, "the study's hold-out score")


def splits_in(attributes: Mapping[str, Any]) -> dict[int, SplitFigures]:
    """Return the metrics of every split that a trial was scored on, by split number. Damaged entries are skipped."""
    numbers = {name: name.removeprefix(SPLIT) for name in attributes if name.startswith(SPLIT)}
    found = {}
    for name, number in numbers.items():
        try:
            found[int(number)] = decode(attributes[name], SplitFigures, name)
        except ValueError as error:  # StudyError is a subclass
            logger.warning("skipping %s of a trial, because it cannot be read: %s", name, error)
    return dict(sorted(found.items()))
