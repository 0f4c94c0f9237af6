"""Runs the engine of a local model: in a process of its own, supervised, or in threads of this one."""
