"""The local backend, from a request to its last event."""

import asyncio

import orjson
import pytest

from backends.local import Local
from backends.local.answer import ResponseBuilder
from backends.local.host.device import count_cores
from backends.local.host.thread_engine import ThreadEngine
from proxy.wire.call import Call
from proxy.wire.errors import BackendError, RequestError
from tests.backends.local.conftest import WEATHER, ask, respond
from tests.examples import make_context
from tests.models import write_model

PATIENCE_S = 20


def text_of(units):
    """Return the text in the deltas of a stream, which are runs."""
    events = [orjson.loads(payload) for unit in units for payload in unit.payloads()]
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


async def test_a_request_is_answered(folder, start_local):
    """As a stream, whatever the call requests: the pipeline converts it."""
    local = await start_local(folder)
    async with respond(local, input="Hi", max_output_tokens=16) as reply:
        events = [event async for batch in reply.batches for event in batch]

    assert (reply.status, reply.body, text_of(events)) == (200, None, "Hello there!")
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert (
        *(events[-1].response[name] for name in ("model", "max_output_tokens", "temperature", "store")),
        events[-1].response["usage"]["output_tokens"],
    ) == ("tiny", 16, 0.0, False, 3)


async def test_jobs_of_calls_that_come_together_are_submitted_before_answers_begin(folder, start_local, monkeypatch):
    """So that the model starts with all of them sooner."""
    local, steps = await start_local(folder), []

    class RecordedBuilder(ResponseBuilder):
        def __init__(self, *args):
            steps.append("begin")
            super().__init__(*args)

    submit = ThreadEngine._submit

    async def record_submit(engine, job):
        steps.append("submit")
        await submit(engine, job)

    monkeypatch.setattr("backends.local.ResponseBuilder", RecordedBuilder)
    monkeypatch.setattr(ThreadEngine, "_submit", record_submit)
    await asyncio.gather(ask(local, input="Hi"), ask(local, input="Hello"))

    assert steps == ["submit", "submit", "begin", "begin"]


async def test_input_tokens_of_a_call_without_input_are_counted(folder, start_local):
    """Every field is optional there; a missing input is an empty one."""
    local = await start_local(folder)

    async def count(**fields):
        async with local.respond(Call({"model": "m", **fields}, operation="input_tokens"), make_context()) as reply:
            return orjson.loads(reply.body)["input_tokens"]

    alone = await count(instructions="Hi there", input=None)

    assert alone == await count(instructions="Hi there") == await count(instructions="Hi there", input="")
    assert 0 <= await count() < alone < await count(instructions="Hi there", input="Hello")


async def test_tool_calls_are_returned(calling, start_local):
    """Only for tools of the request."""
    local = await start_local(calling)
    tools = [WEATHER | {"strict": False}]  # the tokens in which this model writes its calls break the grammar
    with_tools, without = await ask(local, input="Oslo?", tools=tools), await ask(local, input="Oslo?")

    assert [item["type"] for item in with_tools[-1].response["output"]] == [
        "message",
        "function_call",
        "function_call",
        "message",
    ]
    assert tuple(with_tools[-1].response["output"][1][name] for name in ("name", "arguments")) == (
        "get_weather",
        '{"location": "Oslo"}',
    )
    assert [item["type"] for item in without[-1].response["output"]] == ["message"]


async def test_parallel_calls_can_be_disabled(calling, start_local):
    local = await start_local(calling)
    events = await ask(local, input="Oslo?", tools=[WEATHER], parallel_tool_calls=False)

    assert [item["type"] for item in events[-1].response["output"]] == ["message", "function_call"]


async def test_a_conversation_with_calls_can_continue(folder, start_local):
    local = await start_local(folder)
    events = await ask(
        local,
        tools=[WEATHER],
        input=[
            {"role": "user", "content": "Oslo?"},
            {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
        ],
    )

    assert text_of(events) == "Hello there!"


async def test_the_token_limit_is_enforced(endless, start_local):
    """The lower one of the request's and the config's."""
    local = await start_local(endless, max_output_tokens=20)
    ends = [(await ask(local, input="Hi", max_output_tokens=limit))[-1] for limit in (16, None, 1000)]

    assert [end.type for end in ends] == ["response.incomplete"] * 3
    assert [end.response["usage"]["output_tokens"] for end in ends] == [16, 20, 20]


async def test_the_context_is_never_exceeded(endless, start_local):
    """Prompt and answer together."""
    local = await start_local(endless, context_length=100)
    end = (await ask(local, input="Hi"))[-1]

    assert (end.type, end.response["usage"]["total_tokens"]) == ("response.incomplete", 100)


async def test_end_tokens_of_the_manifest_end_the_answer(tmp_path, start_local):
    """headgate.json may add tokens to the model's own."""
    local = await start_local(write_model(tmp_path / "model", ["Hello", " there"], eos=[" there"]))
    end = (await ask(local, input="Hi"))[-1]

    assert (end.response["status"], end.response["output"][0]["content"][0]["text"]) == ("completed", "Hello")


async def test_a_long_request_is_answered(folder, start_local):
    """It is prepared in a thread."""
    local = await start_local(folder)

    assert text_of(await ask(local, input="Hi", metadata={"note": "x" * 40_000})) == "Hello there!"


async def test_a_disconnected_caller_frees_the_only_worker(endless, start_local):
    """In the middle of an endless stream."""
    local = await start_local(endless, workers=1, max_output_tokens=1_000_000)
    async with asyncio.timeout(PATIENCE_S):
        async with respond(local, input="Hi") as reply:
            assert await anext(reply.batches)
            assert await anext(reply.batches)
        events = await ask(local, input="Hi", max_output_tokens=16)

    assert events[-1].type == "response.incomplete"


async def test_too_many_calls_are_refused_with_retry_after(endless, start_local):
    """Before a reply begins."""
    local = await start_local(endless, workers=1, max_waiting=0, max_output_tokens=1_000_000)
    async with asyncio.timeout(PATIENCE_S), respond(local, input="Hi"):
        with pytest.raises(BackendError) as refused:
            await ask(local, input="Hi")

    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": "x " * 3000}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": "Hi", "tools": [WEATHER, {"type": "web_search"}]}, "tools[1]"),
        ({"input": "Hi", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "Hi", "background": True}, "background"),
        ({"input": "Hi", "max_output_tokens": 1}, "max_output_tokens"),
        ({"input": "Hi", "reasoning": []}, "reasoning"),
    ],
)
async def test_an_unsupported_request_is_refused_before_the_reply(folder, start_local, body, param):
    """The error names the parameter."""
    local = await start_local(folder)
    with pytest.raises(RequestError) as refused:
        await ask(local, **body)

    assert (400, param) == (refused.value.status, refused.value.param)


async def test_the_backend_is_ready_from_start_to_close(folder, start_local):
    """It lists itself as a model by its name."""
    local = await start_local(folder)
    ready, models = await local.ready(), await local.models()
    await local.close()

    assert (ready, models, await local.ready()) == (True, ("local",), False)


async def test_the_start_is_logged(folder, start_local, capsys):
    """In one line with the device and the type of computation."""
    await start_local(folder, device="cpu", workers=3)
    logged = capsys.readouterr().out

    assert "backend.started" in logged
    assert all(field in logged for field in ("backend=local", "device=cpu", "compute_type=int8_float32", "workers=3"))


async def test_the_number_of_workers_is_logged_without_a_configured_one(folder, start_local, logged):
    """On a CPU one for each core."""
    await start_local(folder, device="cpu")

    assert [line["workers"] for line in logged if line["event"] == "backend.started"] == [count_cores()]


@pytest.mark.parametrize("keys", [{"path": "nowhere"}, {"path": "."}])
async def test_a_folder_without_a_model_fails_the_start(start_local, keys):
    with pytest.raises(OSError, match="model folder"):
        await start_local(folder=keys["path"])


@pytest.mark.parametrize("keys", [{"keep_alive_s": 1}, {"memory_bytes": 1}, {"process_bytes": 1}, {"preload": False}])
def test_keys_that_need_a_process_are_refused_for_a_thread(folder, keys):
    """They would have no effect."""
    with pytest.raises(ValueError, match='need engine = "process"'):
        Local(name="local", path=folder, engine="thread", **keys)


@pytest.mark.parametrize(("key", "again"), [({}, False), ({"prompt_cache_key": "ours"}, True)])
async def test_cached_tokens_do_not_reveal_prompts_of_other_teams(folder, start_local, key, again):
    """A tool needs a grammar, for which the prompt is kept; only calls with the same key and team are informed."""
    local = await start_local(folder, prefix_cache_bytes=10**8)

    async def cached_tokens(team):
        body = {"input": "Is it " + "warm " * 100, "tools": [WEATHER], "max_output_tokens": 16, **key}
        async with respond(local, team=team, **body) as reply:
            events = [event async for batch in reply.batches for event in batch]
        return events[-1].response["usage"]["input_tokens_details"]["cached_tokens"]

    red, blue = [await cached_tokens("red") for _ in range(4)], await cached_tokens("blue")

    assert (red[0], red[-1] > 0, blue) == (0, again, 0)


@pytest.mark.parametrize("keys", [{"keeps_state": True}, {"enforces": ("max_tool_calls",)}])
def test_state_and_policies_cannot_be_delegated_to_it(folder, keys):
    """Otherwise ids would be unknown and policies would not be enforced."""
    with pytest.raises(ValueError, match="a local model keeps neither responses nor policies"):
        Local(name="local", path=folder, **keys)


@pytest.mark.parametrize("keys", [{"workers": 257}, {"workers": 0}, {"context_length": 63}])
def test_numbers_out_of_range_are_refused(folder, keys):
    with pytest.raises(ValueError, match=r"Input should be (greater|less) than or equal to (256|64|1)"):
        Local(name="local", path=folder, **keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"context_length": 513}, "context_length is 513, but the model in .* supports 512 tokens"),
        ({"kv_bytes": 1000}, "kv_bytes is 1000, but 512 tokens of the model in .* take "),
        ({"kv_bytes": 1000, "context_length": 64}, "kv_bytes is 1000, but 64 tokens of the model in .* take "),
        ({"compute_type": "int3"}, "int3"),
        ({"path": "nowhere"}, "There is no model folder nowhere."),
        ({"engine": "process", "memory_bytes": 1000}, "memory_bytes is 1000, but one model alone takes about "),
    ],
)
async def test_a_config_that_cannot_start_is_refused_by_check_and_start(folder, keys, message):
    """In a sentence that names the key."""
    local = Local(**{"name": "local", "path": folder, "engine": "thread"} | keys)
    with pytest.raises((ValueError, OSError), match=message):
        local.check()
    with pytest.raises((ValueError, OSError), match=message):
        await local.start()


def test_check_accepts_a_config_that_can_start(folder):
    """It loads nothing."""
    Local(name="local", path=folder, compute_type="int8", context_length=512, kv_bytes=10**9).check()


async def test_answers_may_take_a_quarter_of_the_free_memory(folder, start_local, monkeypatch):
    """At least the memory of one answer as long as the context."""
    local = await start_local(folder)
    full_context = local._model.context_length * local._model.kv_bytes_per_token
    monkeypatch.setattr("backends.local.free_bytes", lambda: 4_000_000_000)
    much = local._kv_bytes(local._model)
    monkeypatch.setattr("backends.local.free_bytes", lambda: 0)

    assert (much, local._kv_bytes(local._model)) == (1_000_000_000, full_context)
