"""Answers the questions of the admin API in one process of the gateway."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from proxy.admin.api import (
    cache,
    config,
    identifiers,
    keys,
    me,
    models,
    policies,
    requests,
    sessions,
    spend,
    targets,
    usage,
)
from proxy.admin.parts import GatewayParts
from proxy.admin.problem import Problem

log = structlog.get_logger()

ANSWERS: Mapping[str, Callable[[GatewayParts, Mapping[str, Any]], Awaitable[Any]]] = {
    "budgets": spend.read_budgets,
    "cache_entries": cache.read_entries,
    "change_identifier": identifiers.change_identifier,
    "change_key": keys.change_key,
    "close_session": sessions.close_session,
    "drain": targets.drain,
    "end_sessions": sessions.end_sessions,
    "forget": cache.forget_team,
    "identifiers": identifiers.read_identifiers,
    "keys": keys.read_keys,
    "models": models.read_models,
    "open_session": sessions.open_session,
    "owner_of_identifier": identifiers.find_owner,
    "policies": policies.read_policies,
    "preview_file": config.preview_file,
    "preview_text": config.preview_text,
    "purge": cache.purge_entries,
    "read_session": sessions.read_session,
    "request": requests.describe,
    "requests": requests.find,
    "sessions": sessions.read_sessions,
    "spend": spend.read_spend,
    "state": me.read_state,
    "targets": targets.read_targets,
    "try": policies.try_request,
    "usage": usage.read_table,
}


@dataclass(frozen=True, slots=True)
class ProcessAnswers:
    """Answers questions from the parts of this process."""

    parts: GatewayParts

    async def __call__(self, word: str, argument: Any) -> Any:
        """Return the answer to a word as {"value": ...}, or {"problem": ...}; a fault is a problem too."""
        try:
            return {"value": await ANSWERS[word](self.parts, argument)}
        except Problem as problem:
            return {"problem": problem.packed()}
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("admin.crashed", question=word)
            return {"problem": Problem(500, "internal_error", "The gateway failed to answer.").packed()}

    async def ask_self(self, word: str, argument: Any, *, of_all: bool) -> list[Any]:
        """Answer where this process is the only one."""
        del of_all
        return [await self(word, argument)]
