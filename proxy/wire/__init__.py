"""The lowest layer: what a call, a reply and an error are. Pure: no I/O, no server, no configuration."""
