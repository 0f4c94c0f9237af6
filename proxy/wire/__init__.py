"""The ground floor: what a call, a reply and an error are. Pure: no I/O, no server, no configuration."""
