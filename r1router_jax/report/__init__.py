"""Trajectories and scores as pages and tables."""
