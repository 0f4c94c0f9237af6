"""Fixtures: tiny models."""

from tests.backends.local.tiny_models import endless_model, greeting_model, random_model

__all__ = ["endless_model", "greeting_model", "random_model"]
