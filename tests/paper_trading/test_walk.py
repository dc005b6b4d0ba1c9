"""A walk of faults of 500 steps; `scripts/run_tests.sh --trading-walk` walks 10 000 from another seed each time."""

from __future__ import annotations

from tests.support.alpaca_stand_in import StandIn
from tests.support.trading_walk import Walk, walk

SEED, N_STEPS = 20261130, 500


def test_after_a_walk_of_faults_the_books_are_the_venues():
    with StandIn() as server:
        walk(server, N_STEPS, SEED)
    assert Walk.n_steps >= N_STEPS
    assert Walk.n_orders > 100
    assert Walk.n_crashes > 5
