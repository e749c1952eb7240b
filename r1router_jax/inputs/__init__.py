"""Turns messages and images into the padded arrays that the policy reads."""
