"""Venue rules of a study's environments, the same in training, validation and testing.

Every order of the simulator is a market order, so it pays the taker rate. The fee tier is an assumption that is fixed
for the whole study. It does not depend on the account's own volume (see "Fees" in data/README.md).
"""

from __future__ import annotations

from typing import Any

from market.dataset import Dataset
from train.records.stored import PolicyOrigin, VenueTerms

LIQUIDITY = "taker"


def venue_env(dataset: Dataset, volume_30d: float | None, rules: str = "standard") -> dict[str, Any]:
    """Return the env_params that the venue sets.

    Args:
        dataset: dataset with its venue.
        volume_30d: assumed trading volume of the account over 30 days, in USD. None means not given and counts as 0.
        rules: rule set of the environments. Host rule sets keep their own minimum order, and keep their own fee unless
            the volume is given.
    """
    fee = {"fee_rate": dataset.venue.fee_rate(volume_30d or 0.0, LIQUIDITY)}
    if rules != "standard":
        return {} if volume_30d is None else fee
    return fee | {"min_order_notional": dataset.venue.order_rules(dataset.tickers).min_order_notional}


def venue_terms(dataset: Dataset, volume_30d: float | None) -> VenueTerms:
    """Return the record of the venue's rules that studies, trials and policies store."""
    venue = dataset.venue
    return VenueTerms(
        name=venue.name,
        volume_30d=volume_30d or 0.0,
        order_rules_as_of=venue.as_of,
        order_rules_source=venue.source,
        fees_as_of=venue.fees_as_of,
    )


def policy_origin(dataset: Dataset, **facts: Any) -> PolicyOrigin:
    """Return the origin that a policy trained on these bars stores. `facts` are the remaining fields."""
    return PolicyOrigin(
        data_sha256=dataset.sha256,
        data_source=dataset.source,
        synthetic=dataset.synthetic,
        tickers=tuple(dataset.tickers),
        feature_names=tuple(dataset.feature_names),
        bar_seconds=dataset.bar_seconds,
        **facts,
    )
