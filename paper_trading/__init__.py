"""A deployed policy trades: bars in, the simulator's own orders out, every one of them in a journal.

`traded_account` is the simulator's account with its orders handed out, `trader` the loop over bars; `replay_venue` and
`alpaca_venue` are the brokers, `feeds` brings the bars; `journal` is what a restart and every reader goes by. Imports
`train.deploy`, the market and the environments; only programs import it.
"""
