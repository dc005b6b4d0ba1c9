#!/usr/bin/env bash
# Sets up the environment and the data, then trains the study cappuccino_5m_vectorized in the background.
set -euo pipefail

readonly PROGRAM="start_vectorized_training.sh"
REPO="$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
readonly REPO CALLER_DIR="$PWD"
readonly TRAINER="$REPO/scripts/training/1_optimize_unified.py" TRADER="$REPO/scripts/deployment/paper_trade.py"
readonly NO_SIGNAL_CODE=5 # the trainer's exit code for a study whose policies stayed in cash
# Twelve trials with three splits: enough for a comparison, and done in minutes.
readonly DEMONSTRATION=(--n-trials 12 --workers 2 --n-envs 2 --num-paths 2 --k-test-groups 1 --break-step 1000000
    --use-best-ranges --pruner none)
readonly TIMEFRAMES="1m 5m 15m 30m 1h 4h 12h 1d"
# Seconds; set these variables on a slow machine.
STOP_WAIT_S="${STOP_WAIT_S:-120}"
FIRST_TRIAL_WAIT_S="${FIRST_TRIAL_WAIT_S:-600}"
FIRST_BAR_WAIT_S="${FIRST_BAR_WAIT_S:-600}"

# shellcheck source=scripts/setup/messages.sh
source "$REPO/scripts/setup/messages.sh"
# shellcheck source=scripts/setup/environment.sh
source "$REPO/scripts/setup/environment.sh"
# shellcheck source=scripts/setup/data.sh
source "$REPO/scripts/setup/data.sh"
# shellcheck source=scripts/setup/process.sh
source "$REPO/scripts/setup/process.sh"
# shellcheck source=scripts/setup/trade.sh
source "$REPO/scripts/setup/trade.sh"

usage_of_training() {
    cat <<'HELP'
usage: start_vectorized_training.sh [--foreground | --status | --stop | --help] [--sample | --no-signal] [trainer flags]

Creates or reuses a Python environment, finds or creates the dataset data/5m, starts the study in the background
and returns once its first trial trains. After a stop, the same command resumes the study.
To start the paper trader instead, use --trade; see start_vectorized_training.sh --trade --help.

  --foreground  train in this terminal; Ctrl-C stops the trainer
  --status      show the trainer's state and last log lines (exit code 0: it or its setup is running, 3: neither)
  --stop        send SIGTERM to the trainer, or to an unfinished setup, and wait until it has ended
  --sample      run the demonstration on the SYNTHETIC sample market with a planted signal; nothing is downloaded
  --no-signal   run the demonstration on the same market without the signal; nothing can be learned
  --help        print this text; for the trainer's flags: python scripts/training/1_optimize_unified.py --help

All other flags are passed to the trainer and override these defaults:
  --n-trials 500 --gpu 0 (-1 without a GPU) --study-name cappuccino_5m_vectorized
  --timeframe 5m --data-dir data/5m --n-envs 12
With --timeframe X alone, the study name and the data folder change accordingly.
On a sample market, the defaults are those of the demonstration, which takes minutes on two cores:
  --n-trials 12 --workers 2 --n-envs 2 --num-paths 2 --k-test-groups 1 --break-step 1000000
  --use-best-ranges --pruner none
The verdict of the demonstration is at the end of the log and in report.html in the results folder. --sample uses
data/5m_sample and the study cappuccino_5m_sample; --no-signal uses data/5m_no_signal and cappuccino_5m_no_signal.
Use the trainer's --agent to select the agent of a new study.
Relative paths are resolved from the current directory.

Exit codes: those of the trainer if it ends immediately or runs in the foreground. Exit code 5 means that no tradable
signal was found at these costs, because the study's policies stayed in cash.

Files: log in logs/worker_vectorized.log, process id in logs/worker_vectorized.pid.
Environment variables, in seconds: FIRST_TRIAL_WAIT_S (default: 600), STOP_WAIT_S (default: 120).
HELP
}

# Selects the background process: its script, its files and the log line that shows that it works.
use_trainer() {
    WORK=training FLAG="" SCRIPT="$TRAINER" LOG="$REPO/logs/worker_vectorized.log"
    PID_FILE="$REPO/logs/worker_vectorized.pid" LOCK_FILE="$REPO/logs/worker_vectorized.lock"
    AFTER_STOP="the same command resumes the study"
    # Vectorized environments log the first pattern, the scalar environment logs the second one.
    FIRST=trial FIRST_WORDS='Using Vectorized Environments|env-steps/s' FIRST_WAIT_S="$FIRST_TRIAL_WAIT_S"
}

use_trader() {
    WORK=trading FLAG="--trade " SCRIPT="$TRADER" LOG="$REPO/logs/paper_trader.log"
    PID_FILE="$REPO/logs/paper_trader.pid" LOCK_FILE="$REPO/logs/paper_trader.lock"
    AFTER_STOP="coins and cash are unchanged; the same command starts the trader again"
    FIRST=bar FIRST_WORDS='decided on the bar of' FIRST_WAIT_S="$FIRST_BAR_WAIT_S"
}

# Sets ACTION, SAMPLE, TIMEFRAME, DATA_DIR, GPU, STUDY, STORAGE and PASSED (flags passed to the trainer).
parse_training_flags() {
    local flag value
    while (($#)); do
        flag="$1"
        shift
        case "$flag" in
            --foreground | --status | --stop) ACTION="${flag#--}" && continue ;;
            --sample | --no-signal)
                value=sample
                [[ "$flag" == --sample ]] || value=no_signal
                [[ "${SAMPLE:-$value}" == "$value" ]] || die "--sample and --no-signal cannot be combined"
                SAMPLE="$value" && continue
                ;;
            --help | -h) ACTION=help && continue ;;
            --data-dir | --timeframe | --gpu | --study-name | --study | --storage)
                (($#)) || die "$flag requires a value"
                value="$1"
                shift
                ;;
            --data-dir=* | --timeframe=* | --gpu=* | --study-name=* | --study=* | --storage=*)
                value="${flag#*=}"
                flag="${flag%%=*}"
                ;;
            *) PASSED+=("$flag") && continue ;;
        esac
        keep_value "$flag" "$value"
    done
}

keep_value() {
    case "$1" in
        --data-dir) if [[ "$2" == /* ]]; then DATA_DIR="$2"; else DATA_DIR="$CALLER_DIR/$2"; fi ;;
        --timeframe) TIMEFRAME="$2" ;;
        --gpu) GPU="$2" ;;
        --study-name | --study) STUDY="$2" ;;
        --storage) STORAGE="$(absolute_storage "$2")" ;;
    esac
}

# Resolves a relative SQLite path from the caller's folder, like every other relative path.
absolute_storage() {
    case "$1" in
        sqlite:////*) printf '%s\n' "$1" ;;
        sqlite:///*) printf 'sqlite:///%s/%s\n' "$CALLER_DIR" "${1#sqlite:///}" ;;
        *) printf '%s\n' "$1" ;;
    esac
}

# Only one start at a time. The kernel releases the lock when its holder and all child processes have ended.
take_lock() {
    mkdir -p -- "$REPO/logs" 2>/dev/null || die "cannot create the folder $REPO/logs"
    [[ ! -L "$LOCK_FILE" ]] || die "$LOCK_FILE must not be a symbolic link; delete it"
    { : >>"$LOCK_FILE"; } 2>/dev/null || die "cannot write in $REPO/logs; make the folder writable (ls -ld shows its owner)"
    exec 9>>"$LOCK_FILE"
    flock -w 2 9 || die "another start is in progress in $REPO; check it with $FLAG--status"
    { printf '%s\n' "$$" "$(process_start_ticks "$$")" >"$LOCK_FILE"; } 2>/dev/null ||
        die "cannot write $LOCK_FILE (read-only, or the disk is full)"
}

refuse_second_start() {
    local pid
    if pid="$(running_pid)"; then
        die "$WORK is already running (pid $pid); watch it with: tail -f $(quoted "$LOG")   stop it with $FLAG--stop"
    fi
    rm -f -- "$PID_FILE" 2>/dev/null || die "cannot remove the old $PID_FILE; make $REPO/logs writable"
}

refuse_sample_of_given_data() {
    [[ -z "$SAMPLE" || -z "$DATA_DIR" ]] || die "--data-dir and --${SAMPLE/_/-} cannot be combined"
}

refuse_unknown_timeframe() {
    [[ -n "$TIMEFRAME" && "$TIMEFRAME" != *" "* && " $TIMEFRAMES " == *" $TIMEFRAME "* ]] ||
        die "--timeframe must be one of: $TIMEFRAMES; received '$TIMEFRAME'"
}

# --data-dir names a dataset, or a folder of datasets named by timeframe.
describe_given_data() {
    if [[ ! -f "$DATA_DIR/manifest.json" && -f "$DATA_DIR/$TIMEFRAME/manifest.json" ]]; then
        describe_data "$DATA_DIR/$TIMEFRAME"
    else
        describe_data "$DATA_DIR"
    fi
}

choose_gpu() {
    "$PYTHON" -c 'import torch; print(0 if torch.cuda.is_available() else -1)' ||
        die "$PYTHON cannot import torch (reason above)"
}

build_command() {
    GPU="${GPU:-$(choose_gpu)}"
    local size=(--n-trials 500 --n-envs 12)
    if is_demonstration "$DATA_DIR"; then size=("${DEMONSTRATION[@]}"); fi
    COMMAND=("$PYTHON" "$TRAINER" "${size[@]}" --gpu "$GPU" --study-name "$STUDY" --timeframe "$TIMEFRAME"
        --data-dir "$DATA_DIR" --storage "$STORAGE" ${PASSED[@]+"${PASSED[@]}"})
}

announce_in_log() {
    { printf '%s launcher: %s\n' "$(date -u +%FT%TZ)" "$(quoted "${COMMAND[@]}")" >>"$LOG"; } 2>/dev/null ||
        die "cannot write $LOG (read-only, or the disk is full: df -h $(quoted "$REPO"))"
}

record_or_die() {
    record_process "$@" 2>/dev/null || die "cannot write $PID_FILE (read-only, or the disk is full), so nothing was started"
}

start_in_foreground() {
    record_or_die "$$" "${COMMAND[@]}"
    exec 9>&-
    # tee ignores Ctrl-C, so that the trainer's last lines still reach the log.
    exec > >(tee -i -a -- "$LOG") 2>&1
    exec "${COMMAND[@]}"
}

# setsid detaches the trainer from the terminal, so that closing the terminal does not stop it.
start_in_background() {
    local log_start_bytes pid
    log_start_bytes="$(stat -c %s -- "$LOG")"
    (
        record_or_die "$BASHPID" "${COMMAND[@]}"
        exec 9>&-
        exec setsid "${COMMAND[@]}" >>"$LOG" 2>&1 </dev/null
    ) &
    pid=$!
    trap 'say "$WORK continues in the background (pid '"$pid"'); stop it with $FLAG--stop"; exit 130' INT
    wait_for_first_words "$pid" "$log_start_bytes"
    trap - INT
    "explain_next_steps_of_$WORK" "$pid" "$log_start_bytes"
}

# Prints what was logged after byte $1. Readers that stop early must use <(...): in a pipe, SIGPIPE would end the launcher.
log_since() { tail -c "+$(($1 + 1))" -- "$LOG"; }

wait_for_first_words() {
    local pid="$1" log_start_bytes="$2" give_up_at=$((SECONDS + FIRST_WAIT_S))
    say "waiting for the first $FIRST (log: $LOG); Ctrl-C stops only this wait"
    until grep -Eq "$FIRST_WORDS" < <(log_since "$log_start_bytes"); do
        is_alive "$pid" || "report_early_end_of_$WORK" "$pid" "$log_start_bytes"
        if ((SECONDS >= give_up_at)); then "give_up_waiting_for_$WORK" "$pid" && break; fi
        sleep 0.2
    done
    head -n 20 < <(log_since "$log_start_bytes")
}

give_up_waiting_for_training() {
    die "pid $1 is running, but no trial has started training after $FIRST_WAIT_S s; watch $LOG, or stop it with --stop"
}

# Exit code 0 means that the study already had all its trials.
report_early_end_of_training() {
    local exit_code=0 finished
    wait "$1" || exit_code=$?
    rm -f -- "$PID_FILE"
    if ((exit_code == 0)) && finished="$(log_since "$2" | grep -E '[0-9]+ of [0-9]+ trials finished' | tail -n 1)"; then
        say "$finished"
        say "to add trials, pass a larger --n-trials"
        exit 0
    fi
    log_since "$2" | tail -n 20
    if ((exit_code == 0)); then
        say "the trainer ended with exit code 0 before a trial began; its last lines are above"
        exit 0
    fi
    if ((exit_code == NO_SIGNAL_CODE)); then
        say "no tradable signal found at these costs: the study has all its trials, and its policies stayed in cash"
        say "this is a result, not a failure; other bars, a longer timeframe or lower fees may give a different one"
        exit "$NO_SIGNAL_CODE"
    fi
    die "the trainer ended immediately with exit code $exit_code; its last lines are above and in $LOG"
}

explain_next_steps_of_training() {
    local me log bin
    me="$(quoted "$REPO/$PROGRAM")" log="$(quoted "$LOG")" bin="$(quoted "$(dirname -- "$PYTHON")")"
    say ""
    say "Training is running in the background (pid $1)."
    say "  watch:  tail -f $log"
    say "  status: $me --status"
    say "          $bin/optuna best-trial --storage $(quoted "$STORAGE") --study-name $(quoted "$STUDY")"
    say "          $bin/python $(quoted "$REPO/paper_trader_dashboard.py") --training --study-name $(quoted "$STUDY") --storage $(quoted "$STORAGE")"
    say "          $(quoted "$REPO/scripts/monitoring/web_dashboard.sh") --study-name $(quoted "$STUDY") --storage $(quoted "$STORAGE")"
    say "  stop:   $me --stop"
}

start_training() {
    refuse_unknown_timeframe
    refuse_sample_of_given_data
    take_lock
    refuse_second_start
    [[ -z "$DATA_DIR" ]] || describe_given_data
    ensure_environment runtime
    if [[ -z "$DATA_DIR" ]]; then
        DATA_DIR="$REPO/data/$TIMEFRAME${SAMPLE:+_$SAMPLE}"
        ensure_data "$DATA_DIR" "$TIMEFRAME" "$SAMPLE"
    fi
    build_command
    launch "$1"
}

# Runs COMMAND in the foreground or background.
launch() {
    announce_in_log
    printf '+ %s\n' "$(quoted "${COMMAND[@]}")"
    export PYTHONUNBUFFERED=1
    cd -- "$CALLER_DIR" # base of the user's relative paths
    "start_in_$1"
}

main() {
    ACTION=start SAMPLE="" TIMEFRAME=5m DATA_DIR="" GPU="" STUDY="" STORAGE="sqlite:///$REPO/databases/optuna_cappuccino.db" PASSED=()
    if asks_for_trading "$@"; then
        use_trader
    else
        use_trainer
    fi
    "parse_${WORK}_flags" "$@"
    STUDY="${STUDY:-cappuccino_${TIMEFRAME}_${SAMPLE:-vectorized}}"
    cd -- "$REPO"
    case "$ACTION" in
        help) "usage_of_$WORK" ;;
        status) show_status ;;
        stop) stop_process ;;
        flatten) flatten ;;
        foreground) "start_$WORK" foreground ;;
        start) "start_$WORK" background ;;
    esac
}

main "$@"
