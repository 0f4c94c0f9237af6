"""A client for upstreams that speak WebSocket mode: for each connection of a caller one connection to the upstream.

    messages.py      calls -> messages; messages -> events, and runs of messages that nothing follows
    frame_socket.py  the protocol on one connection: handshake, frames, memory, pings, and its end
    frame_writer.py  what is written there
    dial.py          opens connections, and remembers for a while that an upstream refuses them
    connection.py    one connection: its lanes and turns
    answers.py       what a turn brings
    steering.py      what is said beside the events of turns
    link.py          the connection for one connection of a caller: opened for a turn, replaced when it was lost

The transport is that of the HTTP client (`http1/dial.py`), the frames are those of `proxy/wire/frames.py`.
"""

from backends.upstream.websocket.answers import FixedAnswer, TurnAnswer
from backends.upstream.websocket.dial import SocketDialer
from backends.upstream.websocket.link import UpstreamLink
from backends.upstream.websocket.messages import LAST

__all__ = ["LAST", "FixedAnswer", "SocketDialer", "TurnAnswer", "UpstreamLink"]
