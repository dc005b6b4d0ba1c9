#!/usr/bin/env bash
# Shows a study in the browser: optuna-dashboard on 127.0.0.1, in this terminal, with the repository's environment.
set -euo pipefail

readonly PROGRAM="web_dashboard.sh"
REPO="$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)"
readonly REPO

# shellcheck source=scripts/setup/messages.sh
source "$REPO/scripts/setup/messages.sh"
# shellcheck source=scripts/setup/environment.sh
source "$REPO/scripts/setup/environment.sh"

usage() {
    cat <<'HELP'
usage: scripts/monitoring/web_dashboard.sh [--port N] [--study-name NAME] [--storage URL] [--artifact-dir DIR] [--help]

Makes or reuses the Python environment, as ./start_vectorized_training.sh does, and serves the study's database at
http://127.0.0.1:8080 until Ctrl-C: values, settings and their importance, and each trial's equity curves.

  --port N            of 127.0.0.1 (8080)
  --study-name NAME   whose page is named at the start (the newest)
  --storage URL       sqlite:///FILE or postgresql://USER@HOST/NAME (databases/optuna_cappuccino.db of the repository)
  --artifact-dir DIR  pictures of the trials (artifacts, beside the study's results)
  --help              this text

From another machine: ssh -L 8080:127.0.0.1:8080 HOST. Who reaches the page can delete studies, so it is served to this
machine only.
HELP
}

main() {
    local argument
    for argument in "$@"; do
        if [[ "$argument" == --help || "$argument" == -h ]]; then usage && exit 0; fi
    done
    ensure_environment runtime
    exec "$PYTHON" "$REPO/scripts/monitoring/web_dashboard.py" "$@"
}

main "$@"
