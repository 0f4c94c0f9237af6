"""`headgate check` and `headgate explain`: print what a config does, and which keys it can have."""

import argparse
import asyncio
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from backends import Backend
from policies import Policy
from proxy.admin.access import LOOPBACK
from proxy.commands.options import DEFAULT_CONFIG, add_config
from proxy.commands.reach import CACHE, STATE, reach, reach_issuers, reach_stores
from proxy.commands.starting import start_faults
from proxy.config.admin_table import AdminTable
from proxy.config.build import Config, read
from proxy.config.default import default_config
from proxy.config.difference import differences
from proxy.config.field_docs import field_docs
from proxy.config.notation import as_typed
from proxy.config.plugins import load, plugin_names
from proxy.config.secrets import reading_secrets
from proxy.config.source_file import SourceFile
from proxy.config.table import Table
from proxy.config.validation import suggest
from proxy.routing.routes import Route
from proxy.rules.rule import Rule
from proxy.stores import Store

SUCCESS, NOT_REACHED, INPUT_ERROR = 0, 1, 2
CALLS_IN_FILES = frozenset({"/v1/batches"})  # paths on which an uploaded file contains calls
PACKAGES: dict[str, type[Table]] = {"policies": Policy, "backends": Backend, "proxy.stores": Store}


def add_to(commands: Any) -> None:
    """Add this subject's commands to a parser."""
    check = commands.add_parser("check", help="read the config and print the path of a call",
                                epilog="example: headgate check --config my.toml")  # fmt: skip
    add_config(check, text=DEFAULT_CONFIG)
    check.add_argument("--diff", type=Path, metavar="OLD", help="print instead what a reload from another file changes")
    more = check.add_mutually_exclusive_group()
    more.add_argument(
        "--reach",
        action="store_true",
        help="send each backend one request and each store one write, fetch issuers' keys, and print the outcomes",
    )
    more.add_argument(
        "--no-secrets",
        action="store_true",
        help="read no secret and no other file that the config names, as on another machine than the gateway's",
    )
    check.set_defaults(run=_check)
    explain = commands.add_parser("explain", help="print what a policy, backend or store does, and its keys",
                                  epilog="example: headgate explain max_tool_calls")  # fmt: skip
    explain.add_argument("name", help="its name in `use`")
    explain.set_defaults(run=_explain)


def _check(options: argparse.Namespace) -> int:
    with reading_secrets("never" if options.no_secrets else "required"):
        config = default_config() if options.config is None else read(options.config)
    if not options.no_secrets and (faults := config.locate(start_faults(config))):
        print("\n".join(faults), file=sys.stderr)
        return INPUT_ERROR
    lines = (
        _path(config) if options.diff is None else differences(SourceFile.read(options.diff).tables(), config.tables)
    )
    for line in lines:
        print(line)
    for warning in config.locate((*config.warnings, *_relay_warnings(config))):
        print(f"warning: {warning}", file=sys.stderr)
    return _reach_all(config) if options.reach else SUCCESS


def _reach_all(config: Config) -> int:
    """Print one line for each backend, store and issuer: whether it answers, or why not."""
    stores = {STATE: config.state, **({} if config.cache_store is None else {CACHE: config.cache_store})}
    found = [*asyncio.run(reach(config.backends.values())).items(), *asyncio.run(reach_stores(stores)).items()]
    found += asyncio.run(reach_issuers(config.issuers)).items()
    for name, reason in found:
        print(f"{name}: {reason or 'ok'}")
    return NOT_REACHED if any(reason for _, reason in found) else SUCCESS


def _relay_warnings(config: Config) -> Iterator[str]:
    """What the policies do not see of each relayed path."""
    active = [rule for rule in config.rules if rule.mode != "off"]
    unread = ", ".join(dict.fromkeys(rule.name for rule in active if "relay" not in rule.policy.operations))
    partly = ", ".join(dict.fromkeys(rule.name for rule in active if "form_field" in rule.policy.operations))
    for index, relay in enumerate(config.relays):
        place = f"relay[{index}].path: {relay.path}"
        if unread:
            yield f"{place}: these policies do not apply to it: {unread}"
        if partly:
            yield f"{place}: these policies read JSON bodies and fields of forms, no files: {partly}"
        if relay.prefix.casefold() not in CALLS_IN_FILES:
            continue
        if active:
            yield f"{place}: the calls in a batch's file pass without any policy"
        if config.has_teams:
            yield f"{place}: the ids in a batch's file are not checked for their owners"


def _path(config: Config) -> Iterator[str]:
    """The path of a call in order, one line a step."""
    workers = f", {config.server.worker_count} workers" if config.server.worker_count > 1 else ""
    yield f"listen    {config.server.host}:{config.server.port}{workers}"
    if config.admin is not None:
        yield f"admin     {config.admin.host}:{config.admin.port}{_closed(config.admin)}"
    callers = ", ".join(f"{caller.name} (team {caller.team})" for caller in config.callers)
    if config.keys is not None:
        callers = ", ".join(filter(None, (callers, "issued keys")))
    for issuer in config.issuers:
        callers = ", ".join(filter(None, (callers, f"tokens of {issuer.name}")))
    yield f"identify  {callers or 'anybody, on loopback only'}"
    for rule, typed in zip(config.rules, config.tables.get("policy", ()), strict=True):
        when = ", ".join([rule.mode, *_selected(rule, typed)])
        own = rule.policy.model_dump(exclude_defaults=True).items()
        settings = " ".join(f"{key}={as_typed(value)}" for key, value in own)
        yield f"policy    {rule.name} [{when}] {settings}".rstrip()
    denied = ", unknown ids are denied" if config.unknown_ids == "deny" else ""
    yield f"state     {type(config.state).__module__.removeprefix('proxy.stores.')}{denied}"
    for route in config.routes:
        yield _route(route)
    for relay in config.relays:
        yield f"relay     {relay.path} -> {relay.target.name} ({type(relay.target).__name__.lower()})"
    if config.audit is not None:
        yield f"audit     {config.audit.path}"
    if config.record is not None:
        yield f"record    {config.record.path}, {config.record.share:.1%} of requests"
    yield f"cache     {'none' if config.cache is None else f'{config.cache.use}, ttl {config.cache.ttl_s:g} s'}"


def _closed(admin: AdminTable) -> str:
    """Return what an operator cannot reach there, if there is no sign-in."""
    is_open = admin.host in LOOPBACK or admin.key or admin.oidc is not None
    return "" if is_open else "; console and API are closed: there is no [[admin.key]] and no [admin.oidc]"


def _route(route: Route) -> str:
    """A route in one line: its backends in order, and the routes it falls back to."""
    targets = ", ".join(f"{target.name} ({type(target).__name__.lower()})" for target in route.targets)
    strategy = f" [{route.pool.strategy}]" if len(route.targets) > 1 else ""
    others = [f"{each.route.name} ({each.model or 'same model'})" for each in route.fallbacks]
    fallbacks = f", then {', '.join(others)}" if others else ""
    return f"route     {route.model} -> {targets}{strategy}{fallbacks}{' [default]' if route.is_default else ''}"


def _selected(rule: Rule, typed: Mapping[str, Any]) -> Iterator[str]:
    """The callers and models that a policy applies to, and its rollout, where that is not all of them."""
    for key in ("callers", "models"):
        globs = typed.get(key, ["*"])
        if "*" not in globs:
            yield f"{key} {' '.join(globs) or 'none'}"
    if rule.rollout < 1:
        yield f"{rule.rollout:.1%} of callers"


def _explain(options: argparse.Namespace) -> int:
    for package, kind in PACKAGES.items():
        try:
            explained = load(options.name, package, kind)
        except ValueError:
            continue
        print(f"{options.name}: {inspect.getdoc(inspect.getmodule(explained)) or ''}\n\nKeys:")
        for line in _keys(explained):
            print(line)
        return SUCCESS
    names = [name for package in PACKAGES for name in plugin_names(package)]
    print(
        f"There is no policy, backend or store called '{options.name}'{suggest(options.name, names)}", file=sys.stderr
    )
    print("There are:", file=sys.stderr)
    for package in PACKAGES:
        print(f"  {package.rpartition('.')[2]}: {', '.join(sorted(plugin_names(package)))}", file=sys.stderr)
    print("config.example.toml explains the keys of all other tables.", file=sys.stderr)
    return INPUT_ERROR


def _keys(explained: type[Table]) -> Iterator[str]:
    docs = field_docs(explained)
    for name, field in explained.model_fields.items():
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        default = "required" if field.is_required() else "optional" if value is None else f"default {as_typed(value)}"
        yield f"  {name} ({default})"
        if name in docs:
            yield f"      {' '.join(docs[name].split())}"
