"""Report page of a study, and its plots.

`collect` reads the files, `verdict` writes the conclusions, and the other modules draw. The package imports `findings`
and the packages below it. `train.finish` and the programs import this package.
"""
