"""One team reaches nothing of another's: every endpoint, and every place in a request that can have an id."""

import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
import orjson
import pytest

from proxy.context import Caller, Context
from proxy.state.ownership import Ownership
from proxy.state.references import Kind
from proxy.stores.sqlite import SqliteStore
from tests.conftest import StartGateway
from tests.stateful_upstream import StatefulUpstream

DECIDING = tuple(
    str(Path(__file__).parents[1] / "proxy" / name) for name in ("state/", "pipeline.py", "rules/", "wire/")
)
OTHER_PATHS = ("responses/compact", "responses/input_tokens", "new conversation", "conversation of a response")
"""Where what a body names is looked up as it is for a response."""
KEYS = {"anna": "sk-anna-1", "ben": "sk-ben-1"}
TEAMS = {"anna": Caller("anna", "search"), "ben": Caller("ben", "ads")}
MODEL = "gpt-5.6"
FILES: tuple[Kind, ...] = ("file", "vector_store", "container", "skill")
# Method, path and body of a request, made from ids by their kind. `item` is one of the conversation, `output` one of
# the response.
Place = Callable[[dict[str, str]], tuple[str, str, dict[str, Any] | None]]


def message(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": list(parts)}


PATHS: dict[str, Place] = {
    "retrieve": lambda ids: ("GET", f"responses/{ids['response']}", None),
    "retrieve, in capitals": lambda ids: ("GET", f"responses/{ids['response'].upper()}", None),
    "stream": lambda ids: ("GET", f"responses/{ids['response']}?stream=true", None),
    "head": lambda ids: ("HEAD", f"responses/{ids['response']}", None),
    "head of input items": lambda ids: ("HEAD", f"responses/{ids['response']}/input_items", None),
    "stream of the rest": lambda ids: ("GET", f"responses/{ids['response']}?stream=true&starting_after=1", None),
    "head of a conversation": lambda ids: ("HEAD", f"conversations/{ids['conversation']}", None),
    "head of items": lambda ids: ("HEAD", f"conversations/{ids['conversation']}/items", None),
    "head of an item": lambda ids: ("HEAD", f"conversations/{ids['conversation']}/items/{ids['item']}", None),
    "delete": lambda ids: ("DELETE", f"responses/{ids['response']}", None),
    "cancel": lambda ids: ("POST", f"responses/{ids['response']}/cancel", {}),
    "input items": lambda ids: ("GET", f"responses/{ids['response']}/input_items", None),
    "conversation": lambda ids: ("GET", f"conversations/{ids['conversation']}", None),
    "update of a conversation": lambda ids: ("POST", f"conversations/{ids['conversation']}", {"metadata": {}}),
    "deletion of a conversation": lambda ids: ("DELETE", f"conversations/{ids['conversation']}", None),
    "items": lambda ids: ("GET", f"conversations/{ids['conversation']}/items", None),
    "addition of items": lambda ids: ("POST", f"conversations/{ids['conversation']}/items", {"items": [message()]}),
    "item": lambda ids: ("GET", f"conversations/{ids['conversation']}/items/{ids['item']}", None),
    "item in an own conversation": lambda ids: ("GET", f"conversations/{ids['own']}/items/{ids['item']}", None),
    "deletion of an item": lambda ids: ("DELETE", f"conversations/{ids['conversation']}/items/{ids['item']}", None),
}
# What a body can name, as fields of it.
CONTINUED: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "previous_response_id": lambda ids: {"previous_response_id": ids["response"]},
    "conversation": lambda ids: {"conversation": ids["conversation"]},
    "conversation as an object": lambda ids: {"conversation": {"id": ids["conversation"]}},
    "compared response": lambda ids: {"prompt_cache_options": {"comparison_response_id": ids["response"]}},
    "vector store": lambda ids: {"tools": [{"type": "file_search", "vector_store_ids": [ids["vector_store"]]}]},
    "vector store in a namespace": lambda ids: {
        "tools": [
            {"type": "namespace", "name": "n", "tools": [{"type": "file_search", "vector_store_ids": [ids["vector_store"]]}]}
        ]
    },
    "container": lambda ids: {"tools": [{"type": "code_interpreter", "container": ids["container"]}]},
    "file of a container": lambda ids: {
        "tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": [ids["file"]]}}]
    },
    "container of a shell": lambda ids: {
        "tools": [{"type": "shell", "environment": {"type": "container_reference", "container_id": ids["container"]}}]
    },
    "skill of a shell": lambda ids: {
        "tools": [
            {"type": "shell", "environment": {
                "type": "container_auto", "skills": [{"type": "skill_reference", "skill_id": ids["skill"]}],
            }}
        ]
    },
    "mask of an image": lambda ids: {"tools": [{"type": "image_generation", "input_image_mask": {"file_id": ids["file"]}}]},
    "file in a prompt": lambda ids: {
        "prompt": {"id": "p", "variables": {"file": {"type": "input_file", "file_id": ids["file"]}}}
    },
}  # fmt: skip
ITEMS: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "item_reference": lambda ids: {"type": "item_reference", "id": ids["output"]},
    "item_reference, spelled otherwise": lambda ids: {"type": "itemReference", "id": ids["output"]},
    "reference without a type": lambda ids: {"id": ids["item"]},
    "reference with a null type": lambda ids: {"id": ids["item"], "type": None},
    "reasoning without content": lambda ids: {"type": "reasoning", "id": ids["output"], "summary": []},
    "image without a result": lambda ids: {"type": "image_generation_call", "id": ids["output"]},
    "file": lambda ids: message({"type": "input_file", "file_id": ids["file"]}),
    "image": lambda ids: message({"type": "input_image", "file_id": ids["file"]}),
    "image, spelled otherwise": lambda ids: message({"type": "input_image", "fileId": ids["file"]}),
    "file of a tool": lambda ids: {
        "type": "function_call_output", "call_id": "c", "output": [{"type": "input_file", "file_id": ids["file"]}],
    },
    "screenshot": lambda ids: {
        "type": "computer_call_output", "call_id": "c",
        "output": {"type": "computer_screenshot", "file_id": ids["file"]},
    },
    "container of an earlier call": lambda ids: {
        "type": "code_interpreter_call", "id": "ci_1", "container_id": ids["container"], "code": "1",
    },
    "container of a shell's call": lambda ids: {
        "type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]},
        "environment": {"type": "container_reference", "container_id": ids["container"]},
    },
    "file of a custom tool": lambda ids: {
        "type": "custom_tool_call_output", "call_id": "c", "output": [{"type": "input_image", "file_id": ids["file"]}],
    },
    "tools that were found": lambda ids: {
        "type": "tool_search_output", "tools": [{"type": "file_search", "vector_store_ids": [ids["vector_store"]]}],
    },
    "additional tools": lambda ids: {
        "type": "additional_tools", "role": "developer",
        "tools": [{"type": "file_search", "vector_store_ids": [ids["vector_store"]]}],
    },
}  # fmt: skip


def _bodies() -> dict[str, Place]:
    """Each id in a body, on each endpoint that takes it."""
    places: dict[str, Place] = {}
    for path in ("responses", "responses/compact", "responses/input_tokens"):
        for name, make in CONTINUED.items():
            places[f"{path}: {name}"] = lambda ids, path=path, make=make: (
                "POST", path, {"model": MODEL, "input": "Hi", **make(ids)},
            )  # fmt: skip
        for name, make in ITEMS.items():
            places[f"{path}: {name}"] = lambda ids, path=path, make=make: (
                "POST", path, {"model": MODEL, "input": [make(ids)]},
            )  # fmt: skip
    for name, make in ITEMS.items():
        places[f"new conversation: {name}"] = lambda ids, make=make: ("POST", "conversations", {"items": [make(ids)]})
        places[f"items: {name}"] = lambda ids, make=make: (
            "POST", f"conversations/{ids['own']}/items", {"items": [make(ids)]},
        )  # fmt: skip
        places[f"conversation of a response: {name}"] = lambda ids, make=make: (
            "POST", "responses", {"model": MODEL, "conversation": {"items": [make(ids)]}},
        )  # fmt: skip
    return places


PLACES = PATHS | _bodies()
TEXT = {"type": "input_text", "text": "Hello!"}
CALL = {"model": MODEL, "input": "Hello!"}
DURATION = re.compile(r";dur=[0-9.]+")
# What a local model cannot read: it gets a placeholder or a refusal, and no id in it is ever looked up.
WITHOUT_LOOKUP = (
    "reasoning without content", "image without a result", "item_reference, spelled otherwise", "compared response",
)  # fmt: skip


class Teams:
    """Two teams at one gateway, and what one of them owns."""

    def __init__(self, address: str, http: aiohttp.ClientSession, ids: dict[str, str]) -> None:
        self.address = address
        self.http = http
        self.ids = ids

    async def ask(self, caller: str, place: Place, ids: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body, without what differs between any two answers."""
        method, path, body = place(ids)
        headers = {"Authorization": f"Bearer {KEYS[caller]}"}
        async with self.http.request(method, f"{self.address}/v1/{path}", json=body, headers=headers) as answer:
            kept = {
                name: DURATION.sub("", value)
                for name, value in answer.headers.items()
                if name.lower() not in ("x-request-id", "date")
            }
            return answer.status, kept, await answer.read()


def other(ids: dict[str, str], end: str = "abcdef") -> dict[str, str]:
    """Return ids of the same length that do not exist."""
    return {kind: value if kind == "own" else value[:-6] + end for kind, value in ids.items()}


@pytest.fixture
async def upstream() -> AsyncIterator[StatefulUpstream]:
    async with StatefulUpstream() as server:
        yield server


@pytest.fixture
def start_teams(start_gateway: StartGateway, upstream: StatefulUpstream, http, monkeypatch, tmp_path: Path):
    """Start a gateway with two teams; files, vector stores and containers of the first are bound in its store."""
    for name, key in KEYS.items():
        monkeypatch.setenv(f"KEY_{name}", key)

    async def start(unknown_ids: str) -> Teams:
        path = tmp_path / "state.sqlite3"
        setting = {} if unknown_ids == "default" else {"unknown_ids": unknown_ids}
        address = await start_gateway({
            "caller": [{"name": name, "team": TEAMS[name].team, "key": f"env:KEY_{name}"} for name in KEYS],
            "state": {"use": "sqlite", "path": str(path), **setting},
            "backend": [{"name": "b", "use": "upstream", "base_url": f"{upstream.address}/v1", "keeps_state": True}],
            "route": [{"model": "*", "backend": "b"}],
        })  # fmt: skip
        teams = Teams(address, http, {})
        teams.ids |= await make(teams)
        store = SqliteStore(path=path)
        await store.start()
        for kind in FILES:
            context = Context("req_1", TEAMS["anna"])
            await Ownership(store).bind_id(kind, teams.ids[kind], "b", context)
        await store.close()
        return teams

    async def make(teams: Teams) -> dict[str, str]:
        """Let each team create a conversation, and the first one a response."""
        made: dict[str, str] = {kind: f"{kind}_{'0' * 12}" for kind in FILES}
        for caller, name in (("anna", "conversation"), ("ben", "own")):
            created = await teams.ask(caller, lambda _: ("POST", "conversations", {"items": [message()]}), {})
            made[name] = orjson.loads(created[2])["id"]
        items = await teams.ask("anna", PATHS["items"], made)
        made["item"] = orjson.loads(items[2])["data"][0]["id"]
        created = await teams.ask("anna", lambda _: ("POST", "responses", {"model": MODEL, "background": True}), {})
        made["response"] = orjson.loads(created[2])["id"]
        streamed = await teams.ask(
            "anna", lambda _: ("POST", "responses", {"model": MODEL, "input": "Hi", "stream": True}), {}
        )
        done = next(
            line for line in streamed[2].splitlines() if line.startswith(b'data: {"type":"response.output_item.done')
        )
        made["output"] = orjson.loads(done[6:])["item"]["id"]
        upstream.requests.clear()
        return made

    return start


@pytest.mark.parametrize("unknown_ids", ["allow", "default"])
async def test_no_place_of_a_request_reaches_another_team(start_teams, upstream: StatefulUpstream, unknown_ids: str):
    """The id is not found, and the upstream receives no request."""
    teams = await start_teams(unknown_ids)
    refused = {name: await teams.ask("ben", place, teams.ids) for name, place in PLACES.items()}

    assert {name: answer[0] for name, answer in refused.items() if answer[0] not in (400, 404)} == {}
    assert {name for name, answer in refused.items() if answer[0] == 400} == {
        f"{path}: {field}"
        for path in ("responses", "responses/compact", "responses/input_tokens")
        for field in ("previous_response_id", "compared response")
    }
    assert [
        name for name, answer in refused.items() if b"not found." not in answer[2] and not name.startswith("head")
    ] == []
    assert upstream.requests == []


async def test_foreign_and_unknown_ids_get_the_same_answer(start_teams, upstream: StatefulUpstream):
    """To the byte, but for the id itself, which a caller sent."""
    teams = await start_teams("default")
    unknown = other(teams.ids)
    for place in PLACES.values():
        foreign = await teams.ask("ben", place, teams.ids)
        absent = await teams.ask("ben", place, unknown)
        body = foreign[2]
        for kind, value in teams.ids.items():
            body = body.replace(value.encode(), unknown[kind].encode())
            body = body.replace(value.upper().encode(), unknown[kind].upper().encode())

        assert absent == (foreign[0], foreign[1], body)
    assert upstream.requests == []


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Count the functions that decide about ids, as they are called in this thread, inside the block."""
    found: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(DECIDING):
            found[code.co_qualname] += 1

    sys.setprofile(count)
    try:
        yield found
    finally:
        sys.setprofile(None)


async def test_foreign_and_unknown_ids_take_the_same_work(start_teams):
    """The same functions are called, so that the time of an answer says nothing."""
    teams = await start_teams("default")
    unknown, different = other(teams.ids), {}
    for name, place in PLACES.items():
        if name.startswith(OTHER_PATHS):
            continue
        # What is remembered of names of fields is there from now on.
        await teams.ask("ben", place, other(unknown, "fedcba"))
        counts = []
        for ids in (teams.ids, unknown):
            with counted_calls() as found:
                await teams.ask("ben", place, ids)
            counts.append(found)
        if counts[0] != counts[1]:
            different[name] = counts[0] - counts[1], counts[1] - counts[0]

    assert different == {}


async def test_foreign_and_unknown_ids_of_the_gateway_s_own_get_the_same_answer(start_gateway, http, monkeypatch):
    """Also where unknown ids are allowed, for a backend that keeps no state."""
    for name, key in KEYS.items():
        monkeypatch.setenv(f"KEY_{name}", key)
    address = await start_gateway({
        "caller": [{"name": name, "team": TEAMS[name].team, "key": f"env:KEY_{name}"} for name in KEYS],
        "state": {"use": "memory", "unknown_ids": "allow"},
        "cache": {"use": "memory"},
        "backend": [{"name": "demo", "use": "local", "path": "backends/demo", "engine": "thread"}],
        "route": [{"model": "*", "backend": "demo"}],
    })  # fmt: skip
    teams = Teams(address, http, {})
    made: dict[str, str] = {kind: f"{kind}_{'0' * 12}" for kind in FILES}
    for caller, name in (("anna", "conversation"), ("ben", "own")):
        created = await teams.ask(caller, lambda _: ("POST", "conversations", {"items": [message(TEXT)]}), {})
        made[name] = orjson.loads(created[2])["id"]
    made["item"] = orjson.loads((await teams.ask("anna", PATHS["items"], made))[2])["data"][0]["id"]
    answer = orjson.loads((await teams.ask("anna", lambda _: ("POST", "responses", CALL), {}))[2])
    made |= {"response": answer["id"], "output": answer["output"][0]["id"]}
    unknown = other(made) | {kind: made[kind] for kind in FILES}
    different = {}
    for name, place in PLACES.items():
        if place(made) == place(unknown) or name.endswith(WITHOUT_LOOKUP):
            continue
        foreign, absent = await teams.ask("ben", place, made), await teams.ask("ben", place, unknown)
        body = foreign[2]
        for kind, value in made.items():
            body = body.replace(value.encode(), unknown[kind].encode())
            body = body.replace(value.upper().encode(), unknown[kind].upper().encode())
        if foreign[0] not in (400, 404) or absent != (foreign[0], foreign[1], body):
            different[name] = foreign, absent

    assert different == {}


@pytest.mark.parametrize("unknown_ids", ["allow", "default"])
async def test_a_team_reaches_everything_of_its_own(start_teams, upstream: StatefulUpstream, unknown_ids: str):
    """The same requests reach the upstream."""
    teams = await start_teams(unknown_ids)
    unreached = []
    for name, place in PLACES.items():
        if "delet" in name or "own" in name or name.startswith(("items:", "retrieve, in capitals")):
            continue
        before = len(upstream.requests)
        await teams.ask("anna", place, teams.ids)
        if len(upstream.requests) == before:
            unreached.append(name)

    assert unreached == []


async def test_unknown_ids_reach_the_upstream_where_they_are_allowed(start_teams, upstream: StatefulUpstream):
    """It decides about ids from before the gateway."""
    teams = await start_teams("allow")
    unreached = []
    for name, place in PLACES.items():
        before = len(upstream.requests)
        await teams.ask("ben", place, other(teams.ids))
        if len(upstream.requests) == before:
            unreached.append(name)

    assert unreached == []


async def test_what_an_upstream_hands_out_is_bound_before_it_is_used(start_teams, upstream: StatefulUpstream):
    """Items of lists, of background responses that are polled or streamed, and containers of calls."""
    teams = await start_teams("default")
    response = upstream.responses[teams.ids["response"]]
    made = {"id": "ci_1", "type": "code_interpreter_call", "container_id": "cntr_1", "code": "1"}
    shell = {
        "id": "sh_1",
        "type": "shell_call",
        "environment": {"type": "container_reference", "container_id": "cntr_2"},
    }
    response |= {"status": "completed", "output": [made, shell]}
    (listed,) = upstream.inputs[teams.ids["response"]] = [{"id": "msg_listed", "type": "message", "role": "user"}]
    upstream.items[teams.ids["conversation"]].append({"id": "msg_appended", "type": "message", "role": "assistant"})
    for place in ("retrieve", "stream", "input items", "items"):
        assert (await teams.ask("anna", PATHS[place], teams.ids))[0] == 200
    streamed = next(item for item in upstream.events[teams.ids["response"]] if b"output_item.done" in item)
    item = orjson.loads(streamed.partition(b"data: ")[2])["item"]["id"]
    owned = [
        ("reference without a type", {"item": name}) for name in ("ci_1", "sh_1", listed["id"], "msg_appended", item)
    ]
    owned += [("container of an earlier call", {"container": name}) for name in ("cntr_1", "cntr_2")]
    for name, ids in owned:
        place = PLACES[f"responses: {name}"]

        assert (await teams.ask("anna", place, ids))[0] == 200
        assert (await teams.ask("ben", place, ids))[0] == 404


async def test_a_conversation_that_a_team_adds_to_becomes_its_own(start_teams, upstream: StatefulUpstream):
    """Reading one from before the gateway gives no ownership."""
    teams = await start_teams("allow")
    for name in ("conv_read", "conv_written"):
        upstream.conversations[name], upstream.items[name] = {"id": name, "metadata": {}}, []
    read, written = {"conversation": "conv_read"}, {"conversation": "conv_written"}

    assert (await teams.ask("ben", PATHS["conversation"], read))[0] == 200
    assert (await teams.ask("anna", PATHS["conversation"], read))[0] == 200
    assert (await teams.ask("ben", PATHS["addition of items"], written))[0] == 200
    assert (await teams.ask("anna", PATHS["conversation"], written))[0] == 404


async def test_a_deleted_id_belongs_to_nobody(start_teams, upstream: StatefulUpstream):
    """Its owner is forgotten: where unknown ids are denied, its own team is refused by the gateway."""
    teams = await start_teams("default")
    for name, kind in (("delete", "retrieve"), ("deletion of a conversation", "conversation")):
        assert (await teams.ask("anna", PATHS[name], teams.ids))[0] == 200
        upstream.requests.clear()

        assert (await teams.ask("anna", PATHS[kind], teams.ids))[0] == 404
        assert upstream.requests == []
