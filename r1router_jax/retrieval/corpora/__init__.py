"""Readers of corpora, which write passages."""
