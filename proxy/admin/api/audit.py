"""The audit: its lines, and whether they were altered."""

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest, Moment, Parameters, Searched
from proxy.admin.audit_filter import Line, LineFilter

MOST = 500
KNOWN = ("event", "policy", "decision", "code", "param", "caller", "model", "request_id", "operator")
UNSHOWN = frozenset({*KNOWN, "time", "seq", "previous", "hash", "version"})


class AuditFilter(Parameters):
    event: Searched = ""
    """What happened to the gateway or its keys: key.created, config.loaded ..."""
    policy: Searched = ""
    decision: Searched = ""
    """allowed, changed, refused, reported, stopped or unavailable."""
    caller: Searched = ""
    code: Searched = ""
    model: Searched = ""
    operator: Searched = ""
    request_id: Searched = ""
    since: Moment | None = None
    until: Moment | None = None
    limit: Annotated[int, Field(ge=1, le=MOST)] = 100


class AuditEntry(TypedDict):
    file: str
    seq: int | None
    time: str | None
    event: str | None
    policy: str | None
    decision: str | None
    code: str | None
    param: str | None
    caller: str | None
    model: str | None
    request_id: str | None
    operator: str | None
    details: dict[str, str]


class AuditList(TypedDict):
    entries: list[AuditEntry]
    files: list[str]
    is_complete: bool


class AuditedFile(TypedDict):
    file: str
    lines: int
    is_intact: bool
    altered_line: int | None
    head: str | None
    detail: str | None


class AuditVerification(TypedDict):
    files: list[AuditedFile]


async def list_audit(request: AdminRequest) -> AuditList:
    """Return the newest lines that the filter selects."""
    query: AuditFilter = request.query
    named = {name: value for name, value in query.model_dump(include={*KNOWN}).items() if value}
    files = request.services.audit
    done = await files.search(LineFilter(named, query.since, query.until), query.limit)
    return AuditList(
        entries=[entry_of(*pair) for pair in done.found], files=[path.name for path in files.paths],
        is_complete=done.is_complete,
    )  # fmt: skip


def entry_of(file: str, line: Line) -> AuditEntry:
    """Return a line as it is shown."""
    texts: Any = {name: None if line.get(name) is None else str(line[name]) for name in (*KNOWN, "time")}
    seq = line.get("seq")
    details = {name: str(value) for name, value in line.items() if name not in UNSHOWN}
    whole: Any = {**texts, "file": file, "seq": seq if isinstance(seq, int) else None, "details": details}
    entry: AuditEntry = whole
    return entry


async def verify_audit(request: AdminRequest) -> AuditVerification:
    """Return for each file whether a line of it was altered."""
    found: Any = await request.services.audit.verify()
    return AuditVerification(files=found)


ENDPOINTS = (
    AdminEndpoint("GET", "/audit", "The newest lines of the audit", list_audit, AuditList, AuditFilter, is_global=True),
    AdminEndpoint(
        "GET", "/audit/verification", "Whether lines of the audit were altered", verify_audit, AuditVerification,
        is_global=True,
    ),
)  # fmt: skip
