"""Market data: download, checks, dataset construction and reports, and a synthetic sample market.

This package does not depend on training. The modules `errors`, `names`, `files`, `times`, `codec` and `defaults` import
no other module of it. `bars` imports only these modules, the dataset modules in this folder also import `bars`, and
`sources` (exchanges) may import all of them.
"""
