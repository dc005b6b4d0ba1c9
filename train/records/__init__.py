"""Names, errors, records and files of a study's results.

This is the lowest layer of `train`. All other packages may import it, and it imports only `market`.
"""
