"""`headgate reload`: let a running gateway read its config again, and print what has changed."""

import argparse
from typing import Any

from proxy.commands.admin_client import AdminClient, NotAnswered, add_gateway, key_of, no_gateway, url_given, url_of
from proxy.config.admin_table import AdminTable
from proxy.config.source_file import SourceFile
from proxy.config.validation import ConfigError, validate

SUCCESS = 0
TIMEOUT_S = 300.0
"""How long a reload may take, in seconds: local models are loaded meanwhile."""


def add_to(commands: Any) -> None:
    """Add this subject's commands to a parser."""
    reload = commands.add_parser("reload", help="let a running gateway read its config again, and print what changes",
                                 epilog="example: headgate reload --config my.toml")  # fmt: skip
    add_gateway(reload, is_direct=False)
    reload.set_defaults(run=_reload)


def _reload(options: argparse.Namespace) -> int:
    admin = None if options.config is None else _admin_of(options)
    if admin is None and not options.url:
        raise ConfigError("admin: no [admin] says where the gateway is; name it with --url, or send it SIGHUP instead")
    url = url_given(options) or ("" if admin is None else url_of(admin))
    client = AdminClient(url.rstrip("/"), key_of(options.admin_key, admin), TIMEOUT_S, "send it SIGHUP instead")
    try:
        client.find()
        changes = client.ask("POST", "/config/reload", {})["changes"]
    except NotAnswered as error:
        raise no_gateway(url, error) from error
    print("\n".join(changes) or "Nothing has changed.")
    return SUCCESS


def _admin_of(options: argparse.Namespace) -> AdminTable | None:
    """Return [admin] of a config, whose other tables may have faults: the gateway will say them."""
    table = SourceFile.read(options.config).tables().get("admin")
    return validate(AdminTable, table, "admin") if isinstance(table, dict) else None
