"""One sentence: where the answers come from.

Answers: what it replies with, and in which form.
Fails: which BackendErrors it raises.
Source: the link to the protocol it speaks.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from backends import Backend
from proxy.context import Context
from proxy.wire.call import Call
from proxy.wire.compose import Composer, new_id, response_object, usage
from proxy.wire.event import Batch, Reply


class Template(Backend):
    """Copy this file, rename it and the class, and name it in the config: use = "your_name"."""

    text: str = "Hello."
    """The text of every answer."""

    @asynccontextmanager
    async def respond(self, call: Call, context: Context) -> AsyncIterator[Reply]:
        yield Reply(200, {}, batches=self._events(call))

    async def _events(self, call: Call) -> AsyncIterator[Batch]:
        composer = Composer(response_object(call.body, response_id=new_id("resp"), created_at=int(time.time())))
        yield [*composer.start(), *composer.open_message()]
        yield composer.delta(self.text)
        yield composer.finish(usage(input_tokens=1, output_tokens=1))
