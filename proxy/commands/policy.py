"""`headgate policy test` and `headgate policy diff`: what a rule does, before it is switched on."""

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

from proxy.config import ConfigError, read, rules_of
from proxy.telemetry.recorder import query_of, value_of
from proxy.rules import Rule, Rules
from proxy.config.table import Table
from proxy.stores.memory import Memory
from proxy.context import Caller
from proxy.wire.call import Call, parse_call
from proxy.wire.errors import HeadgateError

SAME, DIFFERENT = 0, 1


class Case(Table):
    """One request, and what must become of it."""

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
    def _says_why(self) -> Self:
        if self.expect == "denied" and self.code is None:
            raise ValueError(f"'{self.name}': expect = \"denied\" needs the code that it is denied with")
        if self.expect == "allowed" and self.code is not None:
            raise ValueError(f"'{self.name}' has a code; what has one needs expect = \"denied\"")
        return self

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        """A TOML file may hold what no body of a request can."""
        for key, value in (("request", self.request), ("changed", self.changed)):
            try:
                orjson.dumps(value)
            except orjson.JSONEncodeError as error:
                raise ValueError(f"{key}: {error}; the limits are integers of 64 bits and 254 levels") from error
        return self


class Cases(Table):
    """A file of cases, and the policies that they are about."""

    policy: tuple[dict[str, Any], ...] = ()
    case: tuple[Case, ...] = ()


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one request: its refusal's code, or the fields that differ from what was asked."""

    code: str | None
    changed: Mapping[str, Any]
    removed: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.code is not None:
            return f"denied, {self.code}"
        told = [f"{name} = {orjson.dumps(value).decode()}" for name, value in sorted(self.changed.items())]
        told += [f"without {name}" for name in self.removed]
        return ", ".join(["allowed", *told])


def add_to(commands: Any) -> None:
    """Add this subject's commands to a parser."""
    policy = commands.add_parser("policy", help="try policies on requests: test, diff")
    verbs = policy.add_subparsers(required=True, metavar="test | diff")
    test = verbs.add_parser("test", help="check decisions against what files expect",
                            epilog="example: headgate policy test cases.toml --config my.toml")  # fmt: skip
    test.add_argument("files", nargs="+", type=Path, metavar="FILE", help="TOML or JSONL")
    test.add_argument("--config", type=Path, help="whose policies; left out: those in each file")
    test.set_defaults(run=_test)
    diff = verbs.add_parser("diff", help="which recorded requests change their fate",
                            epilog="example: headgate policy diff old.toml new.toml --requests log.jsonl")  # fmt: skip
    diff.add_argument("old", type=Path)
    diff.add_argument("new", type=Path)
    diff.add_argument("--requests", type=Path, required=True, help="what [record] wrote")
    diff.set_defaults(run=_diff)


def _test(options: argparse.Namespace) -> int:
    configured = None if options.config is None else read(options.config).rules
    differences = cases = 0
    for file in options.files:
        rules, listed = _cases(file)
        for number, case in enumerate(listed, 1):
            cases += 1
            found = fate(configured if configured is not None else rules, case)
            expected = Fate(case.code, {}) if case.code else Fate(None, case.changed, case.removed)
            if found != expected:
                differences += 1
                print(f"{file}, case {number} {case.name}\n  expected: {expected}\n  found:    {found}")
    print(f"{cases} cases, {differences} not as expected.")
    return DIFFERENT if differences else SAME


def _diff(options: argparse.Namespace) -> int:
    old, new = read(options.old).rules, read(options.new).rules
    _warn(old, new)
    changes: Counter[tuple[str, str, str]] = Counter()
    count = 0
    for case in _recorded(options.requests):
        count += 1
        before, after = str(fate(old, case)), str(fate(new, case))
        if before != after:
            changes[case.caller, before, after] += 1
    for (caller, before, after), times in sorted(changes.items(), key=lambda change: (-change[1], change[0])):
        print(f"{times:6}  {caller}: {before}  ->  {after}")
    print(f"{count} requests, {changes.total()} change their fate.")
    return DIFFERENT if changes else SAME


def _warn(old: Sequence[Rule], new: Sequence[Rule]) -> None:
    """Say on stderr what the fates of recorded requests leave out."""
    if untold := dict.fromkeys([*_judging_text(new), *_judging_text(old)]):
        print(f"records hold no text: they cannot tell of {', '.join(untold)}", file=sys.stderr)
    for name in dict.fromkeys(rule.name for rule in new if rule.mode == "report"):
        print(f'{name} only reports (mode = "report"): no request is refused or changed by it', file=sys.stderr)


def _judging_text(rules: Sequence[Rule]) -> Iterator[str]:
    """The settings that judge texts, where they are not left as they come."""
    for rule in rules:
        for key, field in type(rule.policy).model_fields.items():
            if rule.mode != "off" and key in rule.policy.judges_text and getattr(rule.policy, key) != field.default:
                yield f"{rule.name}.{key}"


def fate(rules: Sequence[Rule], case: Case) -> Fate:
    """What these policies, with nothing in their state, do to a request."""
    return asyncio.run(_fate(rules, case))


async def _fate(rules: Sequence[Rule], case: Case) -> Fate:
    for rule in rules:
        await rule.policy.start(Memory())
    caller = Caller(case.caller, case.team or case.caller)
    try:
        received = {name.lower(): value for name, value in case.headers.items()}
        asked = parse_call(caller, orjson.dumps(case.request), headers={}, query=case.query, received=received)
        call: Call = await Rules(rules).admit(asked)
    except HeadgateError as error:
        return Fate(error.code or str(error.status), {})
    changed = {name: value for name, value in call.body.items() if asked.body.get(name, ...) != value}
    return Fate(None, changed, tuple(name for name in asked.body if name not in call.body))


def _cases(file: Path) -> tuple[Sequence[Rule], Sequence[Case]]:
    """The policies in a file, if any, and its cases. Raises ConfigError."""
    typed = _typed(file)
    try:
        listed = Cases.model_validate(typed)
        return rules_of(listed.policy), listed.case
    except ValidationError as error:
        told = [f"{_where(found['loc'])}: {found['msg'].removeprefix('Value error, ')}" for found in error.errors()]
        raise ConfigError("\n".join(f"{file}{one}" for one in told)) from error
    except ValueError as error:  # a policy that says of itself what is wrong
        raise ConfigError(f"{file}: {error}") from error


def _typed(file: Path) -> dict[str, Any]:
    """What stands in a file of cases. Raises ConfigError."""
    try:
        if file.suffix != ".jsonl":
            return tomllib.loads(file.read_text(encoding="utf-8"))
        lines = list(_lines(file))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, or nested too deeply to be read
        raise ConfigError(f"{file}: {error}") from error
    return {"case": [_parsed(f"{file}, line {number}", line) for number, line in lines]}


def _parsed(where: str, line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{where}: {error.msg}") from error


def _where(place: Sequence[int | str]) -> str:
    """Where in a file something is wrong; cases are counted from 1, as those that come out otherwise."""
    case = ""
    if place[:1] == ("case",) and len(place) > 1:
        case, place = f", case {int(place[1]) + 1}", place[2:]
    return f"{case}: {'.'.join(map(str, place))}" if place else case


def _recorded(file: Path) -> Iterator[Case]:
    """Requests in the shape of those that [record] wrote. Raises ConfigError."""
    for number, line in _lines(file):
        try:
            recorded = orjson.loads(line)
            request, query = value_of(recorded["request"]), query_of(recorded.get("query", {}))
            yield Case(caller=recorded["caller"], team=recorded["team"], request=request, query=query)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{file}, line {number}: this is no line that [record] wrote") from error


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, with their numbers; the mark that some editors begin it with is none."""
    lines = file.read_bytes().removeprefix(BOM_UTF8).splitlines()
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())
