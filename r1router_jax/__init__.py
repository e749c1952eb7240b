"""R1-Router in JAX: a policy that learns which knowledge base to ask."""
