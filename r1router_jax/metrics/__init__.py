"""Scores answers and trajectories."""
