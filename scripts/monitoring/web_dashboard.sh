#!/usr/bin/env bash
# Runs optuna-dashboard on 127.0.0.1 in the repository's Python environment.
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
usage: scripts/monitoring/web_dashboard.sh [--port N] [--study-name NAME] [--storage URL] [--results-dir DIR]
                                           [--artifact-dir DIR] [--help]

Creates or reuses the Python environment, as ./start_vectorized_training.sh does, and serves the study's database at
http://127.0.0.1:8080 until Ctrl-C. The pages show values, hyperparameters and their importance, and equity curves.

  --port N            port on 127.0.0.1 (default: 8080)
  --study-name NAME   study whose page is printed at the start (default: the newest)
  --storage URL       study database: sqlite:///FILE or postgresql://USER@HOST/NAME
                      (default: databases/optuna_cappuccino.db in the repository)
  --results-dir DIR   folder that contains the study's results folder (default: the one the study was run with)
  --artifact-dir DIR  folder that contains the trials' plots (default: the folder artifacts next to the study's results)
  --help              print this text

To connect from another machine, run ssh -L 8080:127.0.0.1:8080 HOST there. The server only accepts local connections,
because anyone who can open the page can delete studies.
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
