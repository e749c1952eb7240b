"""R1-Router in JAX: a multimodal policy that learns which knowledge base to ask."""
