"""The second listener, for operators: metrics and health."""
