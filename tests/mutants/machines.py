"""Mutants of the code behind several machines: restored databases, clocks, and the artifact store."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

RESTORED = "tests/store/test_restored.py"
STORE = "tests/store/test_artifact_store.py"
SHARED = "tests/runner/test_shared_files.py"
REACHES = f"{RESTORED}::test_a_worker_whose_server_is_restored_from_an_earlier_copy_reaches_the_target"
NOT_WRITTEN = f"{RESTORED}::test_a_trial_that_is_lost_is_not_written_into_another_one_with_its_id"
CLOCK = f"{RESTORED}::test_the_clock_of_another_machine_neither_hastens_nor_delays_a_retry"

MUTANTS = (
    Mutant(
        REACHES,
        "Optuna's cache is kept after a reconnection",
        "train/store/server_storage.py",
        "    study._storage = get_storage(storage)\n",
        "",
    ),
    Mutant(
        REACHES,
        "a lost trial ends the run",
        "train/runner/worker.py",
        "        except TrialLostError:",
        "        except ZeroDivisionError:",
    ),
    Mutant(
        REACHES,
        "a restored trial that this process no longer runs is treated as running",
        "train/store/abandoned.py",
        "    return is_own or not is_running",
        "    return not is_running",
    ),
    Mutant(
        NOT_WRITTEN,
        "attributes are written even if a different worker created the trial",
        "train/store/server_storage.py",
        "        if token := self.tokens.get(trial_id):",
        "        if (token := self.tokens.get(trial_id)) and not token:",
    ),
    Mutant(
        NOT_WRITTEN,
        "a trial is read even if a different worker created it",
        "train/store/server_storage.py",
        "        if token and not any(",
        "        if not trial_id and not any(",
    ),
    Mutant(
        f"{RESTORED}::test_the_heartbeat_of_a_lost_trial_ends_without_a_word",
        "a heartbeat for a trial that no longer exists is retried",
        "train/store/heartbeat.py",
        "            except IntegrityError:",
        "            except ZeroDivisionError:",
    ),
    Mutant(
        CLOCK,
        "times stored by a remote machine are compared with the local clock",
        "train/store/abandoned.py",
        "    if not isinstance(storage, ServerStorage):",
        "    if storage:",
    ),
    Mutant(
        f"{RESTORED}::test_a_trainer_with_other_code_is_refused_while_another_one_runs",
        "the code hashes of other processes are not compared",
        "train/store/abandoned.py",
        '        if worker is None or worker.code in ("", ours) or',
        "        if worker is None or worker.code or",
    ),
    Mutant(
        f"{RESTORED}::test_opening_a_study_costs_few_round_trips",
        "a process opens a new database connection for each use",
        "train/store/database.py",
        "from functools import cache\n",
        "from functools import lru_cache\n\ncache = lru_cache(maxsize=0)\n",
    ),
    Mutant(
        f"{SHARED}::test_a_copy_of_another_machines_file_that_is_not_the_databases_is_fetched_again",
        "local copies are not compared with the database",
        "train/store/artifact_files.py",
        "        if path.exists() and file_sha256(path) != digest:",
        "        if not path.exists() and file_sha256(path) != digest:",
    ),
    Mutant(
        f"{SHARED}::test_every_machine_writes_the_same_page_but_for_its_date",
        "files of other machines are not fetched for the report",
        "train/findings/returns.py",
        "    fetch_splits(study, folder, mine, (EQUITY,))\n",
        "",
    ),
    Mutant(
        f"{SHARED}::test_a_killed_trial_goes_on_on_another_machine_from_its_split_and_its_checkpoint",
        "checkpoints are not fetched",
        "train/study/retry.py",
        "            self.artifacts.fetch(places)",
        "            places.clear()",
    ),
    Mutant(
        f"{STORE}::test_a_server_that_is_killed_in_mid_upload_is_waited_for",
        "a failed call is not repeated",
        "train/store/artifact_store.py",
        "                    troubles.append(error)",
        "                    raise",
    ),
    Mutant(
        f"{STORE}::test_a_wait_says_so_within_ten_seconds_and_ends_within_five_of_a_signal",
        "failed calls are repeated without a log line",
        "train/store/artifact_store.py",
        "        wait.pause(reason_of(troubles[0]))",
        "        time.sleep(1.0)",
    ),
    Mutant(
        f"{STORE}::test_a_program_that_only_reads_gives_up",
        "a program that only reads waits nine seconds longer",
        "train/store/artifact_store.py",
        "time.monotonic() - worked_s >= lasts_s",
        "time.monotonic() - worked_s >= lasts_s + 9.0",
    ),
    Mutant(
        f"{STORE}::test_a_file_that_was_changed_in_the_store_or_is_not_there_is_not_written",
        "files from the store are not compared with their hashes",
        "train/store/artifact_files.py",
        "        if found != digest:",
        "        if not found:",
    ),
    Mutant(
        f"{STORE}::test_wrong_keys_are_refused_at_once_and_nothing_shows_them",
        "no test object is written to the store before the first trial",
        "train/store/artifact_store.py",
        "            self.insist([self._probe], lasts_s=0.0)\n",
        "",
    ),
    Mutant(
        "tests/test_machines.py::"
        "test_trainers_survive_an_unplugged_cable_and_a_link_that_is_lost_while_a_trial_is_taken",
        "signals are not checked while a server does not answer",
        "train/store/server_connection.py",
        "        check_for_signals(GRACE_AFTER_SIGNAL_S)\n        lasts_s",
        "        lasts_s",
    ),
)
