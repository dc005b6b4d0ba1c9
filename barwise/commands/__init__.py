"""One module per program: its flags, and `main(argv) -> exit code`. scripts/ and the command `barwise` start them."""
