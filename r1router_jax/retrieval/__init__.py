"""Knowledge bases: passages, their vectors, and search."""
