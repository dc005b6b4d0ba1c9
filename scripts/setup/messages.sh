# Plain lines on the terminal; sourced by the launcher and by scripts/run_tests.sh.
# shellcheck shell=bash

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "${PROGRAM:-setup}" "$*" >&2
    exit 1
}

# One line that can be pasted into a shell; a password in a storage URL is not shown.
quoted() {
    local line
    line="$(printf '%q ' "$@" | sed -E 's#(://[^:/@ ]+):[^@ ]+@#\1:***@#g')"
    printf '%s\n' "${line% }"
}

# Prints the command, then runs it.
run() {
    printf '+ %s\n' "$(quoted "$@")"
    "$@"
}
