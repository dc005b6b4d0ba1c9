"""Bars, data sets and where they come from: download, check, build, describe; the sample market.

Knows nothing about training. The ground floor is `errors`, `names`, `files`, `times`, `codec` and `defaults`; `bars`
stands on it, the data sets of this folder on `bars`, and `sources` (exchanges) on all of them.
"""
