"""From a key to the caller it belongs to."""
