# The dataset: there already, or downloaded, or (no network) generated and labelled so.
# Sourced by start_vectorized_training.sh, with PYTHON, REPO and WORK set.
# shellcheck shell=bash

# The sample market of a demonstration: few coins, so that a network learns in seconds what they share.
readonly SAMPLE_TICKERS="BTC ETH LTC"

# ensure_data FOLDER TIMEFRAME [sample | no_signal]: with a sample asked for, nothing is downloaded
ensure_data() {
    local folder="$1" timeframe="$2" sample="${3:-}"
    if [[ ! -f "$folder/manifest.json" && -n "$sample" ]]; then
        say "data: making the SYNTHETIC sample market in $folder"
        make_sample_data "$folder" "$timeframe" "$sample"
    elif [[ ! -f "$folder/manifest.json" ]]; then
        say "data: no dataset in $folder; trying real bars first"
        if ! download_data "$folder" "$timeframe"; then
            say "data: no real bars to be had (reason above); making the SYNTHETIC sample market instead"
            make_sample_data "$folder" "$timeframe" sample
        fi
    fi
    describe_data "$folder"
}

# The bars themselves are kept in data/raw, so a dataset that could not be built costs no second download; months that
# a stopped download had got are in data/cache, where the next one finds them.
download_data() {
    local folder="$1" timeframe="$2" bars="$REPO/data/raw/bars_$2.parquet"
    [[ -f "$bars" ]] || fetch_bars "$timeframe" "$bars" || return 1
    run "$PYTHON" "$REPO/scripts/data/build_dataset.py" --bars "$bars" --timeframe "$timeframe" --out "$folder"
}

fetch_bars() {
    local source
    for source in alpaca binance; do
        run "$PYTHON" "$REPO/scripts/data/download_bars.py" --source "$source" --timeframe "$1" --out "$2" && return
    done
    return 1
}

# make_sample_data FOLDER TIMEFRAME sample|no_signal
make_sample_data() {
    local flags=()
    [[ "$3" == sample ]] || flags=(--no-signal)
    # shellcheck disable=SC2086  # several tickers
    run "$PYTHON" "$REPO/scripts/data/make_sample.py" --tickers $SAMPLE_TICKERS --timeframe "$2" --out "$1" \
        ${flags[@]+"${flags[@]}"} || die "could not make a sample market in $1 (reason above)"
}

# Whether the folder holds a sample market of a demonstration, by the source in its manifest.
is_demonstration() { grep -Eq '"source": *"sample market, (planted|no) signal, ' "$(manifest_of "$1")" 2>/dev/null; }

# A folder of datasets named by timeframe holds the one that is traded in a folder of its own.
manifest_of() {
    # shellcheck disable=SC2153  # TIMEFRAME is the launcher's
    if [[ -f "$1/manifest.json" ]]; then printf '%s\n' "$1/manifest.json"; else printf '%s\n' "$1/$TIMEFRAME/manifest.json"; fi
}

# ", planted signal" or ", no signal" of a demonstration's market, else nothing.
law_of() { sed -nE 's/.*"source": *"sample market(, (planted|no) signal), .*/\1/p' "$1/manifest.json"; }

describe_data() {
    local folder="$1"
    [[ -f "$folder/manifest.json" ]] || die "$folder holds no dataset (manifest.json is missing); name another with --data-dir"
    if grep -Eq '"kind": *"synthetic"' "$folder/manifest.json"; then
        say "*** SYNTHETIC DATA$(law_of "$folder"): $folder is a generated market. Its results say nothing about real coins. ***"
        if [[ "$WORK" == trading ]]; then
            say "*** For real bars: deploy a study of real bars; docs/deployment.md says how. ***"
        elif [[ -n "$SAMPLE" ]]; then
            say "*** For real bars: start without --sample and --no-signal. ***"
        else
            say "*** For real bars: move that folder away and start again with a network, under a new --study-name. ***"
        fi
    else
        say "data: real bars in $folder"
    fi
}
