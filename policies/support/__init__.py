"""What several policies share: globs, tool types, walking a body, integers, identifiers."""
