"""Runs a method over many questions, and makes tables of its scores."""
