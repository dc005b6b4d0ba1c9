"""Mutants of the section "Training and files"."""

from tests.mutants.mutant import Mutant

CHECKPOINT, RETRY = "tests/train/test_checkpoint.py", "tests/study/test_retry.py"
MAKE_FOLDER = "    path.parent.mkdir(parents=True, exist_ok=True)\n"
UNPICKLE = """        try:
            with path.open("rb") as plain:
                torch.load(plain, weights_only=False)
        except Exception:
            pass
"""

MUTANTS = (
    Mutant(
        f"{CHECKPOINT}::test_a_damaged_checkpoint_is_refused_by_name_and_the_run_begins_anew",
        "the safetensors error for a damaged file is not caught",
        "train/checkpoint.py",
        "except (SafetensorError, OSError) as error:",
        "except OSError as error:",
    ),
    Mutant(
        f"{CHECKPOINT}::test_every_flipped_bit_is_found",
        "the hash covers only the first 64 bytes of each tensor",
        "train/checkpoint.py",
        "digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())",
        "digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()[:64])",
    ),
    Mutant(
        f"{CHECKPOINT}::test_another_kind_of_safetensors_file_is_refused",
        "a file without our header is treated like a file with an empty header",
        "train/checkpoint.py",
        "text = (file.metadata() or {}).get(FORMAT)",
        'text = (file.metadata() or {}).get(FORMAT, "{}")',
    ),
    Mutant(
        f"{CHECKPOINT}::test_the_checkpoint_of_another_run_is_refused_by_what_differs",
        "the identity of the run is not compared",
        "train/checkpoint.py",
        "    if different is not None:\n",
        "    if False:\n",
    ),
    Mutant(
        f"{CHECKPOINT}::test_other_data_code_or_torch_is_another_run",
        "code and torch version are not part of the run's identity",
        "train/run.py",
        '"code_sha256": trial_code_sha256(), "torch": torch.__version__,',
        "",
    ),
    Mutant(
        f"{CHECKPOINT}::test_a_code_bearing_file_is_refused_and_its_code_does_not_run",
        "a checkpoint that is not a safetensors file is unpickled",
        "train/checkpoint.py",
        '        raise CheckpointError(f"{path} is not a complete checkpoint',
        f'{UNPICKLE}        raise CheckpointError(f"{{path}} is not a complete checkpoint',
    ),
    Mutant(
        "tests/agents/test_policy_file.py::test_code_in_a_file_never_runs",
        "a policy file that is not a safetensors file is unpickled",
        "drl_agents/policy_file.py",
        "        reason = str(error).splitlines()[0]\n",
        f"{UNPICKLE}        reason = str(error).splitlines()[0]\n",
    ),
    Mutant(
        f"{RETRY}::test_a_damaged_checkpoint_of_a_trial_is_refused_and_its_split_begins_anew",
        "an unusable checkpoint makes the split fail",
        "train/checkpoint.py",
        'log.warning("%s; the checkpoint is ignored", error)',
        "raise",
    ),
    Mutant(
        f"{CHECKPOINT}::test_a_kill_between_any_two_writes_leaves_the_old_file_or_the_new_one",
        "the file is written in place with Path.write_bytes",
        "train/checkpoint.py",
        "    write_atomically(path, safetensors_bytes(",
        f"{MAKE_FOLDER}    path.write_bytes(safetensors_bytes(",
    ),
    Mutant(
        f"{CHECKPOINT}::test_a_kill_between_any_two_writes_leaves_the_old_file_or_the_new_one",
        "the file is written by safetensors' own writer, whose temporary files are never deleted",
        "train/checkpoint.py",
        "    write_atomically(path, safetensors_bytes(tensors, {FORMAT: json.dumps(header, sort_keys=True)}))",
        f"{MAKE_FOLDER}    import safetensors.torch\n"
        "    metadata = {FORMAT: json.dumps(header, sort_keys=True)}\n"
        "    safetensors.torch.save_file(dict(tensors), path, metadata)",
    ),
    Mutant(
        "tests/records/test_results.py::test_a_kill_between_any_two_writes_leaves_the_old_result_or_the_new_one",
        "the file is written in place with Path.write_bytes",
        "train/records/record_files.py",
        "    write_whole(path, codec.encode(content), overwrites)",
        f"{MAKE_FOLDER}    path.write_bytes(codec.encode(content))",
    ),
    Mutant(
        "tests/records/test_results.py::test_a_kill_between_any_two_writes_leaves_the_old_result_or_the_new_one",
        "the file is written in place with os.open and os.write",
        "train/records/record_files.py",
        "    write_whole(path, codec.encode(content), overwrites)",
        f"{MAKE_FOLDER}    import os\n"
        "    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)\n"
        "    os.write(handle, codec.encode(content))\n"
        "    os.close(handle)",
    ),
    Mutant(
        "tests/agents/test_policy_file.py::test_a_kill_between_any_two_writes_leaves_the_old_policy_or_the_new_one",
        "the file is written in place with Path.write_bytes",
        "drl_agents/policy_file.py",
        "    write_atomically(path, safetensors_bytes(",
        f"{MAKE_FOLDER}    path.write_bytes(safetensors_bytes(",
    ),
    Mutant(
        "tests/runner/test_faults.py::test_studies_of_one_name_and_equal_trial_numbers_never_touch_each_others_files",
        "a folder is used even if it belongs to a different study",
        "train/records/results.py",
        "        if _is_owned(folder / OWNER_FILE, about.study, about.uuid):",
        "        if True:",
    ),
    Mutant(
        f"{RETRY}::test_a_split_begins_with_fresh_weights",
        "all runs in a process share one agent",
        "train/run.py",
        "    agent = agent_class(settings.net_dims, full_dim, env.action_dim, gpu_id=settings.gpu_id, args=args)",
        '    agent = vars(build_agent).setdefault("kept", agent_class(\n'
        "        settings.net_dims, full_dim, env.action_dim, gpu_id=settings.gpu_id, args=args))",
    ),
    Mutant(
        "tests/runner/test_faults.py::test_a_trial_of_nan_infinite_or_constant_rewards_fails_and_is_never_best",
        "rewards are not checked for NaN and infinity",
        "train/run.py",
        "        if not math.isfinite(value):\n",
        "        if False:\n",
    ),
    Mutant(
        "tests/runner/test_faults.py::test_a_trial_of_nan_infinite_or_constant_rewards_fails_and_is_never_best",
        "constant rewards are accepted",
        "train/study/split.py",
        "    if not result.rewards_vary:\n",
        "    if False:\n",
    ),
    Mutant(
        "tests/runner/test_lost_nothing.py::test_a_value_that_is_no_number_is_never_best",
        "a trial's value is reported without a check",
        "train/runner/worker.py",
        "    if not math.isfinite(value):",
        "    if False:",
    ),
    Mutant(
        "tests/runner/test_worker.py::test_a_failed_split_fails_its_trial_with_the_reason_and_the_study_goes_on",
        "a split makes its trial fail only with an OSError",
        "train/study/objective.py",
        "        except SPLIT_ERRORS as error:",
        "        except OSError as error:",
    ),
    Mutant(
        f"{RETRY}::test_memory_that_is_really_short_halves_the_environments",
        "a split that runs out of memory fails immediately",
        "train/study/objective.py",
        "        if isinstance(result, Failure) and result.is_out_of_memory and n_envs > 1:",
        "        if False:",
    ),
    Mutant(
        f"{RETRY}::test_out_of_memory_twice_fails_the_trial_with_its_cause_and_the_next_one_has_all_environments",
        "the number of environments is halved repeatedly",
        "train/study/objective.py",
        "        if isinstance(result, Failure) and result.is_out_of_memory and n_envs > 1:",
        '        while isinstance(result, Failure) and result.is_out_of_memory and settings.train["n_envs"] > 1:',
    ),
    Mutant(
        "tests/runner/test_faults.py::test_a_disk_of_results_that_is_full_stops_the_run_after_five_equal_failures",
        "identical failures are limited like all other failures, of which 20 are allowed",
        "train/runner/worker.py",
        "SAME_FAILURES_ALLOWED = 5 ",
        "SAME_FAILURES_ALLOWED = 50 ",
    ),
    Mutant(
        "tests/records/test_results.py::test_studies_of_one_name_that_start_at_one_moment_get_a_folder_each",
        "the folder is created before its owner file is written",
        "train/records/results.py",
        "            unfinished.rename(folder)\n",
        "            folder.mkdir(exist_ok=True)\n            (unfinished / OWNER_FILE).replace(folder / OWNER_FILE)\n",
    ),
    Mutant(
        "tests/records/test_results.py::test_writers_with_one_pid_do_not_mix_their_content",
        "the name of a temporary file contains only the writer's pid",
        "market/files.py",
        "{secrets.token_hex(4)}",
        "{os.getpid():08x}",
    ),
    Mutant(
        "tests/records/test_results.py::test_files_are_as_private_as_the_umask_says",
        "files are readable by everybody",
        "market/files.py",
        "            _keep_private(file, path)\n",
        "            os.fchmod(file.fileno(), 0o644)\n",
    ),
    Mutant(
        "tests/records/test_results.py::test_a_private_file_stays_private_when_it_is_written_again",
        "the permissions of the previous file are not kept",
        "market/files.py",
        "            _keep_private(file, path)\n",
        "",
    ),
)
