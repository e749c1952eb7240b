"""The language that a policy reads and writes: messages, templates, tags."""
