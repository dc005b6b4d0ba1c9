"""Agents based on elegantrl 0.3.6, and the hosts' DRLAgent factory."""
