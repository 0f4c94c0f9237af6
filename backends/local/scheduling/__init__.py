"""Decides which jobs run when, and with which others."""
