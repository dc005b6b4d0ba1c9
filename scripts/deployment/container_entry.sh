#!/usr/bin/env bash
# Container entry point: checks the keys, the deployment and the trading folder, then replaces itself with the trader,
# which therefore receives SIGTERM. All flags are passed to the trader. Exit codes: 2 if a check fails, otherwise the
# trader's.
set -euo pipefail

readonly PROGRAM="container_entry.sh"
REPO="$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)"
readonly REPO

refuse() {
    printf '%s: %s\n' "$PROGRAM" "$*" >&2
    exit 2
}

# Sets BROKER, DEPLOYMENTS, TRADING and ACTION: trade, flatten (must work without a policy or disk), or ask.
parse_flags() {
    BROKER="" DEPLOYMENTS="$REPO/deployments" TRADING="$REPO/trading" ACTION=trade
    local flag
    while (($#)); do
        flag="$1"
        shift
        case "$flag" in
            --help | -h | --status | --stop) ACTION=ask ;;
            --flatten) ACTION=flatten ;;
            --broker=*) BROKER="${flag#*=}" ;;
            --deployments-dir=*) DEPLOYMENTS="${flag#*=}" ;;
            --trading-dir=*) TRADING="${flag#*=}" ;;
            --broker) BROKER="${1:-}" ;;
            --deployments-dir) DEPLOYMENTS="${1:-}" ;;
            --trading-dir) TRADING="${1:-}" ;;
        esac
    done
}

# Without keys, the trader would silently start a replay. In a container, missing keys must be an error.
check_keys() {
    if [[ "$BROKER" == replay ]]; then return; fi
    if [[ -n "${APCA_API_KEY_ID:-}" && -n "${APCA_API_SECRET_KEY:-}" ]]; then return; fi
    if [[ -n "${ALPACA_API_KEY:-}" && -n "${ALPACA_API_SECRET:-}" ]]; then return; fi
    refuse "API keys are not set; pass APCA_API_KEY_ID and APCA_API_SECRET_KEY with --env-file, or use --broker replay"
}

check_deployment() {
    [[ -e "$DEPLOYMENTS/current" ]] ||
        refuse "$DEPLOYMENTS/current does not exist; mount the whole deployments folder there, not the folder that current links to"
}

check_trading_folder() {
    if mkdir -p -- "$TRADING" 2>/dev/null && [[ -w "$TRADING" ]]; then return; fi
    refuse "user $(id -u) cannot write in $TRADING; mount a folder owned by this user there (chown $(id -u))"
}

main() {
    parse_flags "$@"
    if [[ "$ACTION" != ask ]]; then check_keys; fi
    if [[ "$ACTION" == trade ]]; then
        check_deployment
        check_trading_folder
    fi
    exec python "$REPO/scripts/deployment/paper_trade.py" "$@"
}

main "$@"
