"""Meshes, parallel strategies, and jobs of several hosts."""
