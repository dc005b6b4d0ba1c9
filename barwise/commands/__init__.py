"""One module per program. Each has a `main(argv)` that returns the exit code; scripts/ and `barwise` call it."""
