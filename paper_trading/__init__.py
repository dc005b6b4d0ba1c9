"""Paper and live trading of a deployed policy, with the simulator's order sizing and a complete journal.

`trader` is the loop over bars. `traded_account` sizes orders with the simulator's code. `replay_venue` and
`alpaca_venue` are the brokers, and `feeds` supplies the bars. `journal` is the record that restarts and all readers
rely on. The package imports `train.deploy`, the market and the environments. Only programs import the package.
"""
