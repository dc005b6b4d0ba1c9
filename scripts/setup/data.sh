# The dataset: there already, or downloaded, or (no network) generated and labelled so.
# Sourced by start_vectorized_training.sh, with PYTHON and REPO set.
# shellcheck shell=bash

DOWNLOAD_DAYS=240
DOWNLOAD_TICKERS=(BTC ETH LTC BCH LINK UNI AAVE)

# ensure_data FOLDER TIMEFRAME
ensure_data() {
    local folder="$1" timeframe="$2"
    if [[ ! -f "$folder/manifest.json" ]]; then
        say "data: no dataset in $folder; trying real bars first"
        download_data "$folder" "$timeframe" || make_sample_data "$folder" "$timeframe"
    fi
    describe_data "$folder"
}

download_data() {
    local folder="$1" timeframe="$2" bars="$REPO/data/raw/bars_$2.parquet"
    run "$PYTHON" "$REPO/scripts/data/download_bars.py" --tickers "${DOWNLOAD_TICKERS[@]}" --timeframe "$timeframe" \
        --start "$(date -u -d "-$DOWNLOAD_DAYS days" +%F)" --end "$(date -u +%F)" --out "$bars" &&
        run "$PYTHON" "$REPO/scripts/data/build_dataset.py" --bars "$bars" --tickers "${DOWNLOAD_TICKERS[@]}" \
            --timeframe "$timeframe" --out "$folder"
}

make_sample_data() {
    say "data: no real bars to be had (reason above); making the SYNTHETIC sample market instead"
    run "$PYTHON" "$REPO/scripts/data/make_sample.py" --timeframe "$2" --out "$1" ||
        die "could not make a sample market in $1 (reason above)"
}

describe_data() {
    local folder="$1"
    [[ -f "$folder/manifest.json" ]] || die "$folder holds no dataset (manifest.json is missing); name another with --data-dir"
    if grep -Eq '"synthetic": *true' "$folder/manifest.json"; then
        say "*** SYNTHETIC DATA: $folder is a generated market. Its results say nothing about real coins. ***"
        say "*** For real bars: move that folder away and start again with a network, under a new --study-name. ***"
    else
        say "data: real bars in $folder"
    fi
}
