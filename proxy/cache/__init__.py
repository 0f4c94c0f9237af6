"""Answers given before: the key of a call, and the kept reply under it."""
