"""A study in plain sight: read it without touching it, and draw it on a terminal."""
