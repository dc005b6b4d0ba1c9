"""Training: settings, environments, the loop, evaluation; studies and validation below."""
