"""Whether a call names anything that is kept: most calls do not, and go to their backend as they are."""

from proxy.state.references import find_references
from proxy.wire.call import PLAIN_FIELDS, Call, unaffected_by
from proxy.wire.large_bytes import find_text


@unaffected_by(PLAIN_FIELDS)
def is_self_contained(call: Call) -> bool:
    """Return whether nothing in a call has to be found, created or opened before a backend receives it.

    It names no id, continues nothing, wants no conversation, and has no compaction item or trigger. A text that looks
    like one in JSON counts as one. Raises RequestError as `find_references`.
    """
    if call.fact(find_references):
        return False
    return call.body.get("conversation") is None and find_text(call.encoded, b'"compaction') < 0
