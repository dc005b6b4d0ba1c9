"""Price bars: reading, checks, gap filling and quality reports.

Imports only the base modules of `market` (`errors`, `names`, `files`, `times`, `codec`, `defaults`).
"""
