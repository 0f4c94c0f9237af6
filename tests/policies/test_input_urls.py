"""Where images and files of the input may come from, and the notations of addresses that are not public."""

import random
import re
import socket
import sys
import threading
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies import PolicyState
from policies.input_urls import MAX_URL_CHARS, InputUrls
from policies.support import resolve
from policies.support.urls import MAX_VALUES, REFERENCE_SUFFIXES, _plain_name, may_have_references
from proxy.wire.call import Call
from proxy.wire.errors import PolicyViolation
from tests.examples import JSON, NO_DEADLINE, apply_policy, make_call, make_context, shuffled

GOOD = "https://images.example.com/a.png"
BAD = "https://127.0.0.1/a.png"
WEB = InputUrls(schemes=("http", "https", "data"))


def image(url: Any) -> list[Any]:
    """Return an input with one image."""
    return [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]


async def reason(policy: InputUrls, call: Call) -> str | None:
    """Return the reason of a refusal; None when the call passes, unchanged."""
    found, message = None, "."
    try:
        assert await apply_policy(policy, call) is call
    except PolicyViolation as violation:
        found, message = violation.reason, violation.message
    assert message.endswith(".")
    assert len(message) <= 120
    return found


@pytest.mark.parametrize(
    "url",
    [
        GOOD,
        "HTTPS://Images.Example.COM/a.png",
        "https://images.example.com./a.png",
        "https://images.example.com:8443/a.png",
        "https://images.example.com",
        "https://images.example.com?q=1",
        "https://images.example.com#top",
        "https://example.com/@anna/caf\u00e9.png?u=http://127.0.0.1/",
        "https://my_bucket.s3.amazonaws.com/k%20ey?X-Amz-Signature=abc%2F",
        "https://xn--bcher-kva.example/",
        "https://8.8.8.8/a.png",
        "https://[2606:4700:4700::1111]/a.png",
        "https://1password.com/a",
        "https://127.0.0.1.example.com/",
        "https://local.example.com/",
        "https://mylocalhost.example/",
        "data:image/png;base64,iVBORw0KGgo=",
        "DATA:image/png;base64,iVBORw0KGgo=",
        "https://example.com/".ljust(MAX_URL_CHARS, "a"),
        "data:,http://127.0.0.1",
    ],
)
async def test_public_addresses_and_data_pass_by_default(url: str):
    """In any case, with any port, path and query."""
    assert await reason(InputUrls(), make_call(input=image(url))) is None


# Loopback, private, link-local and metadata addresses in every notation that some reader accepts.
PRIVATE = [
    "127.0.0.1", "127.0.0.1.", "127.0.0.1:80", "127.1", "127.0.1", "127.255.255.254", "2130706433", "2130706433.",
    "0x7f000001", "0X7F000001", "017700000001", "0x7f.1", "0x7f.0.0.0x1", "0177.0.0.1", "0177.1", "00000177.0.0.1",
    "127.0x1", "0.0.0.0", "0", "0x0", "00", "0.1", "10.0.0.1", "10.1", "0xa.0.0.1", "167772161", "012.0.0.1",
    "172.16.0.1", "172.31.255.255", "192.168.1.1", "192.168.257", "0xc0a80101", "169.254.169.254", "169.254.43518",
    "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "0xA9.0xFE.0xA9.0xFE", "169.0xfea9fe", "100.64.0.1",
    "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1",
    "168.63.129.16", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "4294967295", "0xffffffff",
    "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::127.0.0.1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[::FFFF:169.254.169.254]", "[::1]:8080", "[::ffff:0:127.0.0.1]", "[::ffff:8.8.8.8]", "[64:ff9b::127.0.0.1]",
    "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::1]", "[64:ff9b::808:808]", "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]",
    "[fec0::1]", "[ff02::1]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[2001:0:7f00:1::]", "[2001:db8::1]",
    "[100::1]", "[3fff::1]", "[2001:10::1]", "localhost", "LOCALHOST", "localhost.", "localhost:6379", "a.localhost",
    "printer.local", "db.internal", "metadata.google.internal", "metadata.google.internal.", "metadata", "redis",
    "kubernetes.default.svc", "a.b.svc.cluster.local", "router.lan", "nas.home", "nas.home.arpa", "wiki.intranet",
    "wiki.corp", "host.localdomain", "metadata.tencentyun.com", "127.0.0.1.nip.io", "7f000001.nip.io",
    "10-0-0-1.sslip.io", "nip.io", "app.localtest.me", "lvh.me", "host.docker.internal", "vcap.me", "a.vcap.me",
    "7f000001.c0a80001.rbndr.us", "kubernetes.default", "KUBERNETES.default.", "coredns.kube-system", "api.prod.svc",
    "10-0-0-7.prod.pod", "web.service.consul", "consul", "db.mesos", "make-1.2.3.4-rebind-127.0.0.1-rr.1u.ms",
    "a.1.1.1.1.1time.127.0.0.1.forever.x.rebind.network", "10.0.0.1.traefik.me", "127-0-0-1.org.uk", "a.ddev.site",
    "localhost.direct", "localhost.localstack.cloud", "gitlab.test", "x.invalid", "exchange.mail",
]  # fmt: skip
# Not private as this gateway reads them, but other readers differ.
MALFORMED = [
    "010.8.8.8", "8.8.2056", "134744072", "0x08080808", "0x8.8.8.8", "00010.8.8.8", "8.8.8.010",  # public, not plain
    "08.8.8.8", "256.0.0.1", "127.0.0.256", "4294967296", "1.2.3.4.5", "1.2.3.4.0", "0.0.0.0.0.0", "0x", "0x7g.1",
    "1_0.0.0.300", "a.1", "127.0.0.1..", ".127.0.0.1", "127..1", "a..example.com", "-a.example.com", "a-.example.com",
    "xn--localhost-", "", ":80", "example.com:", "example.com:123456", "example.com:a", "a" * 64 + ".com",
    ".".join(["a" * 60] * 5), "a." * 200 + "com",
    "[::1", "::1", "[::1]x", "[127.0.0.1]", "[fe80::1%25eth0]", "[fe80::1%eth0]", "[::ffff:127.1]", "[]", "[v1.a]",
    "%31%32%37.0.0.1", "127.0.0%2e1", "localhost%00.example.com", "example.com%2f@127.0.0.1"[:13], "ex%61mple.com",
    "\uff11\uff12\uff17.0.0.1", "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460", "127\u30020\u30020\u30021", "127\uff0e0\uff0e0\uff0e1",
    "127\uff610\uff610\uff611", "\u0661\u0662\u0667.0.0.1", "\uff4cocalhost", "l\u00adocalhost", "local\u200bhost", "b\u00fccher.example",
    "\u217cocalhost", "example.com\u2100", "example.com\\", "example.com\\@127.0.0.1", "example.com\\.127.0.0.1", "\\\\127.0.0.1",
    "exam ple.com", "example.com ", " example.com", "example.com\t", "127.0.0.1\n", "local\thost", "local\nhost", "local\rhost",
    "example.com\x00", "example.com\x00.evil", "example.com\x7f", "example.com\x85", "example.com\u2028", "example.com\u00a0",
    "example.com;127.0.0.1", "example.com,127.0.0.1", "example.com&a", "$example.com", "(example.com)", "example.com|a", "'a.b'", "*.example.com",
]  # fmt: skip
USERINFO = [
    "anna@example.com", "anna:secret@example.com", "example.com@127.0.0.1", "127.0.0.1@example.com", "@example.com", ":@example.com",
    "example.com#@127.0.0.1", "example.com?@127.0.0.1", "1.1.1.1&@2.2.2.2#@127.0.0.1", "example.com:80@127.0.0.1", "a@b@example.com",
    "example.com;@127.0.0.1",
]  # fmt: skip


@pytest.mark.parametrize("scheme", ["https", "HtTp"])
@pytest.mark.parametrize(
    ("hosts", "expected"),
    [(PRIVATE, "private"), (MALFORMED, "malformed"), (USERINFO, "userinfo")],
    ids=["private", "malformed", "userinfo"],
)
async def test_hostile_hosts_are_refused_in_any_notation(scheme: str, hosts: list[str], expected: str):
    """Hosts that are not public, and URLs in which two readers may find two hosts."""
    reasons = {host: await reason(WEB, make_call(input=image(f"{scheme}://{host}/a.png"))) for host in hosts}

    assert reasons == dict.fromkeys(hosts, expected)


@pytest.mark.parametrize(
    "url",
    [
        "https:127.0.0.1/a.png", "https:/127.0.0.1/a.png", "https:///127.0.0.1/a.png", "https:////127.0.0.1", "https://", "https:",
        "https://#@127.0.0.1/", "https://?@127.0.0.1/x", "https:\\\\127.0.0.1\\a.png", "https:/\\127.0.0.1", "https:\t//127.0.0.1/",
        "https://example.com/a b.png", "https://example.com/a\\..\\b", "https://example.com/\r\nHost: x", "https://example.com/\u2029",
        "https://example.com/".ljust(MAX_URL_CHARS + 1, "a"), "https://./", "https://../", "https://%/", "https://[/",
    ],
)  # fmt: skip
async def test_urls_that_readers_differ_on_are_refused(url: str):
    """Missing or additional slashes, backslashes, blanks, control characters, and too many characters."""
    assert await reason(WEB, make_call(input=image(url))) in ("malformed", "userinfo")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "file:///etc/passwd", "FILE:///etc/passwd", "file://127.0.0.1/share", "ftp://example.com/a", "gopher://127.0.0.1:6379/_x",
        "blob:https://example.com/1", "javascript:alert(1)", "jar:https://example.com!/a", "ws://example.com/", "dict://127.0.0.1:11211/",
        "//example.com/a.png", "/etc/passwd", "example.com/a.png", "C:\\a.png", "", " https://example.com/", "\thttps://example.com/",
        "\x00https://example.com/", "\ufeffhttps://example.com/", "https\t://example.com", "ht\ntps://127.0.0.1/", "\uff48ttps://127.0.0.1/",
        "httpS\u200b://a.example/", "http\u017f://127.0.0.1/", "1https://example.com/", "-https://example.com", "iVBORw0KGgo=", " data:,a", "da\nta:,a",
        "url(https://example.com)", "view-source:https://example.com", "h" * 500 + "://a.b/",
    ],
)  # fmt: skip
async def test_other_schemes_are_refused(url: str):
    """So are URLs without a scheme: readers would guess one."""
    assert await reason(InputUrls(), make_call(input=image(url))) == "scheme"


PLACES = [
    {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "URL"}]}]},
    {"input": [{"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": {"url": "URL"}}]}]},
    {"input": [{"content": [{"type": "input_file", "file_url": "URL"}]}]},
    {"input": [{"content": {"type": "input_file", "file_url": "URL"}}]},
    {"input": {"content": [{"type": "input_file", "file_url": "URL"}]}},
    {"input": [[{"image_url": "URL"}]]},
    {"input": [{"image_url": ["URL"]}]},
    {"input": [{"image_url": {"url": ["URL"]}}]},
    {"input": [{"image_url": [{"url": "URL"}]}]},
    {"input": [{"Image_URL": "URL"}]},
    {"input": [{"imageUrl": "URL"}]},
    {"input": [{"image-url": "URL"}]},
    {"input": [{"image_ur\u217c": "-", "IMAGE_U\u0052L": "URL"}]},
    {"input": [{"type": "input_video", "video_url": "URL"}]},
    {"input": [{"type": "image", "source": {"type": "url", "url": "URL"}}]},
    {"input": [{"type": "input_image", "url": "URL"}]},
    {"input": [{"type": "input_image", "action": {"image_url": "URL"}}]},
    {"input": [{"annotations": [{"image_url": {"url": "URL"}}]}]},
    {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": "URL"}]}]},
    {"input": [{"type": "custom_tool_call_output", "call_id": "c", "output": [{"type": "input_file", "file_url": "URL"}]}]},
    {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "image", "url": "URL"}]}]},
    {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": "URL"}}]},
    {"input": [{"type": "function_call_output", "outputs": [{"type": "image", "url": "URL"}]}]},
    {"input": [{"type": "code_interpreter_call", "outputs": [{"type": "input_image", "image_url": "URL"}]}]},
    {"input": [{"type": "code_interpreter_call", "outputs": [{"image_url": {"url": "URL"}}]}]},
    {"input": [{"type": "code_interpreter_call", "content": [{"type": "image", "url": "URL"}]}]},
    {"input": [{"type": "codeInterpreterCall", "outputs": [{"type": "image", "url": "URL"}]}]},
    {"input": [{"type": "computer_call_output", "current_url": "http://x/", "output": {"image_url": "URL"}}]},
    {"input": [{"type": "input_file", "file_data": "URL"}]},
    {"input": [{"type": "input_file", "file_id": "URL"}]},
    {"instructions": [{"content": [{"type": "input_image", "image_url": "URL"}]}]},
    {"items": [{"content": [{"type": "input_image", "image_url": "URL"}]}]},
    {"prompt": {"id": "p", "variables": {"logo": {"type": "input_image", "image_url": "URL"}}}},
    {"prompt": {"id": "p", "variables": {"image_url": {"type": "input_file", "file_url": "URL"}}}},
    {"prompt": {"id": "p", "variables": {"sources": {"type": "image", "url": "URL"}}}},
    {"prompt": {"id": "p", "variables": {"tools": {"type": "input_video", "video_url": "URL"}}}},
    {"prompt": {"id": "p", "Variables": {"image_url": "URL"}}},
    {"tools": [{"type": "image_generation", "input_image_mask": {"image_url": "URL"}}]},
    {"tools": [{"type": "image_generation", "input_image_mask": {"image_url": {"url": "URL"}}}]},
    {"input": [{"type": "additional_tools", "tools": [{"input_image_mask": {"image_url": "URL"}}]}]},
]  # fmt: skip


def filled(value: Any, url: str) -> Any:
    """Return the same value with a URL in place of the word "URL"."""
    if isinstance(value, dict):
        return {name: filled(inner, url) for name, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, url) for inner in value]
    return url if value == "URL" else value


@pytest.mark.parametrize("place", PLACES, ids=str)
async def test_every_place_for_a_url_is_checked(place: dict[str, Any]):
    """Messages with and without a type, outputs of tools, variables of prompts, in any spelling of the name."""
    found = [await reason(InputUrls(), make_call(**filled(place, url))) for url in (GOOD, BAD, "file:///etc/passwd")]

    assert found == [None, "private", "scheme"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"input": None, "tools": None, "prompt": None, "instructions": None},
        {"input": f"Look at {BAD}", "instructions": BAD},
        {"input": [{"role": "user", "content": BAD}]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": BAD}]}]},
        {"tools": [{"type": "mcp", "server_url": "http://10.0.0.1/sse", "server_label": "x"}]},
        {"tools": [{"type": "mcp", "url": "http://10.0.0.1/sse"}]},
        {"input": [{"type": "additional_tools", "tools": [{"type": "mcp", "server_url": "http://10.0.0.1/"}]}]},
        {"input": [{"server_url": "http://10.0.0.1/"}]},
        {"input": [{"type": "message", "content": [{"annotations": [{"type": "url_citation", "url": "http://intranet/"}]}]}]},
        {"input": [{"type": "web_search_call", "action": {"type": "open_page", "url": "http://a.local/"}}]},
        {"input": [{"type": "web_search_call", "action": {"type": "search", "sources": [{"type": "url", "url": "http://x/"}]}}]},
        {"input": [{"type": "code_interpreter_call", "outputs": [{"type": "image", "url": BAD}]}]},
        {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "current_url": "http://wiki.corp/"}}]},
        {"input": [{"type": "computer_call_output", "current_url": "http://127.0.0.1/"}]},
        {"input": [{"role": "assistant", "content": [{"type": "output_text", "citations": [{"url": "http://intranet/"}]}]}]},
        {"input": [{"role": "assistant", "search_results": [{"url": "http://intranet/"}]}]},
        {"input": [{"type": "computer_call", "actions": [{"type": "goto", "url": "http://x/"}]}]},
        {"input": [{"type": "tool_search_call", "arguments": {"page_url": "http://x/", "file_id": "a:b"}}]},
        {"input": [{"type": "function_call", "arguments": '{"image_url": "http://127.0.0.1/"}'}]},
        {"prompt": {"id": "p", "variables": {"image_url": "a word, and no address", "file_id": "x:y"}}},
        {"tools": [{"type": "function", "parameters": {"properties": {"image_url": {"type": "string"}, "file_id": {"type": "string"}}}}]},
        {"input": [{"image_url": None, "file_url": None, "file_data": None, "file_id": None}]},
        {"input": [{"image_url": 7, "file_url": True, "file_id": 1.5, "image": {"url": {}}}]},
        {"input": [{"type": "input_file", "file_id": "file-abc123"}, {"type": "input_file", "file_data": "aGVsbG8="}]},
        {"input": [{"type": "input_file", "file_data": "data:application/pdf;base64,aGVsbG8="}]},
        {"metadata": {"image_url": BAD}, "unknown": {"image_url": BAD}},
    ],
    ids=str,
)  # fmt: skip
async def test_what_no_provider_fetches_passes(fields: dict[str, Any]):
    """Texts, MCP servers, citations, arguments of tools, schemas, empty fields, numbers."""
    assert await reason(InputUrls(), make_call(**fields)) is None


@pytest.mark.parametrize("name", ["messages", "Messages", "contents", "extra_body", "previous_input_messages"])
async def test_fields_in_place_of_the_input_are_refused(name: str):
    """An upstream of another protocol reads them; null is absent."""
    assert await reason(InputUrls(), make_call(**{name: image(GOOD)})) == "alternative_field"
    assert await reason(InputUrls(), make_call(**{name: None})) is None


RESOLVING = InputUrls(resolve=True)
NAMES_AND_ADDRESSES = {
    "public.example.com": ["8.8.8.8", "2606:4700:4700::1111"],
    "private.example.com": ["10.0.0.7"],
    "mixed.example.com": ["8.8.8.8", "127.0.0.1"],
    "six.example.com": ["::1"],
    "link.example.com": ["fe80::1%eth0"],
    "metadata.example.com": ["169.254.169.254"],
    "empty.example.com": [],
    "odd.example.com": ["no address"],
}


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Resolve the names of a table, and return those that were looked up."""
    found: list[str] = []

    def look_up(host: str) -> list[str]:
        found.append(host)
        if host not in NAMES_AND_ADDRESSES:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return NAMES_AND_ADDRESSES[host]

    monkeypatch.setattr(resolve, "look_up", look_up)
    return found


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("public.example.com", None),
        ("PUBLIC.example.com.:8443", None),
        ("8.8.8.8", None),
        ("private.example.com", "private"),
        ("mixed.example.com", "private"),
        ("six.example.com", "private"),
        ("link.example.com", "private"),
        ("metadata.example.com", "private"),
        ("empty.example.com", "unresolved"),
        ("odd.example.com", "unresolved"),
        ("unknown.example.com", "unresolved"),
        ("localhost", "private"),
    ],
)
async def test_hosts_are_looked_up_if_the_config_says_so(lookups: list[str], host: str, expected: str | None):
    """Every address must be public; a name without one is refused."""
    assert await reason(RESOLVING, make_call(input=image(f"https://{host}/a.png"))) == expected
    assert await reason(InputUrls(), make_call(input=image(f"https://{host}/a.png"))) == (
        "private" if host == "localhost" else None
    )


async def test_only_names_that_may_be_fetched_are_looked_up(lookups: list[str]):
    """Once each; no address, data, id, citation or denied host."""
    policy = InputUrls(resolve=True, deny_hosts=("denied.*",))
    content = [
        *image(GOOD.replace("images", "public"))[0]["content"] * 3,
        {"type": "input_image", "image_url": "data:,a"},
        {"type": "input_file", "file_id": "file-1", "file_data": "aGVsbG8="},
        {"type": "output_text", "text": "x", "annotations": [{"url": "https://cited.example.com"}]},
        {"type": "input_image", "image_url": "https://8.8.8.8/"},
    ]
    check = policy.request_check(PolicyState())
    call = make_call(input=[{"role": "user", "content": content}])

    assert await check(call, make_context()) is call
    assert await check(call, make_context()) is call
    assert lookups == ["public.example.com"]
    assert await reason(policy, make_call(input=image("https://denied.example.com/"))) == "host_not_allowed"
    assert lookups == ["public.example.com"]


async def test_a_call_without_hosts_does_not_wait(lookups: list[str]):
    """The check returns the call itself."""
    check = RESOLVING.request_check(PolicyState())
    for call in [make_call(input="Hi"), make_call(input=image("data:,a"))]:
        assert check(call, make_context()) is call


async def test_a_call_may_name_sixteen_hosts(lookups: list[str], monkeypatch: pytest.MonkeyPatch):
    """More are refused before any is looked up."""
    monkeypatch.setattr(resolve, "look_up", lambda _host: ["8.8.8.8"])
    calls = [
        make_call(input=[{"image_url": f"https://h{number}.example.com/"} for number in range(count)])
        for count in (16, 17)
    ]

    assert [await reason(RESOLVING, call) for call in calls] == [None, "too_many_hosts"]


async def test_a_host_that_is_not_found_in_time_is_refused(monkeypatch: pytest.MonkeyPatch):
    """The thread that looks for it delays nothing else."""
    released = threading.Event()

    def look_up(host: str) -> list[str]:
        if host.startswith("slow"):
            released.wait()
        return ["8.8.8.8"]

    monkeypatch.setattr(resolve, "look_up", look_up)
    policy = InputUrls(resolve=True, resolve_timeout_ms=20)
    try:
        assert await reason(policy, make_call(input=image("https://slow.example.com/"))) == "unresolved"
        assert await reason(InputUrls(resolve=True), make_call(input=image("https://fast.example.com/"))) is None
    finally:
        released.set()


async def test_a_refused_lookup_says_where(lookups: list[str]):
    """And which host it was."""
    for host, message in [
        ("private.example.com", "names 'private.example.com', whose address is not public; public hosts are allowed."),
        ("unknown.example.com", "names 'unknown.example.com', which cannot be resolved; name a host in public DNS."),
    ]:
        with pytest.raises(PolicyViolation) as caught:
            await apply_policy(RESOLVING, make_call(input=image(f"https://{host}/")))
        assert caught.value.message == f"input[0].content[0].image_url {message}"
        assert caught.value.param == "input[0].content[0].image_url"


async def test_hosts_can_be_limited_and_denied():
    """By globs; a final dot, case and port make no difference, and a denied host is never allowed."""
    policy = InputUrls(hosts=("*.Example.com.", "8.8.8.8", "2606:4700:*"), deny_hosts=("evil.*", "2606:*:8888"))
    found = {
        host: await reason(policy, make_call(input=image(f"https://{host}/")))
        for host in ("a.example.com", "A.EXAMPLE.COM.:8443", "8.8.8.8", "[2606:4700::1111]", "example.com", "evil.example.com",
                     "EVIL.example.com.", "[2606:4700::8888]", "1.1.1.1", "a.example.com.evil.org")
    }  # fmt: skip

    assert found == {
        "a.example.com": None,
        "A.EXAMPLE.COM.:8443": None,
        "8.8.8.8": None,
        "[2606:4700::1111]": None,
        "example.com": "host_not_allowed",
        "evil.example.com": "host_not_allowed",
        "EVIL.example.com.": "host_not_allowed",
        "[2606:4700::8888]": "host_not_allowed",
        "1.1.1.1": "host_not_allowed",
        "a.example.com.evil.org": "host_not_allowed",
    }


async def test_no_host_may_be_allowed():
    """Then only data: URLs pass."""
    policy = InputUrls(hosts=())

    assert await reason(policy, make_call(input=image(GOOD))) == "host_not_allowed"
    assert await reason(policy, make_call(input=image("data:,a"))) is None


async def test_a_list_of_hosts_allows_no_private_host():
    """It takes both the host in `hosts` and `private`."""
    settings = {"schemes": ("http",), "hosts": ("wiki.corp", "10.0.0.*")}
    for host, without, with_private in (
        ("wiki.corp", "private", None),
        ("10.0.0.7", "private", None),
        ("localhost", "private", "host_not_allowed"),
        ("10.7", "private", "malformed"),
        ("0xa.0.0.7", "private", "malformed"),
        ("[::ffff:10.0.0.7]", "private", "host_not_allowed"),
    ):
        call = make_call(input=image(f"http://{host}/"))
        assert await reason(InputUrls(**settings), call) == without
        assert await reason(InputUrls(**settings, private=True), call) == with_private


async def test_a_denied_address_is_denied_in_every_notation():
    """With private hosts allowed, too: no other notation avoids a glob for an address."""
    policy = InputUrls(schemes=("http",), private=True, deny_hosts=("169.254.169.254",))
    for host in ("169.254.169.254", "169.254.169.254.", "2852039166", "0xa9fea9fe", "169.254.43518"):
        assert await reason(policy, make_call(input=image(f"http://{host}/"))) is not None


async def test_stored_files_can_be_forbidden():
    """By any name of the field; ids that only say where an answer came from pass."""
    policy = InputUrls(file_ids=False)
    for fields in (
        {"input": [{"type": "input_image", "file_id": "file-1"}]},
        {"input": [{"type": "input_file", "fileId": "file-1"}]},
        {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "file_id": "file-1"}}]},
        {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}}]},
        {"prompt": {"variables": {"doc": {"type": "input_file", "file_id": "file-1"}}}},
        {"prompt": {"variables": {"results": {"type": "input_file", "file_id": "file-1"}}}},
    ):  # fmt: skip
        assert await reason(policy, make_call(**fields)) == "file_id"
        assert await reason(InputUrls(), make_call(**fields)) is None
    citations = [{"annotations": [{"type": "file_citation", "file_id": "file-1"}], "results": [{"file_id": "file-1"}]}]
    assert await reason(policy, make_call(input=citations, tools=[{"parameters": {"file_id": {}}}])) is None


async def test_inline_data_has_a_limit():
    """In data: URLs and in file_data; one character more is refused."""
    policy = InputUrls(max_data_chars=10)
    for field, data in (("image_url", "data:,1234"), ("file_data", "data:,1234"), ("file_data", "MTIzNDU2Nz")):
        assert await reason(policy, make_call(input=[{field: data}])) is None
        assert await reason(policy, make_call(input=[{field: data + "5"}])) == "data_too_long"
    assert await reason(policy, make_call(input=[{"file_id": "file-0123456789"}])) is None


async def test_data_is_a_scheme_like_others_but_file_data_is_no_url():
    """Without "data" among the schemes an image cannot be inline, but a file can."""
    policy = InputUrls(schemes=("https",))

    assert await reason(policy, make_call(input=image("data:,a"))) == "scheme"
    assert await reason(policy, make_call(input=[{"file_data": "data:,a"}])) is None
    assert await reason(policy, make_call(input=[{"file_id": "data:,a"}])) == "scheme"


async def test_no_scheme_may_be_allowed():
    """Then no URL passes."""
    assert await reason(InputUrls(schemes=()), make_call(input=image(GOOD))) == "scheme"


@pytest.mark.parametrize(
    ("fields", "policy", "message", "param"),
    [
        ({"input": ["a", *image("http://a.b/")]}, InputUrls(),
         "input[1].content[0].image_url has the scheme 'http'; allowed: https, data.", "input[1].content[0].image_url"),
        ({"input": image("a.b/")}, InputUrls(schemes=()),
         "input[0].content[0].image_url has no scheme; allowed: none.", "input[0].content[0].image_url"),
        ({"input": image({"url": "https://127.1/"})}, InputUrls(),
         "input[0].content[0].image_url.url names '127.1', which is not public; public hosts are allowed.", "input[0].content[0].image_url.url"),
        ({"input": image("https://a.b/")}, InputUrls(hosts=()),
         "input[0].content[0].image_url names 'a.b', which is not one of the allowed hosts.", "input[0].content[0].image_url"),
        ({"input": image("https://a@b.c/")}, InputUrls(),
         "input[0].content[0].image_url has a name or password before its host; none is allowed.", "input[0].content[0].image_url"),
        ({"input": image("https:/a")}, InputUrls(),
         "input[0].content[0].image_url is no URL that all readers read alike; write https://host/path.", "input[0].content[0].image_url"),
        ({"input": image("data:,abc")}, InputUrls(max_data_chars=8),
         "input[0].content[0].image_url has 9 characters; the limit is 8.", "input[0].content[0].image_url"),
        ({"input": [{"file_id": ["x"]}]}, InputUrls(file_ids=False), "input[0].file_id[0] names a stored file; none is allowed.", "input[0].file_id[0]"),
        ({"input": [{"k" * 100: {"image_url": "x"}}]}, InputUrls(), f"input[0].{'k' * 27}... has no scheme; allowed: https, data.", f"input[0].{'k' * 27}..."),
        ({"input": [{"k\n": {"image_url": "x"}}]}, InputUrls(), r"input[0].k\n.image_url has no scheme; allowed: https, data.", r"input[0].k\n.image_url"),
    ],
)  # fmt: skip
async def test_a_refusal_says_where_what_and_what_is_allowed(fields: dict, policy: InputUrls, message: str, param: str):
    """In one short sentence that contains no more of the URL than its scheme or host."""
    with pytest.raises(PolicyViolation) as caught:
        await apply_policy(policy, make_call(**fields))

    assert (caught.value.message, caught.value.param) == (message, param)


async def test_the_longest_refusals_are_short():
    """Names, schemes and hosts of callers and of the config are shortened."""
    deep: Any = {"image_url": f"https://{'h' * 60}.{'h' * 60}.local/"}
    for _ in range(100):
        deep = [{"\u202e" * 50: deep}]
    for policy in (InputUrls(), InputUrls(schemes=tuple(f"scheme{i}" for i in range(99))), InputUrls(hosts=(), private=True)):  # fmt: skip
        assert await reason(policy, make_call(input=deep)) in ("private", "scheme", "host_not_allowed")


async def test_a_url_is_found_at_the_deepest_level_of_a_body():
    """254 levels; a deeper body cannot be encoded, and never becomes a call."""
    deep: Any = {"image_url": BAD}
    for level in range(250):
        deep = {"x": deep} if level % 2 else [deep]

    assert await reason(InputUrls(), make_call(input=deep)) == "private"


async def test_more_values_than_can_be_checked_are_refused():
    """They would delay other requests. A body without the name of a reference is not walked."""
    many = [0] * (MAX_VALUES // 2)

    assert await reason(InputUrls(), make_call(input=[many, {"file_id": "f"}])) is None
    assert await reason(InputUrls(), make_call(input=[many, many, {"file_id": "f"}])) == "too_many_values"
    assert await reason(InputUrls(), make_call(input=[many, many])) is None


@pytest.fixture(scope="module")
def letters() -> list[str]:
    """Every character that folds to ASCII letters."""
    return [chr(code) for code in range(sys.maxunicode) if chr(code).casefold().isascii() and chr(code).isalpha()]


@pytest.mark.parametrize("suffix", REFERENCE_SUFFIXES)
def test_the_fast_filter_finds_every_spelling_of_a_name(suffix: str, letters: list[str]):
    """With any character that folds to letters of the suffix, and with hyphens and underscores between them."""
    length = len(suffix)
    names = [
        f"x{suffix[:start]}{letter}{suffix[end:]}"
        for letter in letters
        for start in range(length)
        for end in range(start, length + 1)
    ]
    checked = [name for name in (*names, "-".join(f"{suffix}_").upper()) if _plain_name(name, "").endswith(suffix)]

    assert len(checked) > 2 * length
    assert [name for name in checked if not may_have_references(orjson.dumps({"input": [{name: ""}]}))] == []
    assert not may_have_references(orjson.dumps({"input": suffix, "text": [f'{suffix}": ']}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schemes": ["file"]}, "'file' cannot be allowed"),
        ({"schemes": ["FILE"]}, "'file' cannot be allowed"),
        ({"schemes": ["https:"]}, "not the name of a scheme"),
        ({"schemes": ["https://"]}, "not the name of a scheme"),
        ({"schemes": [""]}, "not the name of a scheme"),
        ({"hosts": ["https://example.com"]}, "not a host alone"),
        ({"hosts": ["example.com:443"]}, "not a host alone"),
        ({"hosts": ["example.com/a"]}, "not a host alone"),
        ({"hosts": [""]}, "not a host alone"),
        ({"deny_hosts": ["[::1]"]}, "not a host alone"),
        ({"max_data_chars": -1}, "greater than or equal to 0"),
        ({"resolve": True, "private": True}, "resolve refuses private addresses"),
        ({"resolve_timeout_ms": 0}, "greater than 0"),
        ({"host": ["a"]}, "Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_errors(settings: dict, message: str):
    """A list that would match nothing is a mistake."""
    with pytest.raises(ValidationError) as caught:
        InputUrls(**settings)

    assert message in str(caught.value)


def urls_in(value: Any, name: str = "") -> list[str]:
    """Return every string under image_url or file_url, independently of the policy."""
    if isinstance(value, dict):
        return [url for key, inner in value.items() for url in urls_in(inner, key if key != "url" else name)]
    if isinstance(value, list):
        return [url for inner in value for url in urls_in(inner, name)]
    return [value] if isinstance(value, str) and name in ("image_url", "file_url") else []


def is_plain(url: str) -> bool:
    """Whether every reader finds inline data in a URL, or a public host made of the pieces below."""
    match = re.fullmatch(r"https://([a-z0-9_.-]+?)\.?(?::[0-9]+)?(?:[/?#][^\s\\]*)?", url, re.ASCII)
    if match is None or "." not in match[1]:
        return url.startswith("data:")
    last = match[1].rpartition(".")[2]
    return match[1] == "8.8.8.8" or (last not in ("localhost", "0x7f") and not last.isdecimal())


PIECES = ["https", "http", "data", "file", ":", "//", "/", "\\", "@", "127.0.0.1", "8.8.8.8", "0x7f.1", "localhost", "example", ".", "com", "#", "?", " ", "[::1]", "\u3002", "%2e", ":80", "a"]  # fmt: skip
URLS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.lists(st.sampled_from(PIECES), max_size=5).map(
    lambda pieces: "https://" + "".join(pieces)
)
NAMES = st.sampled_from([
    "image_url", "file_url", "url", "content", "output", "text", "type", "file_id", "file_data", "tools", "annotations",
])  # fmt: skip
INPUTS = st.recursive(
    URLS | JSON,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
STRICT = InputUrls(max_data_chars=64)


@NO_DEADLINE
@given(fields=st.dictionaries(st.sampled_from(["input", "instructions", "prompt", "tools", "items"]), INPUTS))
async def test_what_passes_names_public_hosts_only(fields: dict[str, Any]):
    """Any JSON is refused with a reason, or passes unchanged and in an independent reading."""
    if await reason(STRICT, make_call(**fields)) is None:
        checked = {name: value for name, value in fields.items() if name != "prompt"}
        assert [url for url in urls_in(checked) if not is_plain(url)] == []


@NO_DEADLINE
@given(url=URLS)
async def test_a_url_that_passes_is_a_plain_one(url: str):
    """Pieces of schemes, hosts and delimiters in any order."""
    if await reason(InputUrls(), make_call(input=image(url))) is None:
        assert is_plain(url)


@NO_DEADLINE
@given(value=INPUTS, dice=st.randoms())
async def test_the_decision_depends_on_neither_order_nor_streaming(value: Any, dice: random.Random):
    """The refusal is the same in any order of names, for a stream and a body."""
    first = await reason(STRICT, make_call(input=value, stream=False))

    assert await reason(STRICT, make_call(stream=True, input=shuffled(value, dice))) == first
