"""Encoders of texts and images, and cross-encoders."""
