"""An HTTP/1.1 client for one origin: a pool of connections, each an `asyncio.Protocol` with a parser of httptools.

This is the one place where the gateway goes below a library. aiohttp's ClientSession was 60 % of what relaying a call
costs, and many of its defaults have to be turned off in a gateway: cookies, redirects, decompression, a limit on
connections, a timeout for the whole answer. What is left is small enough to be written out:

    request.py     where requests go, and their heads as bytes
    head.py        the head of an answer -> status and fields; refuses what is not valid HTTP
    parser.py      bytes of a connection -> heads and bodies of answers
    timed.py       what is waited for on a connection, and until when
    connection.py  one connection: writing, reading, backpressure
    dial.py        opens connections: addresses, TLS
    tunnel.py      ... through a proxy, by CONNECT
    pool.py        Client: reuses connections, retries on a fresh one, hands out Answers

What it leaves out: cookies, redirects, decompression, HTTP/2, pipelining, `Expect: 100-continue`. Trailers are read,
bounded and dropped.
"""

from backends.upstream.http1.dial import Dialer, create_tls_context
from backends.upstream.http1.head import AnswerHead, InvalidHttp
from backends.upstream.http1.parser import ResponseParser
from backends.upstream.http1.pool import Client, HttpAnswer
from backends.upstream.http1.request import BodySource, Origin, RequestHeads, encode_head, encode_length
from backends.upstream.http1.timeouts import Timeouts
from backends.upstream.http1.tunnel import Proxy

__all__ = [
    "AnswerHead", "BodySource", "Client", "Dialer", "HttpAnswer", "InvalidHttp", "Origin", "Proxy", "RequestHeads",
    "ResponseParser", "Timeouts", "create_tls_context", "encode_head", "encode_length",
]  # fmt: skip
