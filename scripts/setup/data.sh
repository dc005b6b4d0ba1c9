# The dataset: there already, or downloaded, or (no network) generated and labelled so.
# Sourced by start_vectorized_training.sh, with PYTHON and REPO set.
# shellcheck shell=bash

# ensure_data FOLDER TIMEFRAME
ensure_data() {
    local folder="$1" timeframe="$2"
    if [[ ! -f "$folder/manifest.json" ]]; then
        say "data: no dataset in $folder; trying real bars first"
        download_data "$folder" "$timeframe" || make_sample_data "$folder" "$timeframe"
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

make_sample_data() {
    say "data: no real bars to be had (reason above); making the SYNTHETIC sample market instead"
    run "$PYTHON" "$REPO/scripts/data/make_sample.py" --timeframe "$2" --out "$1" ||
        die "could not make a sample market in $1 (reason above)"
}

describe_data() {
    local folder="$1"
    [[ -f "$folder/manifest.json" ]] || die "$folder holds no dataset (manifest.json is missing); name another with --data-dir"
    if grep -Eq '"kind": *"synthetic"' "$folder/manifest.json"; then
        say "*** SYNTHETIC DATA: $folder is a generated market. Its results say nothing about real coins. ***"
        say "*** For real bars: move that folder away and start again with a network, under a new --study-name. ***"
    else
        say "data: real bars in $folder"
    fi
}
