#!/usr/bin/env bash
# Checks the pages of the site, of a study and of a trader's day in a browser: axe's accessibility rules, horizontal
# overflow at the width of a telephone and of a desktop, in light and dark, and that nothing is loaded from elsewhere.
# Without a browser or without axe-core it says so and ends with exit code 0.
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
    printf 'usage: scripts/check_pages.sh [--screenshots DIR]\n\nNeeds chromium, and npm once to fetch axe-core.\n'
    exit 0
fi

BROWSER="${BROWSER:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}"
[[ -n "$BROWSER" ]] || skip "there is no chromium; on Debian: apt-get install chromium"
if [[ ! -f "$AXE" ]]; then
    command -v npm >/dev/null || skip "axe-core is not in build/axe, and there is no npm to fetch it"
    npm install --silent --no-save --ignore-scripts --prefix "$REPO/build/axe" "axe-core@$AXE_VERSION" ||
        skip "npm could not fetch axe-core"
fi

cd -- "$REPO"
SCRATCH="$(mktemp -d)"
trap 'rm -rf -- "$SCRATCH"' EXIT
NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build --site-dir "$SCRATCH/site"
"$PYTHON" -m tests.support.sample_pages "$SCRATCH"
"$PYTHON" scripts/site/check_pages.py --browser "$BROWSER" --axe "$AXE" --folder "$SCRATCH" "$@"
