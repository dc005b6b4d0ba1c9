"""Bars of prices: reading, checking, filling gaps, and the report about their quality.

Imports the ground floor of `market` only (`errors`, `names`, `files`, `times`, `codec`, `defaults`).
"""
