"""The page of a day: complete in itself, well-formed, of that day only, and honest about what is unknown."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import pytest

from paper_trading.day_page import write_day
from tests.support.made_journal import BAR_SECONDS, FIRST_S, MadeTrader, Sent, made_days

FIRST_DAY, SECOND_DAY = date(2025, 11, 30), date(2025, 12, 1)


def text_of(path: Path) -> str:
    """All words of a page, which is well-formed XML as well."""
    return " ".join("".join(ElementTree.fromstring(path.read_text()).itertext()).split())


def rows(path: Path) -> list[list[str]]:
    """The cells of every table's row."""
    found = [e for e in ElementTree.fromstring(path.read_text()).iter() if e.tag == "tr"]
    return [["".join(cell.itertext()) for cell in row] for row in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trading") / "replay"
    made_days(folder, n_bars=600, synthetic=True, proven=False, in_sample=True)
    return folder


def test_the_page_is_one_file_that_loads_nothing(folder):
    path = write_day(folder, SECOND_DAY)
    assert path == folder / "reports" / "2025-12-01.html"
    html = path.read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"https?://(?!www\.w3\.org)|<script|<link|<img|@import|url\((?!#)", html)
    assert html.count("<svg") == 2


def test_the_page_says_what_the_terminal_says(folder):
    text = text_of(write_day(folder, SECOND_DAY))
    for part in (
        "REPLAY · SYNTHETIC · IN-SAMPLE · UNPROVEN", "replay, 2025-12-01", "The account ended the day at",
        "The market is synthetic", "The policy was trained on some of these bars", "the trader's equity differs from",
        "rejected: insufficient balance", "trader minus simulator", "Skill (return above equal weight)",
        "largest buy of the bar", "8 not seen",
    ):  # fmt: skip
        assert part in text, part
    assert "was replaced by" not in text  # on the day after


def test_the_last_day_is_the_default(folder):
    path = write_day(folder)
    assert path.name == "2025-12-02.html"
    assert "dep-1 was replaced by dep-2" in text_of(path)


def test_a_day_holds_its_own_bars_only(tmp_path):
    trader = MadeTrader(tmp_path / "paper-1", mode="PAPER", first_s=FIRST_S + 86_400 - 2 * BAR_SECONDS)
    trader.bar([100.0])
    trader.bar([100.0], {"BTC": 10.0}, [Sent("BTC", 10.0, fee_rate=0.0)])
    trader.journal.append("state", **{"from": "ACTIVE", "to": "REDUCING", "why": "of the first day"})
    trader.bar([105.0], {"BTC": 10.0}, [Sent("BTC", 10.0, fee_rate=0.0)])  # closes at midnight: the next day's
    trader.bar([110.0])
    first, second = (write_day(trader.folder, day) for day in (FIRST_DAY, SECOND_DAY))
    # fees of 0.25 % of 1,000.5 and 1,050.525 USD are not taken; equity is 9,999.5 and 10,148.975 USD
    assert ["fees: paid fee vs. simulator's rate", "+2.50", "+2.50", "+0.025%"] in rows(first)
    assert ["this day, USD", "since the start, USD", "share of equity"] in [row[-3:] for row in rows(first)]
    assert ["fees: paid fee vs. simulator's rate", "+2.63", "+5.13", "+0.051%"] in rows(second)
    order = ["buy BTC (policy)", "10", "10", "filled", "100", "unknown", "100.05", "100.05 (+5.0 bp)", "2.5013"]
    assert [row for row in rows(first) if "buy BTC (policy)" in row] == [["23:55", *order, "0.0000"]]
    assert [row[0] for row in rows(second) if "buy BTC (policy)" in row] == ["00:00"]
    assert "ended the day at 10,148.98 USD, a return of +1.49%" in text_of(second)
    assert ("of the first day" in text_of(first), "of the first day" in str(rows(second))) == (True, False)
    assert "2 on this day, 4 in total" in text_of(second)
    assert "PAPER" in text_of(first)


def test_an_account_that_begins_anew_has_no_yesterday(tmp_path):
    trader = MadeTrader(tmp_path / "replay", first_s=FIRST_S + 86_400 - 2 * BAR_SECONDS)
    for _ in range(3):  # the last one at midnight
        trader.bar([100.0])
    trader.journal.append("start", **trader.content)
    trader.bar([100.0])
    assert "1 on this day, 1 in total" in text_of(write_day(trader.folder, SECOND_DAY))


def test_a_day_without_decisions(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    text = text_of(write_day(trader.folder))
    for part in ("The trader made no decisions on this day.", "No curve: fewer than two decisions.",
                 "No orders on this day.", "Unknown: no decision yet.", "unknown: no fill yet"):  # fmt: skip
        assert part in text, part


def test_an_empty_folder_has_a_page(tmp_path):
    assert "UNKNOWN" in text_of(write_day(tmp_path))


def test_damage_is_said_first(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100.0])
    with trader.journal.path.open("ab") as file:
        file.write(b"damage\n")
    assert "The journal is damaged: " in text_of(write_day(trader.folder))


def test_texts_of_others_are_escaped(tmp_path):
    evil = "<script>alert('1')</script>"
    trader = MadeTrader(tmp_path / "replay", (evil,), deployment=evil, study=evil, code_version=evil)
    trader.bar([100.0], notes=[evil])
    trader.bar([100.0], {}, [Sent(evil, 1.0, status="rejected", reason=evil)])
    path = write_day(trader.folder)
    assert "<script" not in path.read_text()
    assert evil in text_of(path)
