"""What a trace has of the content of a call, for teams that want it: nothing, its structure, or its texts.

Texts are bounded, files and images are left out, and what looks like a key is replaced. Source:
https://github.com/open-telemetry/semantic-conventions-genai/blob/v0.1.0/docs/gen-ai/client-inference.md (opt-in)
"""

from collections.abc import Iterator
from typing import Any

import orjson

from proxy.context import Context
from proxy.telemetry.vocabulary import Capture
from proxy.wire.call import Call
from proxy.wire.key_patterns import LONGEST_CHARS, redact_keys
from proxy.wire.token_estimate import NO_TEXT
from proxy.wire.transcript import Transcript

MAX_CHARS = 8192
"""How much of the texts of an input, and of an output, is captured, in characters; its end is what is new."""
MAX_ROLE_CHARS = 32


async def capture(context: Context, call: Call, mode: Capture) -> None:
    """Add the content of a call to the span of the model's call, and to what the admin API shows of the request."""
    size = call.size_bytes + context.transcript.response_bytes
    content = await context.run(size, captured_content, call, context.transcript, mode)
    context.trace.describe_call(content)
    if context.trace.history is not None:
        context.trace.history.content = content


def captured_content(call: Call, transcript: Transcript, mode: Capture) -> dict[str, str]:
    """Return the attributes of a call's content."""
    final = transcript.response.get("output")
    if not isinstance(final, list) or not final:
        final = [*transcript.items, *(item for _, item in transcript.cut_open_items())]
    given = call.body.get("input")
    given = [{"role": "user", "content": given}] if isinstance(given, str) else given
    system = call.body.get("instructions")
    found = {
        "gen_ai.system_instructions": [_part(system, mode)] if isinstance(system, str) else [],
        "gen_ai.input.messages": _messages(given, mode),
        "gen_ai.output.messages": _messages(final, mode),
    }
    return {name: orjson.dumps(messages).decode() for name, messages in found.items() if messages}


def _messages(items: Any, mode: Capture) -> list[dict[str, Any]]:
    """Return the last items as messages, as far as they fit."""
    messages: list[dict[str, Any]] = []
    left = MAX_CHARS
    for item in reversed(items if isinstance(items, list) else []):
        parts = []
        for text in _texts(item):
            parts += [_part(text, mode, left)] if left > 0 else []
            left -= len(text)
        role = item.get("role") if isinstance(item, dict) else None
        role = role if isinstance(role, str) and len(role) <= MAX_ROLE_CHARS else "assistant"
        messages += [{"role": redact_keys(role), "parts": parts}] if parts else []
        if left <= 0:
            break
    return messages[::-1]


def _part(text: str, mode: Capture, limit: int = MAX_CHARS) -> dict[str, Any]:
    """Return a text. It is cut after keys were replaced: the beginning of one would not be found."""
    if mode == "metadata":
        return {"type": "text", "chars": len(text)}
    shown = text[: limit + LONGEST_CHARS].encode(errors="replace").decode()  # a lone surrogate cannot be written
    return {"type": "text", "content": redact_keys(shown)[:limit]}


def _texts(item: Any) -> Iterator[str]:
    """Yield the texts in an item, in order."""
    left = [item]
    while left:
        each = left.pop()
        if isinstance(each, str):
            if each and not each.startswith("data:"):
                yield each
        elif isinstance(each, list):
            left += reversed(each)
        elif isinstance(each, dict):
            left += reversed([inner for name, inner in each.items() if name not in NO_TEXT])
