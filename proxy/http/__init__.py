"""HTTP in front of the path: connections, routing of requests, bodies, answers; one handler a file."""
