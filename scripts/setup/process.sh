# Manages one background process, trainer or trader: its pid file, its identity and its termination.
# Sourced by start_vectorized_training.sh, which sets PID_FILE, LOCK_FILE, LOG, PROGRAM, SCRIPT, WORK, FLAG and AFTER_STOP.
# shellcheck shell=bash

# Prints the start time of process $1 in clock ticks since boot. Together with the pid it identifies a process uniquely.
# The command name in field 2 may contain spaces and parentheses, so fields are counted after its last ')'.
process_start_ticks() {
    local stat
    stat="$(cat "/proc/$1/stat" 2>/dev/null)" || return 1
    read -r -a stat <<<"${stat##*) }"
    printf '%s\n' "${stat[19]}" # field 22 of the line
}

# A zombie counts as ended: its parent has not read its exit code yet.
is_alive() {
    local stat
    stat="$(cat "/proc/$1/stat" 2>/dev/null)" || return 1
    [[ "${stat##*) }" != Z* ]]
}

# record_process PID COMMAND...: writes three lines (pid, start ticks, command) atomically.
record_process() {
    local pid="$1"
    shift
    {
        printf '%s\n' "$pid"
        process_start_ticks "$pid"
        quoted "$@"
    } >"$PID_FILE.new" && mv -- "$PID_FILE.new" "$PID_FILE"
}

# Prints the pid of our running process; fails if the pid file is missing, stale or belongs to another process.
running_pid() {
    local pid ticks
    [[ -f "$PID_FILE" ]] || return 1
    { read -r pid && read -r ticks; } <"$PID_FILE" || return 1
    is_ours "$pid" "$ticks" && printf '%s\n' "$pid"
}

is_same_process() {
    local pid="$1" ticks="$2"
    [[ "$pid" =~ ^[0-9]+$ && "$ticks" =~ ^[0-9]+$ ]] || return 1
    is_alive "$pid" || return 1
    [[ "$(process_start_ticks "$pid")" == "$ticks" ]]
}

# Succeeds if the pid and start time match and one argument is exactly our script's path.
is_ours() {
    local pid="$1" ticks="$2" argument
    is_same_process "$pid" "$ticks" || return 1
    while IFS= read -r -d '' argument; do
        if [[ "$argument" == "$SCRIPT" ]]; then return 0; fi
    done <"/proc/$pid/cmdline"
    return 1
}

# Prints the pid of the launcher that holds the lock; fails if it has ended or has become the process (--foreground).
setup_pid() {
    local pid ticks argument
    [[ -f "$LOCK_FILE" ]] || return 1
    { read -r pid && read -r ticks; } <"$LOCK_FILE" || return 1
    is_same_process "$pid" "$ticks" || return 1
    while IFS= read -r -d '' argument; do
        if [[ "${argument##*/}" == "$PROGRAM" ]]; then printf '%s\n' "$pid" && return 0; fi
    done <"/proc/$pid/cmdline"
    return 1
}

# Prints the pid of process $1 and of all its descendants, parents first.
process_tree() {
    local child
    printf '%s\n' "$1"
    for child in $(ps -o pid= --ppid "$1"); do process_tree "$child"; done
}

# Stops parents first, so that none starts its next step. A surviving pip or download would keep the lock.
stop_setup() {
    local pid="$1" give_up_at=$((SECONDS + STOP_WAIT_S)) member tree
    mapfile -t tree < <(process_tree "$pid")
    say "setup is running (pid $pid); stopping it and its child processes"
    for member in "${tree[@]}"; do kill -TERM "$member" 2>/dev/null || true; done
    for member in "${tree[@]}"; do
        while is_alive "$member"; do
            ((SECONDS < give_up_at)) ||
                die "setup process $member is still running $STOP_WAIT_S s after SIGTERM; kill it with: kill -KILL $member"
            sleep 0.2
        done
    done
    say "stopped setup (pid $pid); the same command starts it again"
}

stop_process() {
    local pid give_up_at=$((SECONDS + STOP_WAIT_S))
    pid="$(running_pid)" || {
        if pid="$(setup_pid)"; then
            stop_setup "$pid"
            return
        fi
        say "no $WORK is running here"
        return 0
    }
    run kill -TERM "$pid"
    while running_pid >/dev/null; do
        if ((SECONDS >= give_up_at)); then
            die "pid $pid is still running $STOP_WAIT_S s after SIGTERM; retry $FLAG--stop, or kill it with: kill -KILL $pid"
        fi
        sleep 0.2
    done
    rm -f -- "$PID_FILE"
    say "stopped pid $pid; $AFTER_STOP"
}

show_status() {
    local pid
    pid="$(running_pid)" || {
        if pid="$(setup_pid)"; then
            say "setup is running (pid $pid)"
            return 0
        fi
        say "not running"
        if [[ -s "$LOG" ]]; then
            say "last lines of $LOG:"
            tail -n 5 -- "$LOG"
        fi
        return 3
    }
    say "running: pid $pid, for $(ps -o etime= -p "$pid" | tr -d ' ') (days-hours:minutes:seconds)"
    say "command: $(sed -n 3p "$PID_FILE")"
    say "last lines of $LOG:"
    tail -n 5 -- "$LOG"
}
