# Provides the dataset: an existing one, downloaded bars or, without a network, a labeled sample market.
# Sourced by start_vectorized_training.sh, with PYTHON, REPO and WORK set.
# shellcheck shell=bash

# Sample market of the demonstration. It has few coins, so that a network learns their common signal quickly.
readonly SAMPLE_TICKERS="BTC ETH LTC"

# ensure_data FOLDER TIMEFRAME [sample | no_signal]: with a sample, nothing is downloaded
ensure_data() {
    local folder="$1" timeframe="$2" sample="${3:-}"
    if [[ ! -f "$folder/manifest.json" && -n "$sample" ]]; then
        say "data: generating the SYNTHETIC sample market in $folder"
        make_sample_data "$folder" "$timeframe" "$sample"
    elif [[ ! -f "$folder/manifest.json" ]]; then
        say "data: no dataset in $folder; downloading real bars"
        if ! download_data "$folder" "$timeframe"; then
            say "data: no real bars available (reason above); generating the SYNTHETIC sample market instead"
            make_sample_data "$folder" "$timeframe" sample
        fi
    fi
    describe_data "$folder"
}

# The bars are kept in data/raw, so a failed build does not require another download. Complete months of an interrupted
# download are cached in data/cache.
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
        ${flags[@]+"${flags[@]}"} || die "could not generate a sample market in $1 (reason above)"
}

# Succeeds if the folder contains a sample market of the demonstration, according to its manifest.
is_demonstration() { grep -Eq '"source": *"sample market, (planted|no) signal, ' "$(manifest_of "$1")" 2>/dev/null; }

# Prints the path of the manifest, which may be in a subfolder named by the timeframe.
manifest_of() {
    # shellcheck disable=SC2153  # TIMEFRAME is the launcher's
    if [[ -f "$1/manifest.json" ]]; then printf '%s\n' "$1/manifest.json"; else printf '%s\n' "$1/$TIMEFRAME/manifest.json"; fi
}

# Prints ", planted signal" or ", no signal" for a sample market of the demonstration, otherwise nothing.
law_of() { sed -nE 's/.*"source": *"sample market(, (planted|no) signal), .*/\1/p' "$1/manifest.json"; }

describe_data() {
    local folder="$1"
    [[ -f "$folder/manifest.json" ]] || die "$folder contains no dataset (manifest.json is missing); choose another folder with --data-dir"
    if grep -Eq '"kind": *"synthetic"' "$folder/manifest.json"; then
        say "*** SYNTHETIC DATA$(law_of "$folder"): $folder is a generated market. Results on it do not apply to real coins. ***"
        if [[ "$WORK" == trading ]]; then
            say "*** To trade real bars, deploy a study of real bars (docs/deployment.md). ***"
        elif [[ -n "$SAMPLE" ]]; then
            say "*** To train on real bars, start without --sample and --no-signal. ***"
        else
            say "*** To train on real bars, move this folder elsewhere and start again online with a new --study-name. ***"
        fi
    else
        say "data: real bars in $folder"
    fi
}
