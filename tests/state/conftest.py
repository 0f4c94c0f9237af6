"""The stores of tests/stores: what is kept works on every one of them."""

from tests.stores.conftest import advance, key, store, subject

__all__ = ["advance", "key", "store", "subject"]
