"""Who can lift a refusal, by its code, and the sentence that says so.

    client      sends another request: the message says what is allowed
    team admin  or the operator: issues a key
    operator    changes a policy, raises a limit, restores a part of the gateway
    none        no rule refused: an upstream, the network or the gateway itself failed
"""  # fmt: skip

from typing import Literal

from proxy.wire.errors import BackendRefusal, HeadgateError

LiftedBy = Literal["client", "team admin", "operator", "none"]

OPERATOR = frozenset({
    "backend_drained", "background_queue_full", "connections_exhausted", "cross_site_request", "local_model_busy",
    "memory_exhausted", "model_not_found", "token_not_allowed", "too_many_calls", "too_many_connections",
    "too_many_values", "upstream_busy", "upstream_queue_full", "upstream_too_large",
})  # fmt: skip
OUTAGES = frozenset({
    "audit_unavailable", "budget_unavailable", "deadline_exceeded", "issuer_unavailable", "keys_unavailable",
    "local_model_unavailable", "state_unavailable", "upstream_auth", "upstream_limited",
})  # fmt: skip
"""A part that the gateway needs is unavailable: the operator restores it, and there is no rule to lift."""
NOT_REFUSED = frozenset({
    "cancel_timeout", "internal_error", "local_model_constraint_failed", "local_model_failed", "process_lost",
    "server_shutdown", "upstream_connect_timeout", "upstream_cut", "upstream_error", "upstream_invalid_response",
    "upstream_reset", "upstream_stalled", "upstream_timeout", "upstream_total_timeout", "upstream_unreachable",
    "write_timeout",
})  # fmt: skip
FORM_REASONS = frozenset({
    "alternative_field", "lookalike", "malformed", "mismatch", "no_type", "not_a_boolean", "not_a_string",
    "not_an_array", "not_an_object", "too_many_values", "unresolved", "userinfo", "value_not_a_string",
})  # fmt: skip
"""Reasons of policies that no setting changes: the request does not have a form that can be checked."""
SENTENCES = {
    "operator": "The operator of this gateway can lift this.",
    "outage": "Try again later, or ask the operator of this gateway.",
    "team admin": "An admin of your team or the operator of this gateway can issue a key.",
}
PERSON = "operator"
"""Messages with this word already say who can help."""


def lifted_by(code: str | None) -> LiftedBy:
    """Return who can lift a refusal with this code. The code of a policy is its name, a dot and a reason."""
    policy, _, reason = (code or "").rpartition(".")
    if code in OPERATOR or code in OUTAGES or (policy and reason not in FORM_REASONS):
        return "operator"
    if code == "invalid_api_key":
        return "team admin"
    return "none" if code in NOT_REFUSED else "client"


def add_contact(error: HeadgateError, contact: str | None = None) -> None:
    """Add to an error's message, once, who can lift the refusal, and how to reach that person."""
    if isinstance(error, BackendRefusal):  # it has an upstream's words
        return
    sentence = SENTENCES.get("outage" if error.code in OUTAGES else lifted_by(error.code))
    if sentence is not None and PERSON not in error.message:
        error.message += f" {sentence}"
    known = "" if contact is None else f" Contact: {contact}"
    if known and PERSON in error.message and not error.message.endswith(known):
        error.message += known
