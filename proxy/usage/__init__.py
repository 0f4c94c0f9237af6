"""What teams, callers and keys have used, hour by hour: counted in the process, kept in `[state]`, read by a query."""
