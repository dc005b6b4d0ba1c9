"""Names of attributes and files of a study."""

from __future__ import annotations

DEFAULT_STORAGE = "sqlite:///databases/optuna_cappuccino.db"  # in the repository
UUID = "uuid"  # uuid of the study
IDENTITY, FAILURE, WORKER, RETRY_OF, KILLS = "identity", "failure", "worker", "retry_of", "kills"
CODE_VERSION = "code_version"
DATA_DIR = "data_dir"  # data folder of the study's last run
TARGET = "target"  # study attribute: target number of finished trials of its last command
HOLDOUT_BEGUN = "holdout_begun"  # policies whose hold-out evaluation has started, which already counts as an evaluation
LOOKED = "handover_look_"  # followed by a hash: a policy was scored on the hold-out for a deployment
REFIT = "refit_"  # followed by trial_seed: hashes of a finished refit
STORED_FILES = "files_"  # followed by a set: hashes of files in the artifact store that belong to no split
CHECKPOINT = "checkpoint_"  # followed by a split's number: hash of its last checkpoint in the artifact store
TESTED_BARS = "tested_bars"  # times of the bars that the study's trials are tested on
HOLDOUT_SCORE = "holdout_score"  # score of the winner, written once (`train.findings.holdout`)
KILLED, INTERRUPTED = "killed", "interrupted"  # prefixes of failure reasons
MISFIT = "queued outside the search space"  # prefix of a failure reason
COMMAND = "command"  # user attribute: the last command line of the study
SCORE_FILE = "holdout.json"
OWNER_FILE, SETTINGS = "study.json", "settings.json"
