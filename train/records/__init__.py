"""Names, errors, records and files of a study's results.

This is the lowest layer of `train`: every other folder may import it, and it imports only `market`.
"""
