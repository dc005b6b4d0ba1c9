"""Mutants of the section "Command line and launcher"."""

from tests.mutants.mutant import Mutant

CLI, LAUNCHER, FAULTS = "tests/runner/test_cli.py", "tests/scripts/test_launcher.py", "tests/runner/test_faults.py"
EARLIER, FIRST_USE = "tests/study/test_earlier_study.py", "tests/environment/test_first_use.py"
START, PROCESS = "start_vectorized_training.sh", "scripts/setup/process.sh"

MUTANTS = (
    Mutant(
        f"{CLI}::test_a_bad_value_is_refused_by_name_before_anything_is_written",
        "numbers are not held against their least values",
        "train/runner/request.py",
        "            if value is not None and value < least:",
        "            if False:",
    ),
    Mutant(
        f"{CLI}::test_a_refusal_is_one_line_and_quick",
        "a refusal comes with its traceback",
        "barwise/arguments.py",
        '        say(program, f"{text}; {after_a_fault}" if',
        '        __import__("traceback").print_exc()\n        say(program, f"{text}; {after_a_fault}" if',
    ),
    Mutant(
        f"{EARLIER}::test_a_study_of_c6a6d1f_resumes_by_its_own_command_with_its_own_agent_and_ranges",
        "settings that an old identity does not have count as different",
        "train/runner/session.py",
        "absent = absent_values(own) if own is not None else None",
        "absent = None",
    ),
    Mutant(
        f"{EARLIER}::test_a_study_of_c6a6d1f_refuses_what_is_not_its_own",
        "another --agent is passed over without a word",
        "train/runner/preparation.py",
        "    if asked is not None:\n        raise StudyError(",
        "    if False:\n        raise StudyError(",
    ),
    Mutant(
        "tests/study/test_eligibility.py::"
        "test_a_study_whose_policies_stay_in_cash_ends_with_a_finding_and_a_code_of_its_own",
        "trials that stayed in cash are not counted",
        "train/study/eligibility.py",
        "    return 2 * sum(stayed_in_cash(t) for t in finished) >= len(finished)",
        "    return False",
    ),
    Mutant(
        f"{CLI}::test_another_search_space_on_an_old_study_is_refused",
        "a study is opened whatever its identity",
        "train/store/database.py",
        "    if what:\n",
        "    if False:\n",
    ),
    Mutant(
        f"{FAULTS}::test_a_results_folder_that_is_a_file_is_refused",
        "a file passes for a folder of results",
        "train/records/results.py",
        "    if not nearest.is_dir():",
        "    if False:",
    ),
    Mutant(
        f"{FAULTS}::test_a_folder_that_cannot_be_written_is_refused_before_a_study_begins",
        "whether the folder can be written is not asked",
        "train/records/results.py",
        "    if not os.access(nearest, os.W_OK | os.X_OK):",
        "    if False:",
    ),
    Mutant(
        f"{CLI}::test_one_environment_uses_the_scalar_class_and_relative_paths_start_at_a_folder_with_blanks",
        "relative paths start at the repository",
        "barwise/arguments.py",
        "return None if path is None else Path.cwd() / path",
        "return None if path is None else home() / path",
    ),
    Mutant(
        f"{LAUNCHER}::test_a_relative_data_dir_starts_at_the_callers_folder",
        "a relative --data-dir starts at the repository",
        START,
        'else DATA_DIR="$CALLER_DIR/$2"; fi',
        'else DATA_DIR="$REPO/$2"; fi',
    ),
    Mutant(
        f"{LAUNCHER}::test_a_second_start_is_refused_and_changes_nothing",
        "training that runs already is mentioned only",
        START,
        '        die "training runs already (pid $pid)',
        '        say "training runs already (pid $pid)',
    ),
    Mutant(
        f"{LAUNCHER}::test_of_two_simultaneous_starts_exactly_one_trains",
        "no lock is taken",
        START,
        'flock -n 9 || die "another start is at work',
        'true || die "another start is at work',
    ),
    Mutant(
        f"{LAUNCHER}::test_a_trainer_that_dies_at_once_shows_its_last_lines",
        "the log's last lines are not shown",
        START,
        '    log_since "$2" | tail -n 20\n',
        "",
    ),
    Mutant(
        f"{LAUNCHER}::test_stop_ends_our_own_process_and_a_decoy_survives",
        "--stop ends every process with the trainer's path in its command line",
        PROCESS,
        '    run kill -TERM "$pid"\n',
        '    for pid in /proc/[0-9]*; do if grep -qzxF -- "$TRAINER" "$pid/cmdline"; then kill "${pid##*/}"; fi; done\n'
        '    pid="$(running_pid)" || true\n',
    ),
    Mutant(
        f"{LAUNCHER}::test_a_pid_file_with_a_reused_pid_leads_to_no_kill",
        "a process is known by its number alone",
        PROCESS,
        '    [[ "$(process_start_ticks "$pid")" == "$ticks" ]]',
        "    true",
    ),
    Mutant(
        f"{CLI}::test_a_stopped_study_leaves_no_running_trial_and_says_how_to_go_on",
        "an interrupted trial is not queued again",
        "train/runner/worker.py",
        "            queue_retry(study, _trial(study, trial.number), was_killed=False)\n",
        "",
    ),
    Mutant(
        f"{CLI}::test_a_stopped_study_leaves_no_running_trial_and_says_how_to_go_on",
        "an interrupted trial is not told to have failed",
        "train/runner/worker.py",
        "        except Interrupted:\n            tell(study, trial.number, TrialEnd(TrialState.FAIL))\n",
        "        except Interrupted:\n",
    ),
    Mutant(
        "tests/runner/test_crew.py::test_a_signal_to_the_parent_ends_all_and_leaves_no_running_trial",
        "the signal is not handed on to the workers",
        "train/runner/crew.py",
        "            worker.process.send_signal(number)\n",
        "            pass\n",
    ),
    Mutant(
        "tests/runner/test_crew.py::test_a_signal_to_the_parent_ends_all_and_leaves_no_running_trial",
        "workers do not notice that their parent was killed",
        "train/worker_program.py",
        "    os.kill(os.getpid(), signal.SIGTERM)\n",
        "    pass\n",
    ),
    Mutant(
        f"{FAULTS}::test_a_terminal_that_is_closed_ends_the_run_as_ctrl_c_does",
        "SIGHUP is not handled",
        "train/study/interruption.py",
        "SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)",
        "SIGNALS = (signal.SIGINT, signal.SIGTERM)",
    ),
    Mutant(
        f"{LAUNCHER}::test_a_start_trains_in_the_background_and_says_how_to_watch_query_and_stop",
        "the trainer stays in the terminal's session",
        START,
        '        exec setsid "${COMMAND[@]}"',
        '        exec "${COMMAND[@]}"',
    ),
    Mutant(
        f"{LAUNCHER}::test_a_log_folder_that_cannot_be_written_is_a_one_line_error_and_starts_nothing",
        "whether the log folder can be written is not tried",
        START,
        '{ : >>"$LOCK_FILE"; } 2>/dev/null || die',
        "true || die",
    ),
    Mutant(
        f"{LAUNCHER}::test_a_full_disk_at_the_log_is_a_one_line_error",
        "a log that cannot be written is mentioned only",
        START,
        '        die "cannot write $LOG (',
        '        say "cannot write $LOG (',
    ),
    Mutant(
        f"{FAULTS}::test_a_disk_that_is_full_at_the_log_costs_lines_and_not_the_study",
        "a line that cannot be written prints logging's own traceback",
        "train/runner/crew.py",
        "        if not isinstance(error, OSError):\n",
        "        if True:\n",
    ),
    Mutant(
        "tests/train/test_checkpoint.py::test_a_full_disk_costs_the_checkpoint_and_not_the_run",
        "a checkpoint that cannot be written ends the run",
        "train/checkpoint.py",
        "        except (OSError, MemoryError) as error:",
        "        except MemoryError as error:",
    ),
    Mutant(
        f"{FIRST_USE}::test_a_step_that_differs_is_never_used_and_the_field_and_step_are_named",
        "a difference from the plain step is passed over",
        "environment_Alpaca_kernels/first_use.py",
        "        if compared.step is not None:",
        "        if False:",
    ),
    Mutant(
        "tests/environment/test_gpu_targets.py::"
        "test_a_card_that_triton_does_not_compile_for_gets_the_plain_step_and_the_reason",
        "what the compiler raises is passed on",
        "environment_Alpaca_kernels/first_use.py",
        "        except errors as error:\n",
        "        except MemoryError as error:\n",
    ),
    Mutant(
        f"{FIRST_USE}::test_a_damaged_file_is_ignored_and_written_again",
        "what reading a damaged outcome raises is passed on",
        "environment_Alpaca_kernels/outcomes.py",
        "    except (OSError, ValueError, KeyError, TypeError, RecursionError):\n",
        "    except OSError:\n",
    ),
    Mutant(
        "tests/train/test_step_is_kept.py::"
        "test_a_run_whose_native_step_is_gone_goes_on_with_the_plain_one_and_says_so",
        "that another step takes over is not said",
        "train/run.py",
        'log.warning("the checkpoint was made with the %s step',
        'log.debug("the checkpoint was made with the %s step',
    ),
    Mutant(
        "tests/study/test_retry.py::"
        "test_a_disk_that_is_full_for_a_split_fails_its_trial_with_the_cause_and_not_the_next",
        "an OSError of a split ends the study",
        "train/study/objective.py",
        "RuntimeError, MemoryError, OSError)",
        "RuntimeError, MemoryError)",
    ),
    Mutant(
        f"{FAULTS}::test_a_disk_of_the_database_that_is_full_is_waited_for",
        "a full disk counts as an error that does not pass",
        "train/store/retrying.py",
        '"disk is full", ',
        "",
    ),
    Mutant(
        "tests/runner/test_lost_nothing.py::test_a_disk_that_is_full_when_a_trial_ends_is_waited_for",
        "the end of a trial is told once only",
        "train/store/retrying.py",
        "return self.insist(lambda: super(PatientStorage, self).set_trial_state_values(trial_id, state, values))",
        "return super().set_trial_state_values(trial_id, state, values)",
    ),
)
