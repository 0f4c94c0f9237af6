"""The stores of tests/stores: what is kept works on every one of them."""

from tests.stores.conftest import advance, store, subject

__all__ = ["advance", "store", "subject"]
