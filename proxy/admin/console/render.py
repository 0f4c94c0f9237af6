"""Templates -> pages. Every value is escaped; a page runs no script and has no style but those of its own files."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import web

from proxy.admin.console import charts
from proxy.admin.console.formats import FILTERS

FOLDER = Path(__file__).parent
POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
# Source: https://owasp.org/www-project-secure-headers/
HEADERS = {
    "Server": "headgate",
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # without any, browsers would send forms with an Origin of null
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
STATIC_TYPES = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
STATIC_S = 3600


@cache
def environment() -> Any:
    """Return what renders templates: an Environment of jinja2, which most gateways do not need."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    made.filters.update(FILTERS)
    made.globals.update(
        line_chart=charts.line_chart, bar_chart=charts.bar_chart, span=charts.span, share=charts.share, **FILTERS
    )
    return made


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return the text of a template."""
    text: str = environment().get_template(template).render(values)
    return text


def page(template: str, values: Mapping[str, Any], status: int = 200) -> web.Response:
    """Return a template as an answer."""
    return web.Response(
        text=render(template, values), status=status, content_type="text/html", charset="utf-8", headers=HEADERS
    )


def redirect(location: str, cookie: str | None = None) -> web.Response:
    """Return an answer that leads a browser to another page, after a form was sent."""
    headers = {**HEADERS, "Location": location} | ({} if cookie is None else {"Set-Cookie": cookie})
    return web.Response(status=303, headers=headers)


@cache
def _content(name: str) -> bytes:
    return (FOLDER / "static" / name).read_bytes()


def static(name: str) -> web.Response | None:
    """Return a file that pages refer to; None for any other name."""
    if name not in STATIC_TYPES:
        return None
    headers = {**HEADERS, "Content-Type": STATIC_TYPES[name], "Cache-Control": f"max-age={STATIC_S}"}
    return web.Response(body=_content(name), headers=headers)
