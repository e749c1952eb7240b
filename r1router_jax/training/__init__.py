"""Rollouts, losses, updates and checkpoints."""
