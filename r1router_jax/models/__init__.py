"""Flax models, and their weights from and to Hugging Face."""
