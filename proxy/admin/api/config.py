"""The config: what a file or a text would change in it, and that it is read again."""

import asyncio
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from proxy.admin.api.endpoint import AdminEndpoint, AdminRequest, NoParameters, Parameters
from proxy.admin.parts import GatewayParts
from proxy.admin.problem import Problem
from proxy.admin.roles import OWNERS
from proxy.config.build import build
from proxy.config.difference import differences
from proxy.config.validation import ConfigError

MAX_CONFIG_CHARS = 262_144


class ConfigText(Parameters):
    text: Annotated[str, Field(max_length=MAX_CONFIG_CHARS)]
    """The whole config in TOML."""


class ConfigChanges(TypedDict):
    is_valid: bool
    changes: list[str]
    faults: list[str]
    warnings: list[str]


async def preview_file(parts: GatewayParts, _argument: Mapping[str, Any]) -> Any:
    """Return what a reload would change, or the faults for which it would change nothing."""
    if parts.preview is None:
        raise Problem(409, "no_config_file", "The gateway is served without a config file.")
    try:
        return _changes(await parts.preview())
    except (ValueError, OSError) as error:
        return _changes(faults=str(error).splitlines())


async def preview_text(parts: GatewayParts, argument: Mapping[str, Any]) -> Any:
    """Return what a text would change as the config. Secrets that it names are read."""
    running = parts.config()
    try:
        tables = tomllib.loads(argument["text"])
    except (ValueError, RecursionError) as error:
        return _changes(faults=[f"not TOML: {error}"])
    changes = differences(running.tables, tables)
    try:
        new = await asyncio.to_thread(build, tables, running)
    except (ConfigError, OSError) as error:
        return _changes(changes, faults=str(error).splitlines())
    return _changes(changes, warnings=[*new.warnings])


def _changes(
    changes: list[str] | None = None, *, faults: list[str] | None = None, warnings: list[str] | None = None
) -> ConfigChanges:
    return ConfigChanges(is_valid=not faults, changes=changes or [], faults=faults or [], warnings=warnings or [])


async def compare_file(request: AdminRequest) -> ConfigChanges:
    """Return what the file of the config would change."""
    found: ConfigChanges = await request.services.processes.one("preview_file")
    return found


async def compare_text(request: AdminRequest) -> ConfigChanges:
    """Return what a text would change."""
    found: ConfigChanges = await request.services.processes.one("preview_text", text=request.body.text)
    return found


async def reload_config(request: AdminRequest) -> ConfigChanges:
    """Serve the file of the config as it is now, in all processes. Raises Problem if it has a fault."""
    reload = request.services.processes.reload
    if reload is None:
        raise Problem(409, "no_config_file", "The gateway is served without a config file.")
    await request.services.audit.record(request.operator, "config.reload_ordered")
    status, answer = await reload()
    if status != 200:
        message: Any = answer["error"]
        raise Problem(
            422, "config_invalid", "The config has a fault; nothing was changed.", message["message"].splitlines()
        )
    changed: Any = answer["changes"]
    return _changes(changed)


ENDPOINTS = (
    AdminEndpoint(
        "GET", "/config/changes", "What a reload would change", compare_file, ConfigChanges, is_global=True
    ),
    AdminEndpoint(
        "POST", "/config/changes", "What a text would change as the config", compare_text, ConfigChanges,
        body=ConfigText, roles=OWNERS, is_global=True,
    ),
    AdminEndpoint(
        "POST", "/config/reload", "Serve the config as its file is now", reload_config, ConfigChanges,
        body=NoParameters, roles=OWNERS, is_global=True,
    ),
)  # fmt: skip
