"""What a study leaves behind: names, errors, records and the files that hold them.

The ground floor. Every other folder of `train` may import it; it imports `market` only.
"""
