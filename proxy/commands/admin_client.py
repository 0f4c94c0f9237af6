"""The admin API of a running gateway, for commands. Where none runs, they work on the store and the files themselves.

A gateway is found by `--url`, or by `[admin]` of the config. One that answers decides: a command that it refuses is not
carried out in another way.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import orjson

from proxy.admin.access import LOOPBACK
from proxy.admin.api.dispatch import OPENAPI_PATH
from proxy.admin.api.endpoint import VERSION
from proxy.admin.state_id import state_id
from proxy.commands.options import add_config, is_from
from proxy.config.admin_table import AdminTable
from proxy.config.build import Config, read
from proxy.config.secrets import read_secret
from proxy.config.validation import ConfigError

URL, KEY = "HEADGATE_ADMIN_URL", "HEADGATE_ADMIN_KEY"
TIMEOUT_S = 60.0
REFUSALS = frozenset({401, 403})


class NotAnswered(Exception):
    """No server listens at an address."""


def add_gateway(command: argparse.ArgumentParser, *, is_direct: bool = True) -> None:
    """Add the options that select the gateway to ask, and the key."""
    add_config(command)
    group = command.add_argument_group("the gateway", "A gateway that runs is asked by its admin API.")
    group.add_argument("--url", default=os.environ.get(URL) or None,
                       help=f"its admin listener; or {URL}; default: as [admin] of the config says")  # fmt: skip
    group.add_argument("--admin-key", metavar="PLACE",
                       help=f"the key of an operator: env:NAME or file:PATH; or {KEY}; "
                            "default: the first one of an owner in the config")  # fmt: skip
    if is_direct:
        group.add_argument("--direct", action="store_true", help="ask no gateway: work on the store and the files")


def url_given(options: argparse.Namespace) -> str | None:
    """Return the given address of a gateway. Raises ConfigError if it is invalid."""
    text: str | None = options.url
    if text is None:
        return None
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port
        is_address = False
    if not is_address:
        raise ConfigError(f"{URL if is_from(URL, text) else '--url'}: '{text}' is no address; write http://HOST:PORT")
    return text


def config_of(options: argparse.Namespace) -> Config:
    """Return the given config. Raises ConfigError if there is none."""
    if options.config is None:
        raise ConfigError("name the config with --config or HEADGATE_CONFIG, or a gateway that runs with --url")
    return read(options.config)


@dataclass(frozen=True, slots=True)
class AdminClient:
    """Asks one gateway."""

    url: str
    key: str | None = None
    timeout_s: float = TIMEOUT_S
    otherwise: str = "ask none: --direct"
    """What to do where the gateway refuses the key."""

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: Any) -> Any:
        """Return the gateway's answer. Raises ConfigError with the problem that it reports, NotAnswered."""
        named = {name: value for name, value in query.items() if value not in (None, "")}
        target = f"{VERSION}{path}{'?' if named else ''}{urlencode(named)}"
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        data = None if body is None else orjson.dumps(body)
        headers |= {} if data is None else {"Content-Type": "application/json"}
        status, answer = self._send(method, target, data, headers)
        if status < 400:
            return answer
        raise ConfigError(self._reason(status, answer))

    def find(self) -> None:
        """Raises NotAnswered if nothing listens, ConfigError if it is no gateway. The key is not sent."""
        self._send("HEAD", OPENAPI_PATH, None, {})

    def _send(self, method: str, target: str, data: bytes | None, headers: Mapping[str, str]) -> tuple[int, Any]:
        connection = self._connection()
        try:
            try:
                connection.connect()
            except OSError as error:
                raise NotAnswered(str(error)) from error
            connection.request(method, target, data, dict(headers))
            answer = connection.getresponse()
            return answer.status, self._read(answer, method)
        except (OSError, HTTPException) as error:
            raise ConfigError(f"{self.url}: the gateway did not answer: {error}") from error
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=self.timeout_s)

    def _read(self, answer: HTTPResponse, method: str) -> Any:
        text = answer.read()
        if answer.getheader("Server") != "headgate":
            raise ConfigError(f"{self.url}: what answers there is no Headgate; name its admin listener with --url")
        try:
            return None if method == "HEAD" else orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"{self.url}: the answer is not JSON; is it the admin listener?") from error

    def _reason(self, status: int, problem: Any) -> str:
        """Return the text of a problem."""
        found = problem if isinstance(problem, dict) else {}
        lines = [f"{self.url}: {found.get('detail', status)} ({found.get('code', status)})"]
        lines += [f"  {each}" for each in found.get("errors", ())]
        if status in REFUSALS:
            lines.append(
                f"  Give the key of an operator who may do that: --admin-key env:NAME, or {KEY}; or {self.otherwise}."
            )
        return "\n".join(lines)


def client_of(options: argparse.Namespace) -> AdminClient | None:
    """Return a client of the gateway to ask, and print which one it is; None if none runs. Raises ConfigError."""
    if getattr(options, "direct", False):
        return None
    config = None if options.config is None else read(options.config)
    admin = None if config is None else config.admin
    url = url_given(options) or (None if admin is None or not admin.port else url_of(admin))
    if url is None:
        return None
    if admin is not None and not options.url and _is_closed(admin):
        print("[admin] lets no operator in ([[admin.key]]): done without the gateway.", file=sys.stderr)
        return None
    client = AdminClient(url.rstrip("/"), key_of(options.admin_key, admin))
    try:
        client.find()
    except NotAnswered as error:
        if options.url:
            raise no_gateway(url, error) from error
        print(f"No gateway answers at {url}: done without one.", file=sys.stderr)
        return None
    if config is not None and not options.url:
        _check_state(client, config, options.config)
    print(f"Asking the gateway at {url}.", file=sys.stderr)
    return client


def _is_closed(admin: AdminTable) -> bool:
    """Whether the API of a listener answers no request: it is not on loopback, and has no operators."""
    return not admin.key and admin.oidc is None and admin.host not in LOOPBACK


def url_of(admin: AdminTable) -> str:
    """Return the URL of a config's admin listener from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(admin.host, admin.host)  # noqa: S104  it is where it listens
    return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{admin.port}"


def no_gateway(url: str, error: NotAnswered) -> ConfigError:
    """Return the error that no server listens at a given address."""
    return ConfigError(f"{url}: no gateway answers: {error}{f' ({URL} names it)' if is_from(URL, url) else ''}")


def key_of(place: str | None, admin: AdminTable | None) -> str | None:
    """Return the key to send. Raises ConfigError if it cannot be read or sent."""
    source, key = "admin.key", None
    if place is not None:
        source = "--admin-key"
        try:
            key = read_secret(place).get_secret_value()
        except ValueError as error:
            raise ConfigError(f"--admin-key: {error}") from error
    elif given := os.environ.get(KEY):
        source, key = KEY, given
    elif admin is not None:
        key = next((each.key.get_secret_value() for each in admin.key if each.role == "owner"), None)
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{source}: this is no key; one has only printable characters of ASCII")
    return key


def _check_state(client: AdminClient, config: Config, path: Path) -> None:
    """Raises ConfigError if the gateway at the address of a config keeps its state elsewhere than that config says."""
    if client.ask("GET", "/me")["state"] != state_id(config.tables):
        message = f"the gateway there has another [state] than {path}: it was started with another config, or elsewhere"
        raise ConfigError(f"{client.url}: {message}. Name it with --url, or leave it aside with --direct.")


def segment(text: str) -> str:
    """Return a text as a part of a path."""
    return quote(text, safe="")
