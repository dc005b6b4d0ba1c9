"""Mutants of the section "Study storage"."""

from tests.mutants.mutant import Mutant

LOST, WORKER, CLI = "tests/runner/test_lost_nothing.py", "tests/runner/test_worker.py", "tests/runner/test_cli.py"
IDENTITY, STATUS = "train/store/worker_identity.py", "tests/store/test_worker_status.py"
HANDOVER, WEB = "tests/deploy/test_handover.py", "tests/scripts/test_web_dashboard.py"
NO_VERDICT = (
    "tests/report/test_collect.py::test_without_the_other_trials_as_they_were_scored_there_is_no_verdict"
)

MUTANTS = (
    Mutant(
        f"{CLI}::test_a_study_killed_three_times_loses_nothing_and_ends_at_its_target",
        "no worker of this machine counts as dead",
        "train/store/abandoned.py",
        "    return not is_running(worker.pid, worker.started, worker.started_ticks)",
        "    return False",
    ),
    Mutant(
        f"{LOST}::test_a_value_that_was_kept_and_not_told_is_told_by_the_next_start",
        "kept values are not looked for",
        "train/store/abandoned.py",
        "end = kept(study_folder, trial) if study_folder else None",
        "end = None",
    ),
    Mutant(
        f"{LOST}::test_workers_together_reach_the_target_exactly_though_one_is_killed_and_others_join",
        "trials that run are not counted",
        "train/runner/worker.py",
        "(*FINISHED, TrialState.RUNNING) for t in trials",
        "FINISHED for t in trials",
    ),
    Mutant(
        f"{CLI}::test_three_workers_together_stop_exactly_at_the_target",
        "trials that run are not counted",
        "train/runner/worker.py",
        "(*FINISHED, TrialState.RUNNING) for t in trials",
        "FINISHED for t in trials",
    ),
    Mutant(
        f"{LOST}::test_a_database_locked_when_a_trial_ends_is_waited_for",
        "a locked database counts as an error that does not pass",
        "train/store/retrying.py",
        'SQLITE_PASSES = ("locked", ',
        "SQLITE_PASSES = (",
    ),
    Mutant(
        f"{LOST}::test_a_server_restarted_loses_nothing",
        "a server that went away counts as an error that does not pass",
        "train/store/retrying.py",
        "return cause.connection_invalidated or isinstance(cause, OperationalError | InterfaceError)",
        "return False",
    ),
    Mutant(
        f"{LOST}::test_a_worker_that_starts_while_the_server_does_waits_for_it",
        "a worker connects once only",
        "train/store/lock.py",
        "    insist(lambda: _connect_once(url), shown_url(url), gives_up)",
        "    _connect_once(url)",
    ),
    Mutant(
        f"{WORKER}::test_settings_are_queued_though_a_kill_came_between_failing_and_queueing",
        "lost retries are not looked for",
        "train/runner/worker.py",
        "        queue_lost_retries(study)\n",
        "",
    ),
    Mutant(
        f"{WORKER}::test_a_trial_that_is_queued_outside_the_space_fails_and_the_next_one_runs",
        "queued settings are not held against the search space",
        "train/study/objective.py",
        "        self._refuse_misfits(trial)\n",
        "",
    ),
    Mutant(
        f"{WORKER}::test_queued_trials_share_what_they_were_queued_with_and_nothing_else",
        "every trial samples from the study's seed",
        "train/store/sampler.py",
        "seed=(self._seed * 1_000_003 + trial.number) % 2**32",
        "seed=self._seed",
    ),
    Mutant(
        "tests/watch/test_clocks.py::test_pace_and_time_left_do_not_depend_on_zones",
        "stored times are taken for local ones",
        "train/watch/snapshot.py",
        "return value.replace(tzinfo=UTC) if value",
        "return value.astimezone() if value",
    ),
    Mutant(
        f"{STATUS}::test_a_process_is_told_from_a_later_one_with_its_number",
        "a process is known by the wall time of its start",
        IDENTITY,
        "            is_same = ticks == started_ticks",
        "            is_same = abs(process.create_time() - (started or 0.0)) <= 1.0",
    ),
    Mutant(
        f"{WORKER}::test_a_trial_whose_workers_number_belongs_to_a_later_process_is_failed_at_once",
        "a process is known by its number alone",
        IDENTITY,
        "            is_same = ticks == started_ticks",
        "            is_same = True",
    ),
    Mutant(
        "tests/store/test_address.py::test_no_form_of_a_password_is_shown",
        "a server is shown with its password",
        "train/store/address.py",
        "render_as_string(hide_password=True)",
        "render_as_string(hide_password=False)",
    ),
    Mutant(
        NO_VERDICT,
        "trials whose files are gone are left out",
        "train/findings/returns.py",
        '        raise StudyError(f"{errors[first]}{more}")',
        "        mine = [trial for trial in mine if trial.number not in errors]",
    ),
    Mutant(
        NO_VERDICT,
        "the hash of a trial's curves is not compared",
        "train/findings/returns.py",
        "        check_seal(folder, trial, k, EQUITY)\n",
        "",
    ),
    Mutant(
        "tests/findings/test_stored_trial.py::test_settings_that_were_changed_are_refused",
        "the hash of settings.json is not compared",
        "train/findings/stored_trial.py",
        "    check_seal(study_folder, trial, 0, SETTINGS)\n",
        "",
    ),
    Mutant(
        "tests/findings/test_holdout.py::test_a_look_that_was_cut_off_is_counted_and_is_finished_for_the_same_trial_only",
        "a look is written down when it is over",
        "train/findings/holdout.py",
        "        _begin(study, Begun(uuid_in(study.user_attrs), rows.about, rows.dataset.synthetic, trial_number, "
        "tuple(hashes)))\n",
        "",
    ),
    Mutant(
        f"{HANDOVER}::test_a_rollback_while_a_candidate_is_judged_leaves_it_undecided",
        "a refusal stands whatever was deployed meanwhile",
        "train/deploy/judge.py",
        "        if seen and _has_changed(deployments, seen.present):",
        "        if False:",
    ),
    Mutant(
        f"{HANDOVER}::test_a_deployment_whose_folder_is_gone_is_replaced",
        "where `current` leads to is read though it is not there",
        "train/deploy/folder.py",
        "        name = self.deployed_name()\n",
        "        name = self.current_name()\n",
    ),
    Mutant(
        f"{WEB}::test_a_foreign_page_can_neither_read_nor_delete",
        "the Host of a request is not checked",
        "barwise/commands/web_dashboard.py",
        '        if is_local and origin in (None, f"http://{host}"):',
        '        if origin in (None, f"http://{host}"):',
    ),
    Mutant(
        f"{WEB}::test_a_foreign_page_can_neither_read_nor_delete",
        "the Origin of a request is not checked",
        "barwise/commands/web_dashboard.py",
        '        if is_local and origin in (None, f"http://{host}"):',
        "        if is_local:",
    ),
    Mutant(
        "tests/watch/test_snapshot.py::test_nothing_in_a_study_is_obeyed_by_the_terminal",
        "texts are shown as they are stored",
        "train/watch/snapshot.py",
        "    return plain_text(value) if isinstance(value, str) else value",
        "    return value",
    ),
    Mutant(
        f"{WORKER}::test_a_trial_that_its_user_interrupts_is_always_tried_again",
        "an interruption counts like a kill",
        "train/store/abandoned.py",
        "kills = trial.user_attrs.get(KILLS, 0) + was_killed",
        "kills = trial.user_attrs.get(KILLS, 0) + 1",
    ),
    Mutant(
        f"{LOST}::test_a_worker_elsewhere_lives_while_its_heart_beats_and_is_replaced_when_it_stops",
        "a worker of another machine is looked up among our processes",
        "train/store/abandoned.py",
        "    if not is_this_machine(worker.host, worker.machine):",
        "    if False:",
    ),
    Mutant(
        "tests/runner/test_faults.py::test_a_damaged_database_of_a_study_is_refused_by_name_and_left_as_it_is",
        "the first bytes of a database are not looked at",
        "train/store/database.py",
        "        if head != SQLITE_HEADER:",
        "        if False:",
    ),
)
