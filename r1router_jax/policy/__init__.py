"""A policy: model, parameters and tokenizer that respond to prompts."""
