# Starts the paper trader. If nothing is deployed yet, it first trains the demonstration study and deploys its winner.
# Sourced by start_vectorized_training.sh; uses its variables and functions.
# shellcheck shell=bash

readonly DEPLOYER="$REPO/scripts/deployment/auto_replace_best_5m.py"
readonly SAMPLE_DATA="$REPO/data/5m_sample" SAMPLE_STUDY=cappuccino_5m_sample

usage_of_trading() {
    cat <<'HELP'
usage: start_vectorized_training.sh --trade [--foreground | --status | --stop | --flatten | --help] [trader flags]

Starts the paper trader in the background and returns after its first decision.
The trader trades the policy in deployments/current. If nothing is deployed, the launcher first generates the SYNTHETIC
sample market, runs the demonstration study on it in this terminal (minutes on two cores) and deploys the winner.
Nothing is downloaded except for missing Python packages.

  --foreground  trade in this terminal; Ctrl-C stops the trader
  --status      show the trader's state and last log lines (exit code 0: it or its setup is running, 3: neither)
  --stop        send SIGTERM to the trader, or to an unfinished setup, and wait until it has ended
  --flatten     kill switch without any setup: run paper_trade.py --flatten to sell the trader's coins immediately
  --help        print this text; for the trader's flags: python scripts/deployment/paper_trade.py --help

All other flags are passed to the trader. A deployment of the sample study is traded on a replay of the study's
hold-out, one bar per second: --broker replay --data-dir data/5m_sample --pace 1. Your flags override these flags.
With --broker alpaca, --live or --deployments-dir, the launcher adds no flags and trains nothing.
The trader and the trainer are independent: --trade --stop never stops a trainer, and --stop never stops a trader.
Relative paths are resolved from the current directory.

Exit codes: those of the trader if it ends before its first decision or runs in the foreground (2 refused to start,
4 another trader uses the account, 5 halted); 1 if setup or start failed.

Files: log in logs/paper_trader.log, process id in logs/paper_trader.pid.
Environment variables, in seconds: FIRST_BAR_WAIT_S (default: 600), STOP_WAIT_S (default: 120).
HELP
}

asks_for_trading() {
    local argument
    for argument in "$@"; do
        if [[ "$argument" == --trade ]]; then return 0; fi
    done
    return 1
}

# Sets ACTION, MAY_BE_SAMPLE (no flag selects a venue or a deployment) and PASSED (flags passed to the trader).
# shellcheck disable=SC2034  # the launcher reads ACTION
parse_trading_flags() {
    local argument previous=""
    MAY_BE_SAMPLE=true
    for argument in "$@"; do
        case "$argument" in
            --trade) continue ;;
            --foreground | --status | --stop) ACTION="${argument#--}" && continue ;;
            --help | -h) ACTION=help && continue ;;
            --flatten) ACTION=flatten ;;
            --live | --broker=alpaca | --deployments-dir | --deployments-dir=*) MAY_BE_SAMPLE=false ;;
            alpaca) if [[ "$previous" == --broker ]]; then MAY_BE_SAMPLE=false; fi ;;
        esac
        PASSED+=("$argument")
        previous="$argument"
    done
}

start_trading() {
    take_lock
    refuse_second_start
    ensure_environment runtime
    COMMAND=("$PYTHON" "$TRADER")
    if $MAY_BE_SAMPLE; then prepare_sample; fi
    COMMAND+=(${PASSED[@]+"${PASSED[@]}"})
    launch "$1"
}

# A running trader sells its own coins; otherwise this process sells them.
flatten() {
    choose_python
    cd -- "$CALLER_DIR" || exit
    exec "$PYTHON" "$TRADER" "${PASSED[@]}"
}

prepare_sample() {
    if is_deployed && ! is_sample_deployed; then return; fi
    SAMPLE=sample
    ensure_data "$SAMPLE_DATA" "$TIMEFRAME" "$SAMPLE"
    is_deployed || deploy_sample
    COMMAND+=(--broker replay --data-dir "$SAMPLE_DATA" --pace 1)
}

# On a file system without links, `current` is a file that contains the name of the deployment.
deployed_facts() {
    local current="$REPO/deployments/current"
    if [[ -f "$current" ]]; then current="$REPO/deployments/$(<"$current")"; fi
    printf '%s\n' "$current/deployment.json"
}

# A broken link counts as deployed: the trader reports it, and no study is trained.
is_deployed() { [[ -e "$REPO/deployments/current" || -L "$REPO/deployments/current" ]]; }

is_sample_deployed() { grep -Eq "\"study\": *\"$SAMPLE_STUDY\"" "$(deployed_facts)" 2>/dev/null; }

deploy_sample() {
    local PASSED=() COMMAND code=0
    # shellcheck disable=SC2034  # build_command reads them
    STUDY="$SAMPLE_STUDY" DATA_DIR="$SAMPLE_DATA"
    say "no deployment found: training the demonstration study on the sample market, then deploying its winner"
    build_command
    run "${COMMAND[@]}" || code=$?
    ((code != NO_SIGNAL_CODE)) || die "the study's policies stayed in cash, so there is nothing to trade (see the log above)"
    ((code == 0)) || die "the study ended with exit code $code (reason above); the same command resumes it"
    hand_over
}

hand_over() {
    local code=0 command=("$PYTHON" "$DEPLOYER" --once --allow-synthetic --study-name "$STUDY" --storage "$STORAGE")
    run "${command[@]}" || code=$?
    if ((code == 3)) || { ((code == 0)) && ! is_deployed; }; then
        say "the study's winner failed a gate, so nothing was deployed; see deployments/decisions.jsonl for the reasons"
        say "to trade it on paper anyway, marked UNPROVEN:"
        say "  $(quoted "${command[@]}") --allow-unproven"
        say "  $(quoted "$REPO/$PROGRAM") --trade --allow-unproven"
        die "the study's winner was refused (see above for what to do)"
    fi
    ((code == 0)) || die "the deployment ended with exit code $code (reason above); the same command retries it"
}

# With 4h bars, the first decision can take four hours.
give_up_waiting_for_trading() {
    say "no decision within $FIRST_WAIT_S s; the trader keeps running, because a bar can be longer than that"
}

# Prints what to do and exits with the trader's exit code.
report_early_end_of_trading() {
    local code=0 command
    command="$(quoted "$PYTHON" "$TRADER")"
    wait "$1" || code=$?
    rm -f -- "$PID_FILE"
    log_since "$2" | tail -n 20
    case "$code" in
        0) say "the trader has ended; its last lines are above" ;;
        2) say "the trader refused to start; its reason is above" >&2 ;;
        4) say "another trader uses this account; show it with: $command --status   stop it with: $command --stop" >&2 ;;
        5) say "trading is halted; the reason is above. To resume trading, start with --trade --resume" >&2 ;;
        *) say "the trader ended with exit code $code; its last lines are above and in $LOG" >&2 ;;
    esac
    exit "$code"
}

explain_next_steps_of_trading() {
    local me
    is_alive "$1" || report_early_end_of_trading "$1" "$2"
    me="$(quoted "$REPO/$PROGRAM")"
    say ""
    say "The paper trader is running in the background (pid $1)."
    say "  watch:  tail -f $(quoted "$LOG")"
    say "          $(quoted "$PYTHON" "$REPO/paper_trader_dashboard.py")"
    say "  status: $me --trade --status"
    say "  stop:   $me --trade --stop"
}
