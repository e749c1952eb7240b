"""Samples tokens: groups of responses to a prompt, any number of prompts."""
