"""Rewards of routing steps."""
