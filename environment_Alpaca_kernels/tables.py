# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Name tables of the drop-in file as numbers, which compiled steps use in comparisons and as row indices.

`CHOICE.buys.sequential` is the index of "sequential" in `CHOICES["buys"]`, and `TERM.cappuccino.alpha` the row of the
term "alpha". A name added to a table of the drop-in file gets its number here without further changes.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from . import drop_in


def places(names: Iterable[str]) -> Any:
    """Return the index of each name as a constant for compiled functions: ``places(("a", "b")).b == 1``."""
    names = tuple(names)
    return namedtuple("Places", names)(*range(len(names)))  # pyright: ignore[reportUntypedNamedTuple]


def places_in(tables: Mapping[str, Iterable[str]]) -> Any:
    """Return the index constants of each of several tables, by table name."""
    return namedtuple("Tables", tuple(tables))(*map(places, tables.values()))  # pyright: ignore[reportUntypedNamedTuple]


CHOICE = places_in(drop_in.CHOICES)  # settings of `EnvParams` with named choices
TERM = places_in(drop_in.TERM_NAMES)  # rows of the terms of each reward
REPORT = places(drop_in.REPORTED)  # rows of `money`; the terms of the reward follow
COUNT = places(drop_in.COUNTED)  # rows of `counted`
# Rows of a segment's numbers, named after the fields of `Market`.
SEGMENT = places(("segment_first", "segment_end", "episode_limit", "first_start", "start_offset", "usable_segment"))


def segments_of(market: drop_in.Market) -> Tensor:
    """Return the numbers of all segments as rows of SEGMENT, (6, G) int64."""
    rows = market.segment_first.new_zeros((len(SEGMENT), len(market.segment_first)))
    for row, name in zip(rows, SEGMENT._fields, strict=True):
        values = getattr(market, name)[: len(row)]  # start_offset is one longer, usable_segment may be shorter
        row[: len(values)] = values
    return rows
