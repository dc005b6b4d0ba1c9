#!/usr/bin/env bash
# Builds the documentation site in site/. Then checks its pages, the report of a study, the daily page of a trader and the web
# dashboard in a browser: accessibility rules of axe-core, horizontal overflow at phone and desktop widths, light and dark
# colors, and requests to other hosts. Without a browser or axe-core, it prints the reason and exits with code 0.
set -euo pipefail

REPO="$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
readonly REPO AXE_VERSION=4.14.1
readonly AXE="$REPO/build/axe/node_modules/axe-core/axe.min.js"
PYTHON="${PYTHON:-python3}"

skip() {
    printf 'pages were not checked in a browser: %s\n' "$1"
    exit 0
}

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
    printf '%s\n' "usage: scripts/check_pages.sh [--screenshots DIR]" "" \
        "Builds the documentation site and checks pages in Chromium. Installs axe-core with npm on first use." \
        "Environment variables: PYTHON (default: python3), BROWSER (path of Chromium)."
    exit 0
fi

cd -- "$REPO"
NO_MKDOCS_2_WARNING=1 "$PYTHON" -m mkdocs build

BROWSER="${BROWSER:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}"
[[ -n "$BROWSER" ]] || skip "Chromium is not installed; on Debian, run apt-get install chromium"
command -v -- "$BROWSER" >/dev/null || skip "BROWSER=$BROWSER does not exist"
if [[ ! -f "$AXE" ]]; then
    command -v npm >/dev/null || skip "neither axe-core (in build/axe) nor npm is installed"
    npm install --silent --no-save --ignore-scripts --prefix "$REPO/build/axe" "axe-core@$AXE_VERSION" ||
        skip "npm could not install axe-core"
fi

SCRATCH="$(mktemp -d)"
trap 'rm -rf -- "$SCRATCH"' EXIT
ln -s -- "$REPO/site" "$SCRATCH/site"
"$PYTHON" -m tests.support.sample_pages "$SCRATCH"
"$PYTHON" scripts/site/check_pages.py --browser "$BROWSER" --axe "$AXE" --folder "$SCRATCH" "$@"
