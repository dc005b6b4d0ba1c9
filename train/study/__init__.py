"""An Optuna study of training runs."""
