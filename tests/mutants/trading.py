"""Mutants of the section "The paper trader"."""

from tests.mutants.mutant import Mutant

FAULTS, REPLAY = "tests/paper_trading/test_faults.py", "tests/paper_trading/test_replay.py"
DESK, BOOKS, LEDGER = "paper_trading/desk.py", "paper_trading/books.py", "paper_trading/ledger.py"

WRITTEN = (
    '        self.journal.append("intents", bar_s=bar_s, phase=phase, '
    "orders=[_intent_json(intent) for intent in intents])\n"
)
SENT = """\
        batch = [self._track(intent) for intent in intents]
        mids = self._mids()
        started_s = self.waited_s
        reasons = {each.intent.order_id: self._send(each) for each in batch}
"""

MUTANTS = (
    Mutant(
        f"{FAULTS}::test_an_order_that_did_not_arrive_is_not_sent_again",
        "an order that received no answer is sent again",
        DESK,
        '            each.status = "unknown"\n            return str(error)\n        return ""',
        '            each.see(self.broker.send(each.intent))\n            return str(error)\n        return ""',
    ),
    Mutant(
        f"{FAULTS}::test_an_order_whose_answer_and_look_ups_are_lost_is_found_at_the_next_bar",
        "orders with an unknown final state are not looked up at the next bar",
        DESK,
        "        for each in self.open_orders:\n            before = each.status, each.filled",
        "        for each in []:\n            before = each.status, each.filled",
    ),
    Mutant(
        f"{FAULTS}::test_every_life_of_an_order_ends_in_the_journal_as_at_the_venue",
        "late orders are not canceled",
        DESK,
        "        for each in late:\n            self._cancel(each)\n",
        "",
    ),
    Mutant(
        "tests/paper_trading/test_crash.py::test_the_process_may_end_before_any_operation",
        "intents are recorded only after their orders have been sent",
        DESK,
        WRITTEN + SENT,
        SENT + WRITTEN,
    ),
    Mutant(
        f"{FAULTS}::test_coins_from_nowhere_are_neither_sold_nor_added_to",
        "unexplained differences do not change the state",
        "paper_trading/trader.py",
        """self.change_state("REDUCING", f"the account is not explained:""",
        """str(f"the account is not explained:""",
    ),
    Mutant(
        f"{FAULTS}::test_foreign_orders_in_our_coins_are_named_and_counted_out_once",
        "foreign orders are not stored",
        BOOKS,
        "        self.theirs = dict([*self.theirs.items(), *theirs.items()][-MOST_THEIRS:])\n",
        "",
    ),
    Mutant(
        f"{FAULTS}::test_two_traders_with_one_account_both_go_to_reducing",
        "every order with our id prefix is treated as our own",
        BOOKS,
        "if each.order_id not in self.desk.known_ids and (",
        "if each.order_id not in self.desk.known_ids and not each.is_ours and (",
    ),
    Mutant(
        f"{FAULTS}::test_the_open_bar_is_never_used",
        "a bar is used before it has closed",
        "paper_trading/alpaca_venue.py",
        "            newest_close = int(self._clock.now_s()) // step * step\n            if",
        "            newest_close = int(self._clock.now_s()) // step * step + step\n            if",
    ),
    Mutant(
        f"{FAULTS}::test_a_state_outlives_a_restart_and_only_a_person_lifts_it",
        "the state is ACTIVE after every restart",
        "paper_trading/mandate.py",
        "        self.state: State = memory.state\n",
        '        self.state: State = "ACTIVE"\n',
    ),
    Mutant(
        f"{REPLAY}::test_a_replay_is_the_simulator_bit_for_bit",
        "buys are sized with less cash than is available",
        "paper_trading/traded_account.py",
        "            self._buy(plan.order, plan.price, plan.equity_at_fill)\n",
        "            self.account.cash *= 0.99\n            self._buy(plan.order, plan.price, plan.equity_at_fill)\n",
    ),
    Mutant(
        f"{REPLAY}::test_a_fall_beyond_the_limit_halts",
        "orders are sent in the HALTED state",
        "paper_trading/trader.py",
        '        return "HALTED" if self.state == "HALTED" else None\n',
        "        return None\n",
    ),
    Mutant(
        "tests/paper_trading/test_journal.py::test_a_changed_bit_is_found_wherever_it_is",
        "the checksums of journal lines are not checked",
        "paper_trading/journal.py",
        "json.loads(text) if text.endswith(ending(content)) else None",
        "json.loads(text)",
    ),
    Mutant(
        "tests/paper_trading/test_program.py::test_one_trader_an_account_and_the_kill_switch",
        "the account is not locked",
        "paper_trading/presence.py",
        "        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "        pass\n",
    ),
)
