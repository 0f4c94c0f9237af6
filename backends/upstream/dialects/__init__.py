"""Differences between servers of the Responses protocol: profiles, refused fields, repairs of their streams."""
