"""GET /: explains the gateway to a person in a browser, and to programs."""

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from importlib.metadata import version

from aiohttp import web

from proxy.config.build import Config
from proxy.http.client_address import ClientAddresses
from proxy.http.exchange import Exchange
from proxy.http.router import Endpoint
from proxy.wire.loggable import in_ascii

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; max-width: 44rem; padding: 0 1.25rem;
  margin: 12vh auto 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1rem; margin: 2rem 0 .25rem; }
pre { padding: .9rem 1rem; border: 1px solid color-mix(in srgb, currentColor 20%, transparent); border-radius: 6px;
  overflow-x: auto; }
code { font: .875em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
"""
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Content-Type": "text/html; charset=utf-8",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Headgate</title>
<style>{style}</style></head>
<body><main>
<h1>Headgate</h1>
<p>A gateway for the OpenAI Responses protocol: clients reach it as they reach OpenAI, by another base_url.</p>
<h2>base_url</h2>
<pre><code>{base_url}</code></pre>
<h2>Key</h2>
<p>{key}</p>
<h2>Example</h2>
<pre><code>from openai import OpenAI

client = OpenAI(base_url="{base_url}", api_key="YOUR-KEY")
print(client.models.list())
print(client.responses.create(model="MODEL", input="Hello!").output_text)</code></pre>
</main></body></html>
"""
NO_KEY = "None is needed on this machine: any text will do."
ASK = "Ask the operator of this gateway for a key{contact}, or create one in its {console}."


class Welcome:
    """Answers at the root of the address."""

    def __init__(self, config: Config, clients: ClientAddresses) -> None:
        """It says where to get a key, if one is needed."""
        self._clients = clients
        contact, url = config.server.contact, "" if config.admin is None else config.admin.url
        console = f'<a href="{escape(url)}/admin/keys">console</a>' if url else "console"
        ask = ASK.format(contact=f" ({escape(contact)})" if contact else "", console=console)
        self._key = NO_KEY if config.is_open else ask

    def endpoints(self) -> Iterator[Endpoint]:
        yield Endpoint("GET", "/", self.greet)

    async def greet(self, exchange: Exchange) -> web.StreamResponse:
        """Answer with a page where one is asked for, else with JSON."""
        request = exchange.request
        base_url = f"{self._clients.scheme_of(request)}://{in_ascii(request.headers.get('Host', 'localhost'))}/v1"
        if "text/html" not in request.headers.get("Accept", ""):
            greeting = {
                "name": "headgate",
                "version": version("headgate"),
                "base_url": base_url,
                "models": "/v1/models",
            }
            return exchange.json_response(greeting)
        text = PAGE.format(style=STYLE, base_url=escape(base_url), key=self._key)
        return web.Response(text=text, headers={**exchange.common_headers(), **HEADERS})
