"""The routing loop: from a question to a trajectory."""
