"""Alpaca's order rules from its assets endpoint: `GET /v2/assets?asset_class=crypto`, on the paper account.

The endpoint tells smallest orders and increments. It does not tell the notional minimum or the fees: those are taken
over from the table known before. Keys come from the environment, travel in request headers, and are never written,
logged or part of a message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import requests

from market.defaults import KEY_VARIABLES, PAPER_URL
from market.errors import BarsError, VenueError
from market.names import DOLLARS, currency_of, split_symbol, ticker_of
from market.sources.transport import Patience, be_patient, check_reachable
from market.symbols import known_pair
from market.venues import OrderRule, Venue

SIZES = {  # ours -> theirs
    "min_order_qty": "min_order_size",
    "qty_increment": "min_trade_increment",
    "price_increment": "price_increment",
}
LONGEST_SYMBOL = 40
PATIENCE = Patience(read_s=20.0, retries=2)


@dataclass(frozen=True)
class Keys:
    """Of a paper account."""

    key_id: str = field(repr=False)
    secret: str = field(repr=False)


def keys_of(environ: Mapping[str, str]) -> Keys:
    """The keys in the environment's variables.

    Raises:
        VenueError: they are not there, or hold what cannot be a key; the message names variables, never their values.
    """
    for names in KEY_VARIABLES:
        absent = [name for name in names if not environ.get(name)]
        if len(absent) == 1:
            (present,) = set(names) - set(absent)
            raise VenueError(f"{present} is set and {absent[0]} is not; set both")
        if absent:
            continue
        for name in names:
            if not all("!" <= letter <= "~" for letter in environ[name]):
                raise VenueError(f"{name} holds blanks, line ends or letters that no key has; copy it again")
        return Keys(*(environ[name] for name in names))
    (first, second), (other, another) = KEY_VARIABLES
    raise VenueError(
        f"no keys: set {first} and {second} (or {other} and {another}) to those of your Alpaca paper account"
    )


def fetch_assets(keys: Keys, url: str | None = None, patience: Patience = PATIENCE) -> list[Any]:
    """Alpaca's crypto assets as they are sent.

    Args:
        keys: of the paper account.
        url: another server with the same interface, for tests.
        patience: how long to wait, and how often to ask again.

    Raises:
        VenueError: no network, refused keys, or an answer that is not a list; one line.
    """
    from alpaca.common.exceptions import APIError
    from alpaca.trading.client import TradingClient
    from alpaca.trading.enums import AssetClass
    from alpaca.trading.requests import GetAssetsRequest

    address = url or PAPER_URL
    _check_reachable(address, patience)
    client = TradingClient(keys.key_id, keys.secret, paper=True, raw_data=True, url_override=address)
    client._retry = 0  # alpaca-py's own retries, on top of the session's
    be_patient(client._session, patience)
    try:
        answer = client.get_all_assets(GetAssetsRequest(asset_class=AssetClass.CRYPTO))
    except APIError as error:
        raise VenueError(_refusal(address, error.status_code)) from None
    except requests.JSONDecodeError:
        raise VenueError(f"{address} answers with something else than JSON; try again later") from None
    except requests.RequestException as error:  # its text may hold what was sent
        raise VenueError(f"{address} cannot be read ({type(error).__name__}); check the network") from None
    if not isinstance(answer, list):
        raise VenueError(f"{address} answers with something else than a list of assets; try again later")
    return answer


def _check_reachable(address: str, patience: Patience) -> None:
    try:
        check_reachable(address, patience)
    except BarsError as error:
        fault = str(error).partition(";")[0]
        raise VenueError(f"{fault}; check the network; the rules you have stay as they are") from None


def _refusal(address: str, status: int | None) -> str:
    if status in (401, 403):
        return f"{address} refuses the keys ({status}); they must be those of the paper account, not of the live one"
    return f"{address} answers {status}; try again later"


def venue_of_assets(assets: Sequence[Any], known: Venue, as_of: str, source: str) -> tuple[Venue, list[str]]:
    """The venue's present rules, and one line for every asset that was left out.

    Args:
        assets: as `fetch_assets` returns them; numbers may be strings.
        known: gives the venue's name, its default rule, notional minimum and fees.
        as_of: ISO date of the answer.
        source: where it comes from.

    Raises:
        VenueError: nothing usable in the answer.
    """
    rules: dict[str, OrderRule] = {}
    left_out: list[str] = []
    doubles: list[str] = []
    by_symbol, strange = _by_symbol(assets)
    for symbol, asset in sorted(by_symbol.items(), key=_dollars_first):
        try:
            rule = _rule(symbol, asset, known)
        except VenueError as error:
            left_out.append(f"{symbol}: {error}")
            continue
        if ticker_of(symbol) in rules:
            doubles.append(symbol)
        else:
            rules[ticker_of(symbol)] = rule
    if not rules:
        raise VenueError(f"the answer has no usable asset among {len(assets)}; nothing was written")
    if doubles:
        left_out.append(f"{', '.join(doubles)}: a dollar pair of a coin that has its rule from another dollar pair")
    return replace(known, rules=rules, as_of=as_of, source=source), [*left_out, *strange]


def _by_symbol(assets: Sequence[Any]) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """Assets by their symbol, and one line for each thing that is no asset with a coin's name."""
    found: dict[str, Mapping[str, Any]] = {}
    strange: list[str] = []
    for asset in assets:
        symbol = asset.get("symbol") if isinstance(asset, Mapping) else None
        if isinstance(symbol, str) and len(symbol) <= LONGEST_SYMBOL and _is_name(symbol):
            found[symbol] = asset
        else:
            strange.append(f"{ascii(asset if symbol is None else symbol)[:LONGEST_SYMBOL]}: is not the name of a coin")
    return found, strange


def _is_name(symbol: str) -> bool:
    return known_pair(symbol) is not None


def _dollars_first(item: tuple[str, Any]) -> tuple[str, int]:
    """Within a coin the plain dollar pair comes first, then the stablecoins in order of preference."""
    quote = split_symbol(item[0])[1]
    return ticker_of(item[0]), DOLLARS.index(quote) if quote in DOLLARS else 0


def _rule(symbol: str, asset: Mapping[str, Any], known: Venue) -> OrderRule:
    if asset.get("class", "crypto") != "crypto":
        raise VenueError("is not crypto")
    if asset.get("status") != "active" or asset.get("tradable") is not True:
        raise VenueError("is not active and tradable")
    sizes = {ours: _size(asset, theirs) for ours, theirs in SIZES.items()}
    if sizes["min_order_qty"] is None or sizes["qty_increment"] is None:
        raise VenueError(f"has no {SIZES['min_order_qty']} or no {SIZES['qty_increment']}")
    notional = known.default_rule.min_order_notional if currency_of(symbol) == "USD" else 0.0
    return OrderRule(sizes["min_order_qty"], sizes["qty_increment"], notional, sizes["price_increment"])


def _size(asset: Mapping[str, Any], name: str) -> float | None:
    value = asset.get(name)
    if value is None:
        return None
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise VenueError(f"its {name} is no number")
