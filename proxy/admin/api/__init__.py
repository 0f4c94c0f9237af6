"""The admin API: one file for each kind of thing that operators read or change.

Each has two halves. Functions that take `GatewayParts` run in the processes that answer calls, and return plain JSON;
functions that take an `AdminRequest` run where operators connect, ask the processes, and merge what they say.
"""
