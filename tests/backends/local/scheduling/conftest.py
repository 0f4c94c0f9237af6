"""Fixtures: tiny models."""

from tests.backends.local.tiny_models import endless_model, generator, greeting_model, no_batch_sharing, random_model

__all__ = ["endless_model", "generator", "greeting_model", "no_batch_sharing", "random_model"]
