"""Chooses the trajectories of a teacher that become training rows."""
