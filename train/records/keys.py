"""Names under which a study keeps things in its database and its folder."""

from __future__ import annotations

DEFAULT_STORAGE = "sqlite:///databases/optuna_cappuccino.db"  # in the repository
UUID = "uuid"  # of the study
IDENTITY, FAILURE, WORKER, RETRY_OF, KILLS = "identity", "failure", "worker", "retry_of", "kills"
CODE_VERSION = "code_version"
DATA_DIR = "data_dir"  # where the study read its data last
TARGET = "target"  # study's: finished trials it is to have, by its last command
HOLDOUT_BEGUN = "holdout_begun"  # whose policies are being scored on the held-out bars: from here on it is a look
LOOKED = "handover_look_"  # and a hash: a policy was scored on held-out bars for a deployment
REFIT = "refit_"  # and trial_seed: hashes of a finished refit
STORED_FILES = "files_"  # and a set: hashes of files in the artifact store that belong to no split
CHECKPOINT = "checkpoint_"  # and a split's number: hash of its last checkpoint in the artifact store
TESTED_BARS = "tested_bars"  # times of the bars that the study's trials are tested on
HOLDOUT_SCORE = "holdout_score"  # of the winner, once (`train.findings.holdout`)
KILLED, INTERRUPTED = "killed", "interrupted"  # how the reason of such a failure begins
MISFIT = "queued outside the search space"  # likewise
COMMAND = "command"  # user attribute: the last command line of the study
SCORE_FILE = "holdout.json"
OWNER_FILE, SETTINGS = "study.json", "settings.json"
