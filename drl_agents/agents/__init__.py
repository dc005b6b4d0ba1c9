"""The agents and their population variants."""
