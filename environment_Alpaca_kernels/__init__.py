"""Native steps of `environment_Alpaca_vectorized.py`: `cpu` on numba, `gpu` on Triton, imported when needed."""
