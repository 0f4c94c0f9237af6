"""Keeps what Python needs of a thread of the library between its callbacks.

Python did not start that thread, so each callback would make a state for it and drop it again, with memory for its
frames that is mapped and unmapped: 16 us for each token, and an interrupt of all other threads.
Source: https://docs.python.org/3/c-api/init.html#non-python-created-threads
"""

import ctypes
import threading

_this_thread = threading.local()  # is dropped with the state


def keep_thread_state() -> None:
    """Keep the state of the thread that calls this, until the process ends."""
    if not hasattr(_this_thread, "is_kept"):
        ctypes.pythonapi.PyGILState_Ensure()  # the release that would drop the state never comes
        _this_thread.is_kept = True
