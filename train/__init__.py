"""One training run: environment, device, rollouts, checkpoints, evaluation.

Floors above `market`, each importing only those below it:

1. `records` (names, errors, files), `validation` (numbers)
2. `train` itself (one run), `store` (database)
3. `study` (one trial)
4. `runner` (workers), `findings` (a study read back), `watch` (dashboard), `lookahead`
5. `report` (page and pictures), `deploy` (deployments)
6. `train.finish` and `train.worker_program`, which join runner, findings and report
"""
