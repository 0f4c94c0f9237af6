"""Fetches the keys of an issuer: its discovery document names their address, unless the config does.

Source: https://openid.net/specs/openid-connect-discovery-1_0.html#ProviderConfig

Only these documents are fetched, and no more of them than `MAX_DOCUMENT_BYTES`; no redirect is followed. The address of
the keys is on this machine only if the issuer is.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from proxy.identity.issuer_table import MAX_DOCUMENT_BYTES, IssuerTable, is_local, is_safe
from proxy.identity.key_set import parse_document

DISCOVERY_PATH = "/.well-known/openid-configuration"
PIECE_BYTES = 65_536
RECEIVE_BYTES = 4096
"""How much of an answer the system holds until it is read, about, in bytes. What was read is parsed in one step of the
event loop whatever it is: interim answers without end, or chunks of one byte."""
HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "headgate"}


async def fetch_keys(table: IssuerTable) -> bytes:
    """Return the document with the keys of an issuer. Raises ValueError with what was wrong."""
    async with asking(table) as session:
        return await _get(session, table.jwks_url or await _discover(session, table), table)


@asynccontextmanager
async def asking(table: IssuerTable) -> AsyncIterator[aiohttp.ClientSession]:
    """Give what sends requests to an issuer: within its time, and checked by its certificates."""
    own = table.ca_file is not None  # aiohttp has one context for all servers with a certificate of the system's
    context = await asyncio.to_thread(ssl.create_default_context, cafile=table.ca_file) if own else True
    connector = aiohttp.TCPConnector(ssl=context, limit=1, force_close=True, socket_factory=_make_socket)
    timeout = aiohttp.ClientTimeout(total=table.timeout_s)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=HEADERS, cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False, proxy=table.proxy,
    ) as session:  # fmt: skip
        yield session


def proxy_headers(table: IssuerTable) -> dict[str, str]:
    """Return the headers for the proxy on the way to an issuer."""
    if table.proxy_auth is None:
        return {}
    user, _, password = table.proxy_auth.get_secret_value().partition(":")
    return {"Proxy-Authorization": aiohttp.encode_basic_auth(user, password)}


async def _discover(session: aiohttp.ClientSession, table: IssuerTable) -> str:
    """Return the address of the keys that the issuer names."""
    return address_in(await discover(session, table), "jwks_uri", table)


async def discover(session: aiohttp.ClientSession, table: IssuerTable) -> dict[str, Any]:
    """Return the discovery document of an issuer. Raises ValueError."""
    data = await _get(session, table.url.removesuffix("/") + DISCOVERY_PATH, table)
    try:
        document = parse_document(data)
    except ValueError as error:
        raise ValueError(f"the discovery document {error}") from None
    if not isinstance(document, dict) or document.get("issuer") != table.url:
        raise ValueError("the discovery document is of another issuer than `url`")
    return document


def address_in(document: Mapping[str, Any], name: str, table: IssuerTable) -> str:
    """Return an address that a discovery document has, on this machine only if the issuer is. Raises ValueError."""
    address = document.get(name)
    if not isinstance(address, str) or not is_safe(address) or (is_local(address) and not is_local(table.url)):
        raise ValueError(f"the discovery document names no {name} with https://")
    return address


async def read_whole(answer: aiohttp.ClientResponse) -> bytes:
    """Return all of an answer, in however many pieces it comes. Raises ValueError if it is too large."""
    data = bytearray()
    async for piece in answer.content.iter_chunked(PIECE_BYTES):
        data += piece
        if len(data) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"{_shown(str(answer.url))} has answered with more than {MAX_DOCUMENT_BYTES} bytes")
    return bytes(data)


async def _get(session: aiohttp.ClientSession, address: str, table: IssuerTable) -> bytes:
    try:
        headers = await asyncio.to_thread(_authorization, table, address)
        asking_for = session.get(address, headers=headers, proxy_headers=proxy_headers(table), allow_redirects=False)
        async with asking_for as answer:
            if answer.status != 200:
                raise ValueError(f"{_shown(address)} has answered with {answer.status}")
            return await read_whole(answer)
    except aiohttp.ClientConnectorCertificateError:
        raise ValueError(f"the certificate of {_shown(address)} is not trusted; see ca_file") from None
    except (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError) as error:
        status = f"has answered with {error.status}" if isinstance(error, aiohttp.ClientHttpProxyError) else "is away"
        raise ValueError(f"the proxy {_shown(table.proxy or '')} {status}") from None
    except aiohttp.ClientError as error:
        raise ValueError(f"no answer of {_shown(address)}: {type(error).__name__}") from None


def _make_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    return made


def _authorization(table: IssuerTable, address: str) -> dict[str, str]:
    """Return the header with the token of `token_file`, for the servers that the config names only."""
    named = {_origin(each) for each in (table.url, table.jwks_url) if each}
    if table.token_file is None or _origin(address) not in named:
        return {}
    return {"Authorization": f"Bearer {Path(table.token_file).read_text(encoding='ascii').strip()}"}


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port


def _shown(address: str) -> str:
    """Return the server of an address, for the log."""
    return urlsplit(address).netloc
