"""The pages of the console: what each asks the admin API for, and the template that shows it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import Field

from proxy.admin.api import audit, cache, keys, models, now, policies, requests, sessions, spend, targets
from proxy.admin.api.dispatch import validated
from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest, NoParameters, Parameters, Searched
from proxy.admin.roles import EVERYBODY, OWNERS, Operator
from proxy.config.admin_table import Role

Values = Mapping[str, Any]
Read = Callable[[AdminRequest], Awaitable[Values]]
"""Returns what a template shows."""


@dataclass(frozen=True, slots=True)
class ConsolePage:
    """One page. `query` is what its address can say; without `endpoint` everybody who is signed in sees it."""

    path: str
    title: str
    template: str
    read: Read
    query: type[Parameters] = NoParameters
    roles: frozenset[Role] = EVERYBODY
    is_global: bool = False
    in_menu: bool = True

    def is_for(self, operator: Operator) -> bool:
        """Whether an operator may see it."""
        return operator.role in self.roles and not (self.is_global and operator.team)


async def show_now(request: AdminRequest) -> Values:
    """Return the numbers of now."""
    return {"report": await now.get_now(request)}


async def show_requests(request: AdminRequest) -> Values:
    """Return the last requests that the filter selects."""
    return {"found": await requests.list_requests(request), "filter": request.query}


async def show_request(request: AdminRequest) -> Values:
    """Return one request."""
    return {"detail": await requests.get_request(request)}


class SpendPage(spend.SpendFilter):
    """What the address of the page can say."""

    budget: Searched = ""
    """The policy whose end users or values of metadata are listed."""
    after: Annotated[str, Field(max_length=256)] = ""


async def show_spend(request: AdminRequest) -> Values:
    """Return what was used, its course by day or hour, and budgets."""
    asked: SpendPage = request.query
    report = await spend.get_spend(request)
    course = await spend.get_spend(replace(request, query=asked.model_copy(update={"by": _period_of(report)})))
    page = spend.BudgetFilter(policy=asked.budget, after=asked.after)
    budgets = await spend.list_budgets(replace(request, query=page))
    return {"report": report, "course": course, "budgets": budgets, "filter": asked}


def _period_of(report: spend.SpendReport) -> str:
    """Return by what the course of a report is shown."""
    lasts = datetime.fromisoformat(report["until"]) - datetime.fromisoformat(report["since"])
    return "hour" if lasts <= timedelta(days=3) else "day"


async def show_keys(request: AdminRequest) -> Values:
    """Return the issued keys."""
    return {"keys": (await keys.list_keys(request))["keys"], "made": None}


async def show_policies(request: AdminRequest) -> Values:
    """Return the policies and their decisions."""
    return {"policies": (await policies.list_policies(request))["policies"]}


async def show_trial(request: AdminRequest) -> Values:
    """Return an empty form to try a request."""
    del request
    return {"body": EXAMPLE, "caller": "", "report": None, "fault": None}


async def show_config(request: AdminRequest) -> Values:
    """Return what the file of the config would change."""
    preview = await request.services.processes.one("preview_file") if request.services.processes.reload else None
    return {"preview": preview, "text": "", "compared": None}


async def show_cache(request: AdminRequest) -> Values:
    """Return what the cache has done."""
    return {"cache": await cache.get_cache(request)}


async def show_models(request: AdminRequest) -> Values:
    """Return the models."""
    return {"found": await models.list_models(request), "filter": request.query}


async def show_targets(request: AdminRequest) -> Values:
    """Return the targets."""
    return {"targets": (await targets.list_targets(request))["targets"]}


async def show_audit(request: AdminRequest) -> Values:
    """Return the newest lines of the audit that the filter selects."""
    return {"found": await audit.list_audit(request), "filter": request.query}


async def show_verification(request: AdminRequest) -> Values:
    """Return whether the audit was altered."""
    return {"files": (await audit.verify_audit(request))["files"]}


async def show_operators(request: AdminRequest) -> Values:
    """Return who is signed in."""
    found = await sessions.list_sessions(request)
    return {"sessions": found["sessions"], "is_complete": found["is_complete"]}


EXAMPLE = '{\n  "model": "gpt-5",\n  "input": "Hello!"\n}'
PAGES = (
    ConsolePage("/admin/", "Now", "now.html", show_now),
    ConsolePage("/admin/requests", "Requests", "requests.html", show_requests, requests.RequestFilter),
    ConsolePage("/admin/requests/{id}", "Request", "request.html", show_request, in_menu=False),
    ConsolePage("/admin/spend", "Spend", "spend.html", show_spend, SpendPage),
    ConsolePage("/admin/keys", "Keys", "keys.html", show_keys),
    ConsolePage("/admin/policies", "Policies", "policies.html", show_policies),
    ConsolePage("/admin/try", "Try a request", "try.html", show_trial),
    ConsolePage("/admin/models", "Models", "models.html", show_models, models.ModelFilter),
    ConsolePage("/admin/cache", "Cache", "cache.html", show_cache),
    ConsolePage("/admin/targets", "Targets", "targets.html", show_targets, is_global=True),
    ConsolePage("/admin/config", "Config", "config.html", show_config, is_global=True),
    ConsolePage("/admin/audit", "Audit", "audit.html", show_audit, audit.AuditFilter, is_global=True),
    ConsolePage("/admin/audit/verification", "Verification", "verification.html", show_verification, is_global=True,
         in_menu=False),
    ConsolePage("/admin/operators", "Operators", "operators.html", show_operators, roles=OWNERS, is_global=True),
)  # fmt: skip


def filter_of(kind: type[Parameters], fields: Mapping[str, str]) -> Parameters:
    """Return a filter from the query of an address; a field of a form that was left empty says nothing."""
    return validated(kind, {name: value for name, value in fields.items() if value}, "query")


def with_body(request: AdminRequest, endpoint: AdminEndpoint, fields: Mapping[str, Any], **values: str) -> AdminRequest:
    """Return a request to an endpoint, with these fields as its body. Raises Problem if its operator may not."""
    request.operator.check(endpoint.roles, is_global=endpoint.is_global)
    body = None if endpoint.body is None else validated(endpoint.body, dict(fields), "body")
    return replace(request, query=endpoint.query(), body=body, values=values)
