"""`generate: false`: a response without output, which only prepares a conversation."""

import time

from proxy.wire.call import Call
from proxy.wire.compose import Composer, new_id, response_object, usage
from proxy.wire.items import JSON


def warm_up_response(call: Call) -> JSON:
    """Return a completed response whose id can be continued, for a call that wants no output."""
    body = {"model": call.model, **call.body}
    composer = Composer(response_object(body, response_id=new_id("resp"), created_at=int(time.time())))
    composer.finish(usage(input_tokens=0, output_tokens=0))
    return composer.response
