"""Claims of a verified token -> the caller. Users must not be able to choose the claims that name callers and teams."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.context import Caller
from proxy.wire.errors import Unauthenticated
from proxy.wire.loggable import in_ascii

Path = tuple[str | int, ...]
Allowed = str | int | bool | tuple[str | int, ...]

MAX_NAME_CHARS = 128
MAX_TAG_CHARS = 128
_STEP = re.compile(r'\.?(?:"(?P<quoted>[^"]+)"|(?P<bare>[^."\[\]]+))|\[(?P<index>[0-9]{1,4})\]')
_NOT_IN_TAGS = re.compile(r"[^A-Za-z0-9_.:/@-]")


def compile_path(text: str) -> Path:
    """Return the steps of a path into claims: `sub`, `groups[0]`, `"kubernetes.io".namespace`. Raises ValueError."""
    steps: list[str | int] = []
    end = 0
    for match in _STEP.finditer(text):
        is_first = not steps
        if match.start() != end or (is_first and (match["index"] or text[0] == ".")):
            break
        if not is_first and match["index"] is None and text[match.start()] != ".":
            break
        steps.append(int(match["index"]) if match["index"] else match["quoted"] or match["bare"])
        end = match.end()
    if not steps or end != len(text):
        raise ValueError('a claim is written as sub, groups[0] or "kubernetes.io".namespace')
    return tuple(steps)


def find(claims: object, path: Path) -> Any:
    """Return the value at a path, None if there is none."""
    for step in path:
        if isinstance(step, int):
            claims = claims[step] if isinstance(claims, list) and step < len(claims) else None
        else:
            claims = claims.get(step) if isinstance(claims, dict) else None
    return claims


@dataclass(frozen=True, slots=True)
class ClaimMap:
    """Maps the claims of one issuer to callers. `issuer` is its name in the config."""

    issuer: str
    caller: Path
    prefix: str = ""
    team: Path = ()
    teams: Mapping[str, str] | None = None
    default_team: str = ""
    tags: tuple[tuple[str, Path], ...] = ()
    require: tuple[tuple[str, Path, Allowed], ...] = ()

    def caller_of(self, claims: Mapping[str, Any]) -> Caller:
        """Return the caller that claims name. Raises Unauthenticated with 403 if they may not call."""
        for shown, path, allowed in self.require:
            if not _is_allowed(find(claims, path), allowed):
                raise _refusal(f"The claim {shown} of this token is missing or has a value that is not accepted here.")
        name = find(claims, self.caller)
        if not isinstance(name, str) or not is_name(self.prefix + name):
            raise _refusal(f"The claim that names the caller is no text of 1 to {MAX_NAME_CHARS} printable characters.")
        shown_tags = [f"{tag}={text}" for tag, path in self.tags if (text := _tag(find(claims, path)))]
        return Caller(
            self.prefix + name, self._team_of(claims), tags=",".join(shown_tags), issuer=self.issuer,
            fingerprint=subject_fingerprint(claims),
        )  # fmt: skip

    def _team_of(self, claims: Mapping[str, Any]) -> str:
        value = find(claims, self.team) if self.team else None
        found: list[Any] = value if isinstance(value, list) else [value]
        if self.teams is not None:
            found = [team for named, team in self.teams.items() if named in found]
        team = found[0] if found and isinstance(found[0], str) and found[0] else self.default_team
        if not is_name(team):
            raise _refusal("This token names no team that may call models here.")
        return team


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a caller or a team."""
    return 0 < len(text) <= MAX_NAME_CHARS and text.isprintable()


def subject_fingerprint(claims: Mapping[str, Any]) -> str:
    """Return the fingerprint of a token's subject for the log: the same for all tokens of the subject."""
    subject = f"{claims.get('iss')}\0{claims.get('sub')}"
    return hashlib.sha256(subject.encode(errors="replace")).hexdigest()[:12]


def _is_allowed(value: Any, allowed: Allowed) -> bool:
    """Return whether a claim, or an element of a list, has one of the required values."""
    choices: Sequence[str | int] = allowed if isinstance(allowed, tuple) else (allowed,)
    found = value if isinstance(value, list) else [value]
    return any(type(each) is type(choice) and each == choice for each in found for choice in choices)


def _tag(value: Any) -> str:
    """Return a claim as the value of a tag; what could be read as another tag is replaced."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return _NOT_IN_TAGS.sub("_", in_ascii(str(value)[:MAX_TAG_CHARS]))[:MAX_TAG_CHARS]
    return ""


def _refusal(message: str) -> Unauthenticated:
    message += " Ask who runs the identity provider for that, or the operator of this gateway."
    return Unauthenticated(message, status=403, code="token_not_allowed", challenge='Bearer error="insufficient_scope"')
