"""A deployed policy trades: bars in, the simulator's own orders out, every one of them in a journal.

`account` is the simulator's account with its orders handed out; `trader` is the loop over bars; `replay` and `alpaca`
are the brokers; `feeds` brings bars; `journal` is what a restart and every reader goes by. Imports `train.deploy`, the
market and the environments; only programs import it.
"""
