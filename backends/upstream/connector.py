"""Connections to upstreams that send a bounded number of interim answers before the answer itself."""

from functools import partial
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError

MAX_INTERIM_ANSWERS = 32
"""The most answers of a status below 200, such as 100 Continue, to one request."""


class Connector(aiohttp.TCPConnector):
    """Opens connections of the class below."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = cast("partial[ResponseHandler]", partial(UpstreamConnection, loop=self._loop))


class UpstreamConnection(ResponseHandler):
    """Fails when its upstream sends too many interim answers. aiohttp would skip them for as long as they come, and
    serve nothing else meanwhile.
    """

    _interim_answers = 0

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Queue an answer's head, unless it is one interim answer too many."""
        if not 100 <= data[0].code < 200:
            self._interim_answers = 0
        else:
            self._interim_answers += 1
            if self._interim_answers == MAX_INTERIM_ANSWERS + 1:
                self.set_exception(HttpProcessingError(message="too many interim answers"))
                if self.transport is not None:
                    self.transport.abort()
            if self._interim_answers > MAX_INTERIM_ANSWERS:
                return
        super().feed_data(data, size)
