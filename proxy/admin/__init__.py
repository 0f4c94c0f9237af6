"""The second listener, for operators: metrics, health, admin API and console."""
