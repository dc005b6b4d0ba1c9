"""The page about a study, and its pictures.

`collect` reads, `verdict` judges, the other modules draw. Imports `findings` and below; `train.finish` and the
programs import it.
"""
