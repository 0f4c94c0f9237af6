"""Fixtures: tiny models."""

from tests.backends.local.tiny_models import babbler, clock, distrust, generator, greeter

__all__ = ["babbler", "clock", "distrust", "generator", "greeter"]
