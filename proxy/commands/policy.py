"""`headgate policy test` and `headgate policy diff`: show what a rule does before it is enabled."""

import argparse
import asyncio
import sys
import tomllib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson
from pydantic import Field, ValidationError, model_validator

from backends import least_values_of
from policies import PolicyState
from proxy.commands.options import add_config
from proxy.commands.token_caller import caller_of_token
from proxy.config.build import Config, read
from proxy.config.plugin_tables import rules_of
from proxy.config.secrets import reading_secrets
from proxy.config.table import Table
from proxy.config.validation import ConfigError, explain, suggest_or_list
from proxy.context import Caller, Context
from proxy.identity.directory import ANONYMOUS
from proxy.rules import Rules
from proxy.rules.rule import Rule
from proxy.state.ownership import Ownership
from proxy.stores.memory import MemoryStore
from proxy.telemetry.recorder import restore, restore_query
from proxy.wire.call import parse_call
from proxy.wire.errors import HeadgateError

SAME, DIFFERENT = 0, 1


class Case(Table):
    """One request and its expected outcome."""

    name: str = ""
    caller: str = "anybody"
    team: str = ""
    request: dict[str, Any]
    query: str = ""
    headers: dict[str, str] = Field(default={})
    expect: str = Field(default="allowed", pattern="^(allowed|denied)$")
    code: str | None = None
    changed: dict[str, Any] = Field(default={})
    removed: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_code_if_denied(self) -> Self:
        if self.expect == "denied" and self.code is None:
            raise ValueError(f"'{self.name}': expect = \"denied\" needs a code")
        if self.expect == "allowed" and self.code is not None:
            raise ValueError(f"'{self.name}' has a code; a case with a code needs expect = \"denied\"")
        return self

    @model_validator(mode="after")
    def _is_valid_json(self) -> Self:
        """A TOML file can hold values that no request body can."""
        for key, value in (("request", self.request), ("changed", self.changed)):
            try:
                orjson.dumps(value)
            except orjson.JSONEncodeError as error:
                raise ValueError(f"{key}: {error}; the limits are integers of 64 bits and 254 levels") from error
        return self


class Cases(Table):
    """A file of cases, and the policies that they test."""

    policy: tuple[dict[str, Any], ...] = ()
    case: tuple[Case, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The effect of policies on one request: the code of a refusal, or the changed fields."""

    code: str | None
    changed: Mapping[str, Any]
    removed: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.code is not None:
            return f"denied, {self.code}"
        changes = [f"{name} = {orjson.dumps(value).decode()}" for name, value in sorted(self.changed.items())]
        changes += [f"without {name}" for name in self.removed]
        return ", ".join(["allowed", *changes])


def add_to(commands: Any) -> None:
    """Add this subject's commands to a parser."""
    policy = commands.add_parser("policy", help="run policies on requests: test, diff")
    verbs = policy.add_subparsers(required=True, metavar="test | diff")
    test = verbs.add_parser("test", help="check decisions against what files expect",
                            epilog="example: headgate policy test cases.toml --config my.toml")  # fmt: skip
    test.add_argument("files", nargs="+", type=Path, metavar="FILE", help="TOML or JSONL")
    add_config(test, text="the policies to test; default: those in each file")
    test.add_argument("--token", type=Path, help="a file with a token of an [[issuer]] of --config: the caller of "
                      "cases that name none; its signature and its times are not checked")  # fmt: skip
    test.set_defaults(run=_test)
    diff = verbs.add_parser("diff", help="list the recorded requests whose outcome changes",
                            epilog="example: headgate policy diff old.toml new.toml --requests log.jsonl")  # fmt: skip
    diff.add_argument("old", type=Path)
    diff.add_argument("new", type=Path)
    diff.add_argument("--requests", type=Path, required=True, help="a file written by [record]")
    diff.set_defaults(run=_diff)


def _test(options: argparse.Namespace) -> int:
    config = None if options.config is None else _read(options.config)
    least = {} if config is None else least_values_of(config.backends.values())
    caller = None if options.token is None else caller_of_token(options.token, () if config is None else config.issuers)
    differences = cases = 0
    for file in options.files:
        rules, listed = _cases(file)
        if config is None and not rules:
            print(f"warning: {file}: there is no [[policy]] to test; add one, or give --config FILE", file=sys.stderr)
        for number, case in enumerate(listed, 1):
            cases += 1
            if caller is not None and "caller" not in case.model_fields_set:
                asked = case.model_copy(update={"caller": caller.name, "team": caller.team})
            else:
                asked = case if config is None else _with_team(case, config, f"{file}, case {number}")
            found = outcome_of(rules if config is None else config.rules, asked, least)
            expected = Outcome(case.code, {}) if case.code else Outcome(None, case.changed, case.removed)
            if found != expected:
                differences += 1
                print(f"{file}, case {number} {case.name}".rstrip() + f"\n  expected: {expected}\n  found:    {found}")
    print(f"{cases} {'case' if cases == 1 else 'cases'}, {differences} not as expected.")
    return DIFFERENT if differences else SAME


def _read(file: Path) -> Config:
    """Read a config. Secrets need not be there: identifiers that are made with one are others then."""
    with reading_secrets("if_there"):
        return read(file)


def _with_team(case: Case, config: Config, place: str) -> Case:
    """Return a case with the team of its caller, unless it has one; warn of a caller that the config does not have."""
    teams = {caller.name: caller.team for caller in config.callers}
    if case.caller != ANONYMOUS.name and case.caller not in teams and not config.has_other_callers:
        end = suggest_or_list(case.caller, teams)
        print(f"warning: {place}: no [[caller]] is called '{case.caller}'{end}", file=sys.stderr)
    return case.model_copy(update={"team": case.team or teams.get(case.caller, case.caller)})


def _diff(options: argparse.Namespace) -> int:
    old, new = _read(options.old), _read(options.new)
    _warn(old.rules, new.rules)
    configs = [(config, least_values_of(config.backends.values())) for config in (old, new)]
    changes: Counter[tuple[str, str, str]] = Counter()
    count = 0
    for case in _recorded(options.requests):
        count += 1
        before, after = (str(outcome_of(config.rules, case, least)) for config, least in configs)
        if before != after:
            changes[case.caller, before, after] += 1
    for (caller, before, after), times in sorted(changes.items(), key=lambda change: (-change[1], change[0])):
        print(f"{times:6}  {caller}: {before}  ->  {after}")
    print(f"{count} requests, {changes.total()} change their outcome.")
    return DIFFERENT if changes else SAME


def _warn(old: Sequence[Rule], new: Sequence[Rule]) -> None:
    """Print to stderr what the outcomes of recorded requests cannot show."""
    if keys := dict.fromkeys([*_text_settings(new), *_text_settings(old)]):
        print(f"recorded requests contain no text: they cannot show the effect of {', '.join(keys)}", file=sys.stderr)
    for name in dict.fromkeys(rule.name for rule in new if rule.mode == "report"):
        print(f'{name} only reports (mode = "report"): no request is refused or changed by it', file=sys.stderr)


def _text_settings(rules: Sequence[Rule]) -> Iterator[str]:
    """The settings that depend on texts and do not have their default."""
    for rule in rules:
        for key, field in type(rule.policy).model_fields.items():
            if rule.mode != "off" and key in rule.policy.text_keys and getattr(rule.policy, key) != field.default:
                yield f"{rule.name}.{key}"


def outcome_of(rules: Sequence[Rule], case: Case, least_values: Mapping[str, int] | None = None) -> Outcome:
    """Return the effect of these policies on a request, with an empty state."""
    return asyncio.run(_outcome_of(rules, case, least_values))


async def _outcome_of(rules: Sequence[Rule], case: Case, least_values: Mapping[str, int] | None) -> Outcome:
    headers = {name.lower(): value for name, value in case.headers.items()}
    context = Context("req_test", Caller(case.caller, case.team or case.caller), received=headers)
    state = MemoryStore()
    async with context.cleanup:
        try:
            sent = parse_call(orjson.dumps(case.request), query=case.query)
            shared = PolicyState(state, Ownership(state), least_values=least_values or {})
            call = await Rules(rules, shared).admit(sent, context)
        except HeadgateError as error:
            return Outcome(error.code or str(error.status), {})
    changed = {name: value for name, value in call.body.items() if sent.body.get(name, ...) != value}
    return Outcome(None, changed, tuple(name for name in sent.body if name not in call.body))


def _cases(file: Path) -> tuple[Sequence[Rule], Sequence[Case]]:
    """The policies of a file, if any, and its cases. Raises ConfigError."""
    typed = _typed(file)
    if {"backend", "route"} & typed.keys():
        raise ConfigError(f"{file}: this is a config, which has no cases; give it with --config, beside files of cases")
    try:
        listed = Cases.model_validate(typed)
        return rules_of(listed.policy), listed.case
    except ValidationError as error:
        problems = [
            f"{_where(found['loc'])}: {explain(found, Cases, '', '.'.join(map(str, found['loc'])))}"
            for found in error.errors()
        ]
        raise ConfigError("\n".join(f"{file}{problem}" for problem in problems)) from error
    except ValueError as error:  # raised by a policy that refuses its settings
        raise ConfigError(f"{file}: {error}") from error


def _typed(file: Path) -> dict[str, Any]:
    """The tables of a file of cases. Raises ConfigError."""
    try:
        if file.suffix != ".jsonl":
            return tomllib.loads(file.read_text(encoding="utf-8"))
        lines = list(_lines(file))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or nested too deeply
        raise ConfigError(f"{file}: {error}") from error
    return {"case": [_parsed(f"{file}, line {number}", line) for number, line in lines]}


def _parsed(where: str, line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{where}: {error.msg}") from error


def _where(place: Sequence[int | str]) -> str:
    """Where in a file a problem is; cases are counted from 1, as in the results."""
    case = ""
    if place[:1] == ("case",) and len(place) > 1:
        case, place = f", case {int(place[1]) + 1}", place[2:]
    return f"{case}: {'.'.join(map(str, place))}" if place else case


def _recorded(file: Path) -> Iterator[Case]:
    """The requests that [record] wrote, with texts of the same length. Raises ConfigError."""
    for number, line in _lines(file):
        try:
            recorded = orjson.loads(line)
            request, query = restore(recorded["request"]), restore_query(recorded.get("query", {}))
            yield Case(caller=recorded["caller"], team=recorded["team"], request=request, query=query)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{file}, line {number}: this is not a line written by [record]") from error


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, with their numbers; a byte order mark is skipped."""
    lines = file.read_bytes().removeprefix(BOM_UTF8).splitlines()
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())
