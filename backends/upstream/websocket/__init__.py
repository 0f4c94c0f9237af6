"""A client for upstreams that speak WebSocket mode: for each connection of a caller one connection to the upstream.

    messages.py   calls -> messages; messages -> frames of a stream
    dial.py       opens connections, and remembers for a while that an upstream refuses them
    connection.py one connection: its lanes, pings, and its end
    answers.py    what a turn brings, read like the answer to a POST
    steering.py   what is said beside the events of turns
    link.py       the connection for one connection of a caller: opened for a turn, replaced when it was lost

aiohttp's client does the handshake and the frames. Its redirects, cookies, compression and heartbeat are switched off.
"""

from backends.upstream.websocket.answers import FixedAnswer, TurnAnswer
from backends.upstream.websocket.dial import SocketDialer
from backends.upstream.websocket.link import UpstreamLink

__all__ = ["FixedAnswer", "SocketDialer", "TurnAnswer", "UpstreamLink"]
