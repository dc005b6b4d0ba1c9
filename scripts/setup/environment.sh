# Finds or creates the Python environment and installs the requirements once.
# Sourced by start_vectorized_training.sh and scripts/run_tests.sh, with REPO set.
# shellcheck shell=bash

# ensure_environment runtime|dev: sets PYTHON to an interpreter that has all requirements.
ensure_environment() {
    local purpose="$1"
    choose_python
    if is_environment_current "$purpose"; then
        say "environment: $PYTHON (up to date)"
        return
    fi
    install_requirements "$purpose"
    mark_environment_current "$purpose"
}

# Prefers an active environment, then .venv in the repository.
choose_python() {
    local prefix=""
    if [[ -n "${VIRTUAL_ENV:-}" ]]; then
        prefix="$VIRTUAL_ENV"
    elif [[ -n "${CONDA_PREFIX:-}" && "${CONDA_DEFAULT_ENV:-base}" != base ]]; then
        prefix="$CONDA_PREFIX"
    fi
    if [[ -n "$prefix" ]]; then
        PYTHON="$prefix/bin/python"
        "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
            die "the active environment $prefix has no Python 3.11 or newer; run 'deactivate' or activate another"
        say "environment: the active one, $prefix"
        return
    fi
    PYTHON="$REPO/.venv/bin/python"
    "$PYTHON" -m pip --version >/dev/null 2>&1 || make_venv
}

make_venv() {
    local base options=()
    base="$(find_base_python)" || die "Python 3.11 or newer not found on PATH; install it and start again"
    # A preinstalled torch (for example in a container for AMD GPUs) must stay usable; a plain venv would hide it.
    if has_torch "$base"; then options+=(--system-site-packages); fi
    run "$base" -m venv ${options[@]+"${options[@]}"} "$REPO/.venv" ||
        die "could not create $REPO/.venv; check the free disk space, and install python3-venv on Debian and Ubuntu"
}

# Prefers an interpreter that has torch, then the oldest supported version.
find_base_python() {
    local name path found=""
    for name in python3.11 python3.12 python3.13 python3 python; do
        path="$(command -v "$name")" || continue
        "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        if has_torch "$path"; then
            printf '%s\n' "$path"
            return
        fi
        found="${found:-$path}"
    done
    [[ -n "$found" ]] && printf '%s\n' "$found"
}

# Searches for the package without importing it, because a broken torch must not be replaced either.
has_torch() {
    "$1" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null
}

# Build for CPUs and NVIDIA GPUs, installed if no torch is present.
readonly DEFAULT_TORCH="torch==2.13.0"

requirement_files() {
    printf '%s\n' constraints.txt requirements.txt requirements-elegantrl.txt
    if [[ "$1" == dev ]]; then printf '%s\n' requirements-dev.txt requirements-adapters.txt requirements-docs.txt; fi
}

requirements_digest() {
    (cd "$REPO" && requirement_files "$1" | xargs cat | sha256sum | cut -d ' ' -f 1)
}

stamp_path() {
    "$PYTHON" -c 'import sys; print(sys.prefix)' | sed "s|\$|/.requirements-installed-$1|"
}

is_environment_current() {
    local stamp
    stamp="$(stamp_path "$1")"
    [[ -f "$stamp" && "$(<"$stamp")" == "$(requirements_digest "$1")" ]] &&
        "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("torch") and u.find_spec("elegantrl")))' &&
        is_this_checkout_installed
}

# -P: barwise must be imported from the environment, not from the current folder.
is_this_checkout_installed() {
    local where
    where="$("$PYTHON" -P -c 'import barwise; print(barwise.__file__)' 2>/dev/null)" &&
        [[ "$where" -ef "$REPO/barwise/__init__.py" ]]
}

# A dev environment is also a runtime environment.
# If the stamp cannot be written (for example in another user's environment), only the next start takes longer.
mark_environment_current() {
    local level
    for level in runtime "$1"; do
        { requirements_digest "$level" >"$(stamp_path "$level")"; } 2>/dev/null || true
    done
}

# Runs in a subshell, so that its temporary folder is always removed.
install_requirements() (
    purpose="$1"
    scratch="$(mktemp -d)"
    trap 'rm -rf -- "$scratch"' EXIT
    cp -- "$REPO/constraints.txt" "$scratch/constraints.txt"
    if has_torch "$PYTHON"; then
        keep_installed_torch "$scratch"
    else
        warn_about_amd_card
        printf '%s\n' "$DEFAULT_TORCH" >>"$scratch/constraints.txt"
    fi
    sources=(-r "$REPO/requirements.txt")
    if [[ "$purpose" == dev ]]; then
        sources+=(-r "$REPO/requirements-dev.txt" -r "$REPO/requirements-adapters.txt" -r "$REPO/requirements-docs.txt")
    fi
    run "$PYTHON" -m pip install -c "$scratch/constraints.txt" "${sources[@]}" ||
        die "pip could not install requirements.txt (reason above: no network, a full disk, or conflicting versions)"
    run "$PYTHON" -m pip install --no-deps -r "$REPO/requirements-elegantrl.txt" ||
        die "pip could not install requirements-elegantrl.txt (reason above)"
    run "$PYTHON" -m pip install --no-deps -e "$REPO" ||
        die "pip could not install this repository (reason above)"
)

# Pins the installed torch, so that no package changes its version.
keep_installed_torch() {
    local scratch="$1" version
    version="$("$PYTHON" -c 'import torch; print(torch.__version__)')" ||
        die "torch is installed for $PYTHON but cannot be imported (reason above); fix it manually, it is never replaced"
    say "environment: keeping the installed torch $version"
    printf 'torch==%s\n' "$version" >>"$scratch/constraints.txt"
}

warn_about_amd_card() {
    if [[ -e /dev/kfd ]]; then
        say "environment: this machine has an AMD GPU, which the default torch from pip does not support."
        say "             To use it, stop now, install a ROCm build of torch into $REPO/.venv and start again."
    fi
}
