#!/usr/bin/env bash
# Sets up the environment, runs the linters and the type checker, small runs of the programs, and the tests.
set -euo pipefail

readonly PROGRAM="run_tests.sh"
REPO="$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
readonly REPO
# Test processes: one more than cores, because many tests wait; limited by the memory of a small machine.
N_CORES="$(nproc)"
readonly WORKERS=$((N_CORES < 4 ? N_CORES + 1 : 4))

# shellcheck source=scripts/setup/messages.sh
source "$REPO/scripts/setup/messages.sh"
# shellcheck source=scripts/setup/environment.sh
source "$REPO/scripts/setup/environment.sh"

usage() {
    cat <<'HELP'
usage: scripts/run_tests.sh [--fast | --mutants | --trading-walk [STEPS] | --machines] [--help]

Creates or reuses the Python environment, then runs shellcheck, ruff, the type checker, a study with two trials, every
benchmark with --quick, the documentation site and its pages in a browser if one is installed, and the tests. Stops at
the first failure.

  --fast     skip the benchmarks, the study, the pages and the slow tests
  --mutants  run only the mutation tests: break the code behind each row of docs/faults.md in a copy of the repository,
             check that the row's test fails, and write docs/mutants.md
  --trading-walk [STEPS]
             run only a random walk through venue faults, with 10000 steps by default and a printed seed; after each
             stretch, the trader's account state must match the venue's
  --machines run only the network tests: real trainers in network namespaces whose database is unreachable (as root)
  --help     print this text

Tests on real bars read the folder CRYPTO_BARS_DIR, or ../shared/data if it is not set. They are skipped without bars.
HELP
}

parse_arguments() {
    FAST=false MUTANTS=false WALK=0 MACHINES=false
    while (($#)); do
        case "$1" in
            --fast) FAST=true ;;
            --mutants) MUTANTS=true ;;
            --trading-walk)
                WALK=10000
                if [[ "${2:-}" =~ ^[1-9][0-9]*$ ]]; then WALK="$2" && shift; fi
                ;;
            --machines) MACHINES=true ;;
            --help | -h) usage && exit 0 ;;
            *) die "unknown flag $1; see --help" ;;
        esac
        shift
    done
}

step() { printf '\n=== %s (%s s since the start)\n' "$1" "$SECONDS"; }

lint() {
    step "lint"
    run "$BIN/shellcheck" -x start_vectorized_training.sh scripts/*.sh scripts/setup/*.sh \
        scripts/monitoring/*.sh scripts/deployment/*.sh
    run "$BIN/ruff" check .
    run "$BIN/ruff" format --check --quiet .
}

check_types() {
    step "types"
    run "$BIN/basedpyright" --pythonpath "$PYTHON"
}

# A small study on the sample market in a temporary folder: two trials, twelve environments.
smoke_study() {
    step "small study"
    SCRATCH="$(mktemp -d)"
    local study
    study="smoke_$(basename -- "$SCRATCH")"
    trap 'rm -rf -- "$SCRATCH" "$REPO/train_results/smoke_$(basename -- "$SCRATCH")"' EXIT
    run "$PYTHON" scripts/data/make_sample.py --timeframe 5m --n-bars 6000 --out "$SCRATCH/data"
    run "$PYTHON" scripts/training/1_optimize_unified.py --n-trials 2 --gpu -1 --break-step 2000 --n-envs 12 \
        --study-name "$study" --storage "sqlite:///$SCRATCH/study.db" --timeframe 5m --data-dir "$SCRATCH/data"
    run "$PYTHON" paper_trader_dashboard.py --training --once --study-name "$study" --storage "sqlite:///$SCRATCH/study.db"
    run "$PYTHON" scripts/deployment/auto_replace_best_5m.py --dry-run --allow-synthetic --allow-unproven \
        --study-name "$study" --storage "sqlite:///$SCRATCH/study.db"
}

# Runs in parallel, because nothing is measured here. Only the output of a failed benchmark is shown.
smoke_benchmarks() {
    step "small benchmarks"
    local script commands=("benchmarks/step.py --scale --quick" "benchmarks/step.py --startup --quick")
    commands+=("benchmarks/workers.py --simulate --quick")
    for script in benchmarks/*.py; do
        if ! grep -q __main__ "$script"; then continue; fi
        if [[ "$script" == */demonstration.py ]]; then continue; fi     # the slow tests run it and check its verdicts
        if [[ "$script" == */peer_environments.py ]]; then continue; fi # peers.py runs it
        commands+=("$script --quick")
    done
    # shellcheck disable=SC2016  # expanded by the inner shell
    printf '%s\n' "${commands[@]}" | PYTHON="$PYTHON" xargs -P "$WORKERS" -I {} bash -c \
        'output="$("$PYTHON" {} 2>&1)" && echo "passed: {}" || { printf "%s\n" "$output" "FAILED: {}"; exit 255; }'
}

main() {
    parse_arguments "$@"
    cd -- "$REPO"
    step "setup"
    ensure_environment dev
    BIN="$(dirname -- "$PYTHON")"
    # One thread per operation: the tensors are small, and several thread pools on few cores slow each other down.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    if $MUTANTS; then
        step "mutants"
        run "$PYTHON" -m tests.mutants --jobs "$WORKERS" --write
        return
    fi
    if ((WALK > 0)); then
        step "random walk of $WALK steps through venue faults"
        run "$PYTHON" -m tests.support.trading_walk --steps "$WALK"
        return
    fi
    if $MACHINES; then
        step "machines"
        run "$PYTHON" -m tests.machines
        return
    fi
    lint
    check_types
    if ! $FAST; then
        smoke_study
        smoke_benchmarks
        step "the documentation site"
        PYTHON="$PYTHON" run scripts/check_pages.sh --few
    fi
    step "tests"
    if $FAST; then
        run "$PYTHON" -m pytest -n "$WORKERS" --dist worksteal -m "not slow" --durations=25
    else
        run "$PYTHON" -m pytest -n "$WORKERS" --dist worksteal --durations=40
    fi
}

main "$@"
