"""`headgate reload`: let a running gateway read its config again, and print what has changed."""

import argparse
import sys
from http.client import HTTPConnection, HTTPException
from typing import Any

import orjson

from proxy.admin.listener import RELOAD_PATH
from proxy.commands.options import add_config
from proxy.config.admin_table import AdminTable
from proxy.config.source_file import SourceFile
from proxy.config.validation import ConfigError, validate

SUCCESS, INPUT_ERROR = 0, 2
TIMEOUT_S = 330.0
"""How long a reload may take, in seconds: local models are loaded meanwhile."""


def add_to(commands: Any) -> None:
    """Add this subject's commands to a parser."""
    reload = commands.add_parser("reload", help="let a running gateway read its config again, and print what changes",
                                 epilog="example: headgate reload --config my.toml")  # fmt: skip
    add_config(reload, required=True, text="its config file, whose [admin] says where it is")
    reload.set_defaults(run=_reload)


def _reload(options: argparse.Namespace) -> int:
    table = SourceFile.read(options.config).tables().get("admin")
    if not isinstance(table, dict):
        raise ConfigError("admin: this config has no [admin], by which a gateway is reached; send it SIGHUP instead")
    status, answer = _ask(validate(AdminTable, table, "admin"))
    if status == 200:
        print("\n".join(answer["changes"]) or "Nothing has changed.")
        return SUCCESS
    print(answer["error"]["message"], file=sys.stderr)
    return INPUT_ERROR


def _ask(admin: AdminTable) -> tuple[int, dict[str, Any]]:
    """Return the status and the answer of a gateway. Raises ConfigError if there is none."""
    host = "127.0.0.1" if admin.host in ("0.0.0.0", "::") else admin.host  # noqa: S104  it is where it listens
    connection = HTTPConnection(host, admin.port, timeout=TIMEOUT_S)
    try:
        owner = next((key.key.get_secret_value() for key in admin.key if key.role == "owner"), None)
        headers = {} if owner is None else {"Authorization": f"Bearer {owner}"}
        connection.request("POST", RELOAD_PATH, headers=headers)
        answer = connection.getresponse()
        return answer.status, orjson.loads(answer.read())
    except (OSError, HTTPException, ValueError) as error:
        raise ConfigError(f"admin: no gateway answers at {host}:{admin.port}: {error}") from error
    finally:
        connection.close()
