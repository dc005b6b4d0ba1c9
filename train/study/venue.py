"""What the venue of the bars asks of every environment of a study, in training, validation and testing alike.

Every order of the simulator is a market order, so it pays the taker rate. The tier is an assumption about the account
that is fixed for the whole study and not the account's own running volume: see "Fees" in data/README.md.
"""

from __future__ import annotations

from typing import Any

from market.dataset import Dataset
from train.records.stored import PolicyOrigin, VenueTerms

LIQUIDITY = "taker"


def venue_env(dataset: Dataset, volume_30d: float | None, rules: str = "standard") -> dict[str, Any]:
    """The env_params that the venue sets.

    Args:
        dataset: carries its venue.
        volume_30d: USD the account is assumed to have traded in 30 days; None: not said, so 0.
        rules: rule set of the environments. The hosts' sets keep their own fee unless the volume is said, and their own
            smallest orders.
    """
    fee = {"fee_rate": dataset.venue.fee_rate(volume_30d or 0.0, LIQUIDITY)}
    if rules != "standard":
        return {} if volume_30d is None else fee
    return fee | {"min_order_notional": dataset.venue.order_rules(dataset.tickers).min_order_notional}


def venue_terms(dataset: Dataset, volume_30d: float | None) -> VenueTerms:
    """The same for the reader of a study, a trial or a policy: whose rules, of when, at which volume."""
    venue = dataset.venue
    return VenueTerms(
        name=venue.name,
        volume_30d=volume_30d or 0.0,
        order_rules_as_of=venue.as_of,
        order_rules_source=venue.source,
        fees_as_of=venue.fees_as_of,
    )


def policy_origin(dataset: Dataset, **facts: Any) -> PolicyOrigin:
    """What a policy trained on these bars says of where it comes from; `facts` are the other fields."""
    return PolicyOrigin(
        data_sha256=dataset.sha256,
        data_source=dataset.source,
        synthetic=dataset.synthetic,
        tickers=tuple(dataset.tickers),
        feature_names=tuple(dataset.feature_names),
        bar_seconds=dataset.bar_seconds,
        **facts,
    )
