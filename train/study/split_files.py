"""Files of a split and its study: equity curves, closing prices, and the hash of the settings."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from market.files import write_whole
from train.config import TrainConfig
from train.records.record_files import plain
from train.records.results import closes_file
from train.study.folds import FoldedData

if TYPE_CHECKING:  # loads torch, which readers of a study do not need
    from train.evaluator import EpisodeRecord
CAME_LATER = ("fee_ramp", "weight_decay", "dropout", "remove_drift")  # settings added after commit c6a6d1f


def settings_sha256(train: TrainConfig, env: Mapping[str, Any]) -> str:
    """Return the hash of the training settings without seed and device.

    Settings that were added later enter the hash only if they differ from their default, so earlier hashes stay valid.
    """
    apart = ("seed", "gpu_id", "rocm_settings")
    values, defaults = asdict(train), asdict(TrainConfig())
    unchanged = [name for name in CAME_LATER if values[name] == defaults[name]]
    rest = {name: value for name, value in values.items() if name not in (*apart, *unchanged)}
    text = json.dumps(plain({"train": rest, "env": dict(env)}), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_equity(path: Path, records: Sequence[EpisodeRecord], time_s: np.ndarray) -> None:
    """Write the equity curves of all segments, one after another.

    Columns, all (M,): `segment` number, `bar` index in the dataset, `time_s` (UTC, bar close), `equity`,
    `benchmark_equity`, `exposure`, and `turnover`, `fees`, `trades` of the step that led to the bar (0 on the first bar
    of a segment).
    """
    columns = {
        "segment": np.concatenate([np.full(len(r.bars), i) for i, r in enumerate(records)]),
        "bar": np.concatenate([r.bars for r in records]),
        "time_s": np.concatenate([time_s[r.bars] for r in records]),
    }
    for name in ("equity", "benchmark_equity", "exposure"):
        columns[name] = np.concatenate([getattr(r, name) for r in records])
    for name in ("turnover", "fees", "trades"):
        columns[name] = np.concatenate([np.insert(getattr(r, name), 0, 0) for r in records])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **columns)
    write_whole(path, buffer.getvalue())


def write_closes(study_folder: Path, data: FoldedData) -> None:
    """Write the study's closes (T, A), its filled bars and its coins, unless the file exists.

    The hold-out is not included.
    """
    path = closes_file(study_folder, data.timeframe)
    if path.exists():
        return
    buffer = io.BytesIO()
    columns = {"close": np.asarray(data.dataset.price), "tickers": np.array(data.dataset.tickers),
               "filled": np.asarray(data.dataset.filled)}  # fmt: skip
    np.savez_compressed(buffer, allow_pickle=False, sha256=np.array(data.dataset.sha256), **columns)
    write_whole(path, buffer.getvalue())
