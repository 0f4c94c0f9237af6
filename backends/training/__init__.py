"""How `backends/demo` came to be: our own text, a small network, and the test it passed."""
