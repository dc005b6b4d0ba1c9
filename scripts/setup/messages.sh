# Terminal output functions; sourced by the launcher and by scripts/run_tests.sh.
# shellcheck shell=bash

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "${PROGRAM:-setup}" "$*" >&2
    exit 1
}

# Prints the arguments as one shell-quoted line, without the password and options of a storage URL.
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
