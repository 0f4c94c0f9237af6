"""The console: pages over the admin API, made on the server, that work without a script but for charts that move."""
