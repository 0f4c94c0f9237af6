"""What an operator sees of the gateway: records, traces, logs, audit."""
