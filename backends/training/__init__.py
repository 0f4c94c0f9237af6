"""Trains and evaluates the demo model in `backends/demo`. Runs from a checkout only; README.md says how."""
