#!/usr/bin/env bash
# Builds the documentation site in site/, then checks its pages, the report of a study, the page of a trader's day and the
# web dashboard in a browser: axe's accessibility rules, horizontal overflow at the widths of a telephone and of a desktop,
# light and dark colors, and requests to other hosts. Without a browser or without axe-core it says so and ends
# with exit code 0.
set -euo pipefail

REPO="$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
readonly REPO AXE_VERSION=4.14.1
readonly AXE="$REPO/build/axe/node_modules/axe-core/axe.min.js"
PYTHON="${PYTHON:-python3}"

skip() {
    printf 'pages are not checked in a browser: %s\n' "$1"
    exit 0
}

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
    printf '%s\n' "usage: scripts/check_pages.sh [--screenshots DIR]" "" \
        "Builds the documentation site and checks pages in chromium. Fetches axe-core with npm the first time." \
        "Environment variables: PYTHON (python3), BROWSER (the chromium program)."
    exit 0
fi

cd -- "$REPO"
NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build

BROWSER="${BROWSER:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}"
[[ -n "$BROWSER" ]] || skip "no chromium is installed; on Debian: apt-get install chromium"
command -v -- "$BROWSER" >/dev/null || skip "BROWSER=$BROWSER does not exist"
if [[ ! -f "$AXE" ]]; then
    command -v npm >/dev/null || skip "axe-core is not in build/axe, and npm is not installed"
    npm install --silent --no-save --ignore-scripts --prefix "$REPO/build/axe" "axe-core@$AXE_VERSION" ||
        skip "npm could not fetch axe-core"
fi

SCRATCH="$(mktemp -d)"
trap 'rm -rf -- "$SCRATCH"' EXIT
ln -s -- "$REPO/site" "$SCRATCH/site"
"$PYTHON" -m tests.support.sample_pages "$SCRATCH"
"$PYTHON" scripts/site/check_pages.py --browser "$BROWSER" --axe "$AXE" --folder "$SCRATCH" "$@"
