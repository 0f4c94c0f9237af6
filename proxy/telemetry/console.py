"""Log lines for a terminal: short ones for calls, and those of structlog for everything else."""

from collections.abc import MutableMapping
from typing import Any

import structlog

CALL_EVENTS = frozenset({"request.finished", "background.finished", "cache.refreshed"})
RESET, DIM, GREEN, YELLOW, RED = "\x1b[0m", "\x1b[2m", "\x1b[32m", "\x1b[33m", "\x1b[31m"


def render(logger: Any, level: str, fields: MutableMapping[str, Any]) -> str:
    """Return a line, as the last processor of structlog. The fields have the level and a timestamp."""
    if fields.get("event") in CALL_EVENTS:
        return _render_call(fields)
    return str(_render_other(logger, level, fields))


_render_other = structlog.dev.ConsoleRenderer()


def _render_call(fields: MutableMapping[str, Any]) -> str:
    """Return a call as a person reads it: "12:00:01 200 POST /v1/responses anna gpt-5 > openai 812 ms ..."."""
    status = fields.get("status") or 0
    colour = GREEN if status < 400 and "code" not in fields else YELLOW if status < 500 else RED
    time = str(fields.get("timestamp", ""))[11:19]
    way = " ".join(str(fields[name]) for name in ("method", "path") if name in fields) or fields["event"]
    parts = [f"{DIM}{time}{RESET}", f"{colour}{status or '-'}{RESET}", way]
    parts += [str(fields[name]) for name in ("caller", "model") if name in fields]
    parts += [f"> {fields['backend']}"] if "backend" in fields else []
    parts += [f"{fields['duration_ms']:.0f} ms"] if "duration_ms" in fields else []
    parts += [f"{fields['input_tokens']}+{fields.get('output_tokens', 0)} tokens"] if "input_tokens" in fields else []
    parts += [f"${fields['cost_usd']:.6f}"] if "cost_usd" in fields else []
    parts += [f"cache {fields['cache']}"] if fields.get("cache") not in (None, "bypass") else []
    parts += [f"{colour}{fields['code']}{RESET}"] if "code" in fields else []
    return " ".join([*parts, f"{DIM}{fields.get('request_id', '')}{RESET}"])
