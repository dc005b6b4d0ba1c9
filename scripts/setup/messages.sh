# Plain lines on the terminal; sourced by the launcher and by scripts/run_tests.sh.
# shellcheck shell=bash

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "${PROGRAM:-setup}" "$*" >&2
    exit 1
}

# One line that can be pasted into a shell; the password and the options of a storage URL are not shown.
quoted() {
    local argument line=""
    for argument in "$@"; do
        line+="$(printf '%q' "$argument" | sed -E 's#(:/+[^:/?]*):.*@#\1:***@#; s#(:/+[^?]*)\\\?.*#\1?***#') "
    done
    printf '%s\n' "${line% }"
}

# Prints the command, then runs it.
run() {
    printf '+ %s\n' "$(quoted "$@")"
    "$@"
}
