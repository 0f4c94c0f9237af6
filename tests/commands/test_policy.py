"""`headgate policy test` and `headgate policy diff`, run as from a command line."""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.support.principal import derive_identifier
from proxy.__main__ import main
from proxy.app import running
from proxy.config.build import build
from proxy.context import Caller
from tests.conftest import CANNED, tables_for
from tests.oidc import segment
from tests.upstream import FakeUpstream

EXAMPLES = sorted((Path(__file__).parent.parent / "policies").glob("*.toml"))
POLICIES = """
[[policy]]
use = "max_tool_calls"
max = 4
[[policy]]
use = "safety_identifier"
user = "move"
blocked = ["bad"]
"""
CASES = """
[[case]]
name = "no number"
request = {model = "m"}
changed = {max_tool_calls = 4}
[[case]]
request = {model = "m", max_tool_calls = 2, user = "ann"}
changed = {safety_identifier = "ann"}
removed = ["user"]
[[case]]
name = "a blocked identifier"
request = {model = "m", safety_identifier = "bad"}
expect = "denied"
code = "safety_identifier.blocked"
"""


def file(folder: Path, text: str, name: str = "cases.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


NO_POLICY = "warning: {}: there is no [[policy]] to test; add one, or give --config FILE\n"


def text_of(path: str) -> str:
    return Path(path).read_text()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return the exit status, stdout and stderr."""
    code = main(["policy", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_cases_of_every_policy_hold(example: Path, capsys):
    """The files of cases in tests/policies document their policies."""
    code, out, err = run(capsys, "test", str(example))

    assert (code, err) == (0, "")
    assert re.fullmatch(r"(1 case|[1-9]\d* cases), 0 not as expected\.\n", out)


def test_expected_outcomes_are_exit_0(tmp_path: Path, capsys):
    """The outcomes are allowed, changed, removed and denied."""
    assert run(capsys, "test", file(tmp_path, POLICIES + CASES)) == (0, "3 cases, 0 not as expected.\n", "")


def test_several_files_are_counted_together(tmp_path: Path, capsys):
    """Each file has its own policies; one without any is named."""
    files = [
        file(tmp_path, POLICIES + CASES, "one.toml"),
        file(tmp_path, '[[case]]\nrequest = {model = "m"}', "two.toml"),
    ]

    assert run(capsys, "test", *files) == (0, "4 cases, 0 not as expected.\n", NO_POLICY.format(files[1]))


@pytest.mark.parametrize(
    ("case", "expected", "found"),
    [
        (
            'request = {model = "m"}\nexpect = "denied"\ncode = "max_tool_calls.too_many"',
            "denied, max_tool_calls.too_many",
            "allowed, max_tool_calls = 4",
        ),
        (
            'request = {model = "m", safety_identifier = "bad"}',
            "allowed",
            "denied, safety_identifier.blocked",
        ),
        (
            'request = {model = "m", safety_identifier = "bad"}\nexpect = "denied"\ncode = "safety_identifier.pattern"',
            "denied, safety_identifier.pattern",
            "denied, safety_identifier.blocked",
        ),
        (
            'request = {model = "m"}\nchanged = {max_tool_calls = 5}',
            "allowed, max_tool_calls = 5",
            "allowed, max_tool_calls = 4",
        ),
        (
            'request = {model = "m", max_tool_calls = 1, user = "a"}\nremoved = ["user"]',
            "allowed, without user",
            'allowed, safety_identifier = "a", without user',
        ),
        ('request = {model = ""}', "allowed", "denied, invalid_type"),
        ("request = {}", "allowed", "denied, missing_required_parameter"),
    ],
)  # fmt: skip
def test_a_case_that_differs_is_printed_and_exit_1(tmp_path: Path, capsys, case: str, expected: str, found: str):
    """The line has its file, number and name, and the expected and the actual outcome."""
    path = file(tmp_path, f'{POLICIES}{CASES}[[case]]\nname = "this one"\n{case}')
    code, out, err = run(capsys, "test", path)

    assert (code, err) == (1, "")
    assert out == (
        f"{path}, case 4 this one\n  expected: {expected}\n  found:    {found}\n4 cases, 1 not as expected.\n"
    )


def test_all_cases_that_differ_are_printed(tmp_path: Path, capsys):
    """The run does not stop at the first one."""
    wrong = '[[case]]\nrequest = {model = "m"}\n' * 3
    _, out, _ = run(capsys, "test", file(tmp_path, POLICIES + wrong), file(tmp_path, POLICIES + wrong, "b.toml"))

    assert out.count("found:    allowed, max_tool_calls = 4") == 6
    assert out.endswith("6 cases, 6 not as expected.\n")


def test_cases_may_be_lines_of_json(tmp_path: Path, capsys):
    """Empty lines are skipped."""
    lines = [
        {"name": "moved", "request": {"model": "m", "max_tool_calls": 1}},
        {"request": {"model": "m"}, "changed": {"max_tool_calls": 4}},
        {
            "request": {"model": "m", "safety_identifier": "bad"},
            "expect": "denied",
            "code": "safety_identifier.blocked",
        },
    ]
    cases = file(tmp_path, "\n\n".join(orjson.dumps(line).decode() for line in lines) + "\n", "cases.jsonl")
    config = file(tmp_path, POLICIES + CANNED, "gateway.toml")

    assert run(capsys, "test", cases, "--config", config) == (0, "3 cases, 0 not as expected.\n", "")
    assert run(capsys, "test", cases)[1].splitlines() == [
        f"{cases}, case 2",
        "  expected: allowed, max_tool_calls = 4",
        "  found:    allowed",
        f"{cases}, case 3",
        "  expected: denied, safety_identifier.blocked",
        "  found:    allowed",
        "3 cases, 2 not as expected.",
    ]


def test_the_policies_of_a_config_replace_those_of_the_file(tmp_path: Path, capsys):
    """They run in the mode that the config sets."""
    cases = file(tmp_path, POLICIES + CASES)
    config = file(tmp_path, POLICIES.replace("max = 4", "max = 9") + CANNED, "gateway.toml")
    reported = file(tmp_path, POLICIES.replace("blocked", 'mode = "report"\nblocked') + CANNED, "report.toml")

    assert run(capsys, "test", cases, "--config", config)[0] == 1
    assert (
        "denied, safety_identifier.blocked\n  found:    allowed" in run(capsys, "test", cases, "--config", reported)[1]
    )


@pytest.mark.parametrize(("profile", "status"), [("sudo", 0), ("generic", 1)])
def test_what_the_backends_of_a_config_allow_counts(profile: str, status: int, tmp_path: Path, capsys):
    """A server may allow 0."""
    case = '[[case]]\nrequest = {model = "m", max_tool_calls = 0}\nchanged = {}\n'
    backend = f'[[backend]]\nname = "it"\nuse = "upstream"\nbase_url = "https://a.example"\nprofile = "{profile}"\n'
    policy, route = '[[policy]]\nuse = "max_tool_calls"\nmax = 8\n', '[[route]]\nmodel = "*"\nbackend = "it"\n'
    config = file(tmp_path, policy + backend + route, "gateway.toml")

    assert run(capsys, "test", file(tmp_path, case), "--config", config)[0] == status


def test_no_secret_of_the_gateway_is_needed(tmp_path: Path, capsys, monkeypatch):
    """The checks of a change run where there are none; a case is in its caller's team, and a typo in a name is seen."""
    monkeypatch.delenv("APP_KEY", raising=False)
    keyed = '[[policy]]\nuse = "safety_identifier"\nsource = "caller"\nkey = "env:APP_KEY"\n'
    callers = "".join(f'[[caller]]\nname = "{name}"\nteam = "search"\nkey = "env:APP_KEY_{name}"\n' for name in "ab")
    config, cases = tmp_path / "my.toml", tmp_path / "cases.toml"
    config.write_text(callers + keyed + CANNED)
    key = hashlib.sha256(b"placeholder env:APP_KEY").hexdigest().encode()
    derived = derive_identifier(key, Caller("a", "search"))
    cases.write_text(f"""
[[case]]
caller = "a"
request = {{model = "m"}}
changed = {{safety_identifier = "{derived}"}}
[[case]]
caller = "aa"
request = {{model = "m"}}
""")
    code = main(["policy", "test", str(cases), "--config", str(config)])
    printed = capsys.readouterr()

    assert (code, printed.out.splitlines()[-1]) == (1, "2 cases, 1 not as expected.")
    assert printed.err == f"warning: {cases}, case 2: no [[caller]] is called 'aa'; did you mean a?\n"
    (tmp_path / "log.jsonl").write_text("")
    assert main(["policy", "diff", str(config), str(config), "--requests", str(tmp_path / "log.jsonl")]) == 0


def test_a_case_can_have_a_caller_a_team_and_headers(tmp_path: Path, capsys, monkeypatch):
    """Policies receive them as in a gateway; names of headers are case-insensitive."""
    monkeypatch.setenv("SAFETY_KEY", "a key for tests")
    text = """
[[policy]]
use = "safety_identifier"
callers = ["ann*"]
source = "caller"
key = "env:SAFETY_KEY"
end_user_header = "X-End-User"
[[case]]
caller = "ben"
request = {model = "m"}
[[case]]
caller = "anna"
request = {model = "m"}
changed = {safety_identifier = "ANNA"}
[[case]]
caller = "anna"
team = "search"
request = {model = "m"}
changed = {safety_identifier = "SEARCH"}
[[case]]
caller = "anna"
headers = {x-END-user = "kim"}
request = {model = "m"}
changed = {safety_identifier = "KIM"}
"""
    code, out, _ = run(capsys, "test", file(tmp_path, text))
    found = [line.split('"')[1] for line in out.splitlines() if line.startswith("  found:")]

    assert code == 1
    assert out.endswith("4 cases, 3 not as expected.\n")
    assert [len(identifier) for identifier in found] == [43, 43, 43]
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[case]]\nname = 'c'\nexpect = 'denied'\nrequest = {model = 'm'}",
         ", case 1: 'c': expect = \"denied\" needs a code"),
        ("[[case]]\nname = 'c'\ncode = 'x'\nrequest = {model = 'm'}",
         ", case 1: 'c' has a code; a case with a code needs expect = \"denied\""),
        ("[[case]]\nrequest = {}\n[[case]]\nexpect = 'perhaps'\nrequest = {}", ", case 2: expect: String should match"),
        ("[[case]]\nname = 'no request'", ", case 1: request: missing"),
        ("[[route]]\nmodel = 'm'", ": this is a config, which has no cases; give it with --config"),
        ("[[case]]\nrequest = 'text'", ", case 1: request: Input should be a valid table"),
        ("[[case]]\nrequest = {}\nexpects = 'denied'", ", case 1: expects: unknown key; did you mean expect?"),
        ("[[case]]\nrequest = {model = 'm', n = 9223372036854775808999}",
         ", case 1: request: Integer exceeds 64-bit range; the limits are integers of 64 bits and 254 levels"),
        (f"[[case]]\nrequest = {{}}\n[[case]]\nrequest = {{a = {'[' * 254}{']' * 254}}}",
         ", case 2: request: Recursion limit reached; the limits are integers of 64 bits and 254 levels"),
        ("[[case]]\nrequest = {}\nchanged = {n = 9223372036854775808999}", ", case 1: changed: Integer exceeds"),
        (f"[[case]]\nrequest = {{a = {'[' * 9999}{']' * 9999}}}", ": maximum recursion depth exceeded"),
        ("[[cases]]\nrequest = {}", "cases: unknown key; did you mean case?"),
        ("[case]\nrequest = {}", "case: Input should be a valid list; write [[case]], with two brackets"),
        ("policy = 7", "policy: Input should be a valid list"),
        ("[policy]\nuse = 'models'", "policy: Input should be a valid list; write [[policy]], with two brackets"),
        ("[[policy]]\nuse = 'max_tool_calls'", "policy[0].max: missing"),
        ("[[policy]]\nmax = 3", "policy[0].use: missing"),
        ("[[policy]]\nuse = 'nothing'", "policy[0].use: there is no module policies.nothing"),
        ("[[case", "Expected "),
        ("\udcff", "can't decode byte"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_exit_2(tmp_path: Path, capsys, text: str, message: str):
    """The message has the file, the position and the fault; no case runs."""
    path = tmp_path / "cases.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    code, out, err = run(capsys, "test", str(path))

    assert (code, out) == (2, "")
    assert err.startswith(str(path))
    assert message in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: unexpected end of data\n"),
        ("[" * 2000, "line 3: "),
        ("[]", "case 2: Input should be a valid table\n"),
        ("7", "case 2: Input should be a valid table\n"),
        ('{"request":7}', "case 2: request: Input should be a valid table\n"),
        ('{"name":"no request"}', "case 2: request: missing\n"),
        ('{"request":{"a":' + "[" * 254 + "]" * 254 + "}}", "case 2: request: Recursion limit reached; the limits are "),
    ],
)  # fmt: skip
def test_a_line_that_is_not_a_case_is_exit_2(tmp_path: Path, capsys, line: str, message: str):
    """The message has the line number of invalid JSON and the case number of other values, counted from 1."""
    path = file(tmp_path, '{"request":{"model":"m"}}\n\n' + line, "cases.jsonl")
    code, out, err = run(capsys, "test", path)

    assert (code, out) == (2, "")
    assert err.startswith(f"{path}, {message}")


def test_lines_of_json_may_start_with_a_byte_order_mark(tmp_path: Path, capsys):
    """Some editors write one; it is not part of the first line."""
    cases = file(tmp_path, '\ufeff{"request":{"model":"m"}}\n', "cases.jsonl")
    gateway = file(tmp_path, OLD + CANNED, "old.toml")
    recorded = file(tmp_path, '\ufeff{"caller":"a","team":"a","request":{"model":"m"}}\n', "requests.jsonl")

    assert run(capsys, "test", cases) == (0, "1 case, 0 not as expected.\n", NO_POLICY.format(cases))
    assert run(capsys, "diff", gateway, gateway, "--requests", recorded) == (
        0,
        "1 requests, 0 change their outcome.\n",
        "",
    )


@pytest.mark.parametrize("arguments", [["test", "none.toml"], ["test", "none.jsonl"]])
def test_a_missing_file_is_exit_2(tmp_path: Path, capsys, monkeypatch, arguments: list[str]):
    """The message names it."""
    monkeypatch.chdir(tmp_path)

    assert run(capsys, *arguments) == (2, "", f"{arguments[1]}: No such file or directory\n")


def test_a_missing_config_is_exit_2(tmp_path: Path, capsys):
    """The message names it."""
    none = tmp_path / "none.toml"

    assert run(capsys, "test", file(tmp_path, CASES), "--config", str(none)) == (
        2,
        "",
        f"{none}: No such file or directory\n",
    )


CALLERS = {"anna": "key-of-anna", "ben": "key-of-ben"}
OLD = """
[[policy]]
use = "max_tool_calls"
max = 8
[[policy]]
use = "metadata_limits"
max_value_chars = 100
"""
NEW = OLD.replace("max = 8", 'max = 4\non_exceed = "reject"').replace("100", "10")


async def recorded_by_gateway(http, upstream: FakeUpstream, path: Path, *requests: Sequence[Any], **more: Any) -> str:
    """Return the file in which a gateway recorded these requests (query, body, headers); the gateway is closed again."""
    tables = tables_for(upstream, record={"path": str(path)}, server={"port": 0, "drain_s": 0}, **more)
    async with running(build(tables)) as gateway:
        for query, body, headers in requests:
            url = f"{gateway}/v1/responses?{query}" if query else f"{gateway}/v1/responses"
            async with http.post(url, json={"model": "m", **body}, headers=headers) as answer:
                await answer.read()
    return str(path)


@pytest.fixture
async def record(http, upstream: FakeUpstream, tmp_path: Path) -> str:
    """Return the record of seven calls by two callers."""
    callers = [{"name": name, "key_sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in CALLERS.items()]
    calls: list[tuple[str, dict[str, Any]]] = [
        ("anna", {"max_tool_calls": 6}),
        ("anna", {"max_tool_calls": 6, "metadata": {"note": "short"}}),
        ("anna", {"max_tool_calls": 3}),
        ("anna", {"metadata": {"note": "a note that is longer"}}),
        ("ben", {"max_tool_calls": 7}),
        ("ben", {"metadata": {"note": "x" * 101}}),
        ("ben", {"max_tool_calls": 2, "input": "Hello"}),
    ]
    requests = [("", body, {"Authorization": f"Bearer {CALLERS[name]}"}) for name, body in calls]
    return await recorded_by_gateway(http, upstream, tmp_path / "requests.jsonl", *requests, caller=callers)


async def test_diff_lists_the_callers_whose_requests_change_their_outcome(record: str, tmp_path: Path, capsys):
    """The most frequent change is first; each line has the outcome before and after."""
    old, new = file(tmp_path, OLD + CANNED, "old.toml"), file(tmp_path, NEW + CANNED, "new.toml")
    code, out, err = await asyncio.to_thread(run, capsys, "diff", old, new, "--requests", record)

    assert (code, err) == (1, "")
    assert out.splitlines() == [
        "     2  anna: allowed  ->  denied, max_tool_calls.too_many",
        "     1  anna: allowed, max_tool_calls = 8  ->  denied, metadata_limits.value_too_long",
        "     1  ben: allowed  ->  denied, max_tool_calls.too_many",
        "7 requests, 4 change their outcome.",
    ]


async def test_diff_of_a_config_with_itself_is_exit_0(record: str, tmp_path: Path, capsys):
    """No outcome changes."""
    old = file(tmp_path, OLD + CANNED, "old.toml")
    same = file(tmp_path, f"# the same\n{OLD}{CANNED}", "same.toml")

    assert await asyncio.to_thread(run, capsys, "diff", old, same, "--requests", record) == (
        0,
        "7 requests, 0 change their outcome.\n",
        "",
    )


async def test_diff_compares_changed_fields_too(record: str, tmp_path: Path, capsys):
    """A lower default changes what is sent."""
    old = file(tmp_path, OLD + CANNED, "old.toml")
    new = file(tmp_path, OLD.replace("max = 8", "max = 8\ndefault = 2") + CANNED, "new.toml")
    code, out, _ = await asyncio.to_thread(run, capsys, "diff", old, new, "--requests", record)

    assert (code, out) == (
        1,
        "     1  anna: allowed, max_tool_calls = 8  ->  allowed, max_tool_calls = 2\n7 requests, 1 change their outcome.\n",
    )


SECRETS = "https://Images.example.com/anna/secret.png?token=secret"
OPEN = """
[[policy]]
use = "input_urls"
[[policy]]
use = "include"
"""
CLOSED = """
[[policy]]
use = "input_urls"
hosts = ["*.example.com"]
deny_hosts = ["files.*"]
[[policy]]
use = "include"
deny = ["reasoning.*"]
"""


LINKED: list[tuple[dict[str, Any], str]] = [
    ({"image_url": SECRETS}, "include[]=web_search_call.results&key=secret"),
    ({"imageUrl": {"url": "https://elsewhere.example/secret"}}, ""),
    ({"photo-url": ["https://files.example.com/secret"]}, ""),
    ({"text": "https://elsewhere.example/secret"}, ""),
    ({}, "include%5B%5D=reasoning.encrypted_content,secret"),
]


@pytest.fixture
async def links(http, upstream: FakeUpstream, tmp_path: Path) -> str:
    """Return the record of calls with URLs, some with a query."""
    requests = [(query, {"input": [{"role": "user", "content": [content]}]}, {}) for content, query in LINKED]
    return await recorded_by_gateway(http, upstream, tmp_path / "requests.jsonl", *requests)


async def test_diff_compares_hosts_and_the_include_of_a_query(links: str, tmp_path: Path, capsys):
    """The field with the URL may have any name; no other part of it is recorded."""
    old, new = file(tmp_path, OPEN + CANNED, "old.toml"), file(tmp_path, CLOSED + CANNED, "new.toml")
    code, out, err = await asyncio.to_thread(run, capsys, "diff", old, new, "--requests", links)

    assert (code, err) == (1, "")
    assert out.splitlines() == [
        "     2  anybody: allowed  ->  denied, input_urls.host_not_allowed",
        "     1  anybody: allowed  ->  denied, include.not_allowed",
        "5 requests, 3 change their outcome.",
    ]
    assert "secret" not in text_of(links)


def test_a_case_can_have_a_query(tmp_path: Path, capsys):
    """It is written as in a URL, without the question mark."""
    case = """
[[case]]
request = {model = "m"}
query = "include[]=reasoning.encrypted_content"
expect = "denied"
code = "include.not_allowed"
"""

    assert run(capsys, "test", file(tmp_path, CLOSED + case)) == (0, "1 case, 0 not as expected.\n", "")


TEXT_SETTINGS = """
[[policy]]
use = "metadata_limits"
allowed = ["note"]
values = {note = "[a-z]*"}
[[policy]]
use = "safety_identifier"
pattern = "[a-z0-9]*"
max_chars = 32
[[policy]]
use = "tools"
deny_names = ["rm"]
deny_types = ["shell"]
"""
ONE = '{"caller":"a","team":"a","request":{"model":"m","tools":[{"type":"custom","name":{"$chars":2}}]}}'


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("", TEXT_SETTINGS, "metadata_limits.values, safety_identifier.pattern, tools.deny_names"),
        (TEXT_SETTINGS, "", "metadata_limits.values, safety_identifier.pattern, tools.deny_names"),
        (TEXT_SETTINGS, '[[policy]]\nuse = "tools"\nmcp_labels = ["ours"]\n',
         "tools.mcp_labels, metadata_limits.values, safety_identifier.pattern, tools.deny_names"),
        ("", '[[policy]]\nuse = "safety_identifier"\npii = "reject"\nmode = "off"\n' + TEXT_SETTINGS + TEXT_SETTINGS,
         "metadata_limits.values, safety_identifier.pattern, tools.deny_names"),
    ],
)  # fmt: skip
def test_diff_names_the_settings_that_depend_on_texts(tmp_path: Path, capsys, old: str, new: str, named: str):
    """It names those of both configs once, without defaults and disabled rules; the exit status does not change."""
    before, after = file(tmp_path, old + CANNED, "old.toml"), file(tmp_path, new + CANNED, "new.toml")

    assert run(capsys, "diff", before, after, "--requests", file(tmp_path, ONE, "requests.jsonl")) == (
        0,
        "1 requests, 0 change their outcome.\n",
        f"recorded requests contain no text: they cannot show the effect of {named}\n",
    )


def test_diff_names_the_rules_that_only_report(tmp_path: Path, capsys):
    """Their mode is the reason why a new rule changes no outcome."""
    old = file(tmp_path, CANNED, "old.toml")
    new = file(tmp_path, '[[policy]]\nuse = "tools"\nallow_types = []\nmode = "report"\n' + CANNED, "new.toml")

    assert run(capsys, "diff", old, new, "--requests", file(tmp_path, ONE, "requests.jsonl")) == (
        0,
        "1 requests, 0 change their outcome.\n",
        'tools only reports (mode = "report"): no request is refused or changed by it\n',
    )


def test_diff_of_an_empty_record_is_exit_0(tmp_path: Path, capsys):
    """Without requests no outcome can change."""
    old, new = file(tmp_path, OLD + CANNED, "old.toml"), file(tmp_path, NEW + CANNED, "new.toml")

    assert run(capsys, "diff", old, new, "--requests", file(tmp_path, "\n", "none.jsonl")) == (
        0,
        "0 requests, 0 change their outcome.\n",
        "",
    )


@pytest.mark.parametrize(
    "line", ["{", "[]", "7", "{}", '{"caller":"a","team":"a"}', '{"caller":"a","team":"a","request":7}',
             '{"caller":7,"team":"a","request":{}}', '{"caller":"a","team":"a","request":{},"query":7}',
             '{"caller":"a","team":"a","request":{},"query":{"include":7}}', '{"caller":"a","team":"a","request":{"$chars":"many"}}',
             '{"caller":"a","team":"a","request":{"a":' + "[" * 990 + "]" * 990 + "}}"]
)  # fmt: skip
def test_diff_of_a_line_of_another_kind_is_exit_2(tmp_path: Path, capsys, line: str):
    """The message has the file and the number of the line."""
    gateway = file(tmp_path, OLD + CANNED, "old.toml")
    good = '{"caller":"a","team":"a","request":{"model":"m"}}'
    requests = file(tmp_path, f"{good}\n\n{line}\n", "requests.jsonl")
    code, out, err = run(capsys, "diff", gateway, gateway, "--requests", requests)

    assert (code, out) == (2, "")
    assert err == f"{requests}, line 3: this is not a line written by [record]\n"


def test_diff_names_a_file_that_is_missing(tmp_path: Path, capsys):
    """The file is a config or the record."""
    gateway, none = file(tmp_path, OLD + CANNED, "old.toml"), str(tmp_path / "none")

    for arguments in (
        [none, gateway, "--requests", gateway],
        [gateway, none, "--requests", gateway],
        [gateway, gateway, "--requests", none],
    ):
        code, out, err = run(capsys, "diff", *arguments)

        assert (code, out) == (2, "")
        assert none in err


def test_a_token_names_the_caller_of_cases_that_name_none(tmp_path: Path, capsys):
    """Its signature and its times are not checked: policies are tried without asking the issuer."""
    issuer = '[[issuer]]\nname = "corp"\nurl = "https://login.example.com"\naudience = "gate"\nteam = "groups"\ntags = {p = "p"}\n'
    policy = '[[policy]]\nuse = "models"\nallow = ["gpt-*"]\ncallers = ["ada"]\n'
    config = file(tmp_path, policy + issuer + CANNED, "gateway.toml")
    request = '"request":{"model":"other"}'
    cases = file(
        tmp_path,
        f'{{{request},"expect":"denied","code":"models.not_allowed"}}\n{{{request},"caller":"ben"}}\n',
        "cases.jsonl",
    )

    def run_with(token: str) -> tuple[int, str, str]:
        return run(capsys, "test", cases, "--config", config, "--token", file(tmp_path, token, "token"))

    claims = {"iss": "https://login.example.com", "aud": "gate", "sub": "ada", "groups": ["search"], "p": 1}
    tokens = [
        ".".join([segment({"alg": "RS256"}), segment({**claims, **more}), "x"])
        for more in ({}, {"aud": "x"}, {"iss": "y"}, {"sub": 7})
    ]
    found = [run_with(token) for token in (*tokens, "sk-1", "\u00e9")]

    assert found[0] == (0, "2 cases, 0 not as expected.\n", "token of corp: caller ada, team search, p=1\n")
    assert [code for code, *_ in found[1:]] == [2] * 5
    messages = [
        "it is for another audience",
        "no [[issuer]] of --config has the url 'y'",
        "The claim that names the caller",
        "not in the form",
        "this is no token",
    ]
    assert [message in err for message, (_, _, err) in zip(messages, found[1:], strict=True)] == [True] * 5
