"""Authentication: from a key or token to its caller."""
