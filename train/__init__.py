"""One training run: environment, device, rollouts, checkpoints and evaluation.

The packages form layers above `market`. Each layer imports only the layers below it:

1. `records` (names, errors, files), `validation` (numerical functions)
2. modules directly in `train` (one run), `store` (database)
3. `study` (one trial)
4. `runner` (workers), `findings` (analysis of a study), `watch` (dashboard), `lookahead`
5. `report` (page and pictures), `deploy` (deployments)
6. `train.finish` and `train.worker_program`, which combine runner, findings and report
"""
