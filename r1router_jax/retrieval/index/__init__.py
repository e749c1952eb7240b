"""Indexes over vectors and over words."""
