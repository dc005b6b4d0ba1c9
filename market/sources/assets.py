"""Alpaca's order rules from its assets endpoint: `GET /v2/assets?asset_class=crypto` on the paper account.

The endpoint returns minimum orders and lot sizes. It returns neither minimum notionals nor fees, so these are copied
from the previous table. Keys are read from environment variables and sent in request headers. They are never written,
logged or quoted in a message.
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

SIZES = {  # our name -> Alpaca's name
    "min_order_qty": "min_order_size",
    "qty_increment": "min_trade_increment",
    "price_increment": "price_increment",
}
LONGEST_SYMBOL = 40
PATIENCE = Patience(read_s=20.0, retries=2)


@dataclass(frozen=True)
class Keys:
    """API keys of a paper account."""

    key_id: str = field(repr=False)
    secret: str = field(repr=False)


def keys_of(environ: Mapping[str, str]) -> Keys:
    """Return the keys in the environment variables.

    Raises:
        VenueError: the keys are missing or malformed; the message names variables, never their values.
    """
    for names in KEY_VARIABLES:
        absent = [name for name in names if not environ.get(name)]
        if len(absent) == 1:
            (present,) = set(names) - set(absent)
            raise VenueError(f"{present} is set, but {absent[0]} is not; set both")
        if absent:
            continue
        for name in names:
            if not all("!" <= letter <= "~" for letter in environ[name]):
                raise VenueError(
                    f"{name} contains spaces, line ends or other characters that are not valid in a key; copy it again"
                )
        return Keys(*(environ[name] for name in names))
    (first, second), (other, another) = KEY_VARIABLES
    raise VenueError(
        f"no API keys: set {first} and {second} (or {other} and {another}) to those of your Alpaca paper account"
    )


def fetch_assets(keys: Keys, url: str | None = None, patience: Patience = PATIENCE) -> list[Any]:
    """Download Alpaca's crypto assets.

    Args:
        keys: keys of the paper account.
        url: alternative server with the same interface, for tests.
        patience: timeouts and number of retries.

    Returns:
        The assets as sent by the server.

    Raises:
        VenueError: the server is unreachable, the keys are rejected, or the response is not a list.
    """
    from alpaca.common.exceptions import APIError
    from alpaca.trading.client import TradingClient
    from alpaca.trading.enums import AssetClass
    from alpaca.trading.requests import GetAssetsRequest

    address = url or PAPER_URL
    _check_reachable(address, patience)
    client = TradingClient(keys.key_id, keys.secret, paper=True, raw_data=True, url_override=address)
    client._retry = 0  # disable alpaca-py's retries, because the session retries
    be_patient(client._session, patience)
    try:
        answer = client.get_all_assets(GetAssetsRequest(asset_class=AssetClass.CRYPTO))
    except APIError as error:
        raise VenueError(_refusal(address, error.status_code)) from None
    except requests.JSONDecodeError:
        raise VenueError(f"{address} returned a response that is not JSON; try again later") from None
    except requests.RequestException as error:  # the error's text may contain the request
        raise VenueError(f"{address} cannot be read ({type(error).__name__}); check the network") from None
    if not isinstance(answer, list):
        raise VenueError(f"{address} returned a response that is not a list of assets; try again later")
    return answer


def _check_reachable(address: str, patience: Patience) -> None:
    try:
        check_reachable(address, patience)
    except BarsError as error:
        fault = str(error).partition(";")[0]
        raise VenueError(f"{fault}; check the network. The existing rules were not changed") from None


def _refusal(address: str, status: int | None) -> str:
    if status in (401, 403):
        return f"{address} rejected the keys ({status}); use those of the paper account, not of the live account"
    return f"{address} returned {status}; try again later"


def venue_of_assets(assets: Sequence[Any], known: Venue, as_of: str, source: str) -> tuple[Venue, list[str]]:
    """Return the venue's current rules, and one line per dropped asset.

    Args:
        assets: result of `fetch_assets`; numbers may be strings.
        known: previous table, which supplies name, default rule, minimum notional and fees.
        as_of: ISO date of the response.
        source: origin of the response.

    Raises:
        VenueError: the response has no usable asset.
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
        raise VenueError(f"none of the {len(assets)} assets in the response is usable; nothing was written")
    if doubles:
        left_out.append(f"{', '.join(doubles)}: the coin's rule comes from a different dollar pair")
    return replace(known, rules=rules, as_of=as_of, source=source), [*left_out, *strange]


def _by_symbol(assets: Sequence[Any]) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """Return assets by symbol, and one line per item that is not an asset with a coin name."""
    found: dict[str, Mapping[str, Any]] = {}
    strange: list[str] = []
    for asset in assets:
        symbol = asset.get("symbol") if isinstance(asset, Mapping) else None
        if isinstance(symbol, str) and len(symbol) <= LONGEST_SYMBOL and _is_name(symbol):
            found[symbol] = asset
        else:
            strange.append(f"{ascii(asset if symbol is None else symbol)[:LONGEST_SYMBOL]}: not the name of a coin")
    return found, strange


def _is_name(symbol: str) -> bool:
    return known_pair(symbol) is not None


def _dollars_first(item: tuple[str, Any]) -> tuple[str, int]:
    """Return a sort key: by coin, plain dollar pair first, then stablecoins in order of preference."""
    quote = split_symbol(item[0])[1]
    return ticker_of(item[0]), DOLLARS.index(quote) if quote in DOLLARS else 0


def _rule(symbol: str, asset: Mapping[str, Any], known: Venue) -> OrderRule:
    if asset.get("class", "crypto") != "crypto":
        raise VenueError("not crypto")
    if asset.get("status") != "active" or asset.get("tradable") is not True:
        raise VenueError("not active and tradable")
    sizes = {ours: _size(asset, theirs) for ours, theirs in SIZES.items()}
    if sizes["min_order_qty"] is None or sizes["qty_increment"] is None:
        raise VenueError(f"{SIZES['min_order_qty']} or {SIZES['qty_increment']} is missing")
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
    raise VenueError(f"{name} is not a number")
