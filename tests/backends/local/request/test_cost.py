"""One budget for all schemas and grammars of a request."""

import pytest

from backends.local.grammar import compilation
from backends.local.request import read_request
from backends.local.request.cost import charge_grammars
from backends.local.request.parameters import GenerationParameters
from backends.local.request.tool_choice import select_tools
from backends.local.work_budget import PreparationCancelled, WorkBudget
from proxy.wire.errors import RequestError
from tests.backends.local.costly_requests import COSTLY, combined_choices, grammar_tool, tool
from tests.timeouts import fail_if_stuck

DEFAULTS = GenerationParameters(100, 0.0)
CODES = {"invalid_function_parameters", "invalid_json_schema", "invalid_grammar"}


@pytest.fixture
def compiled(monkeypatch):
    """Return the grammars that the compiler was given."""
    grammars = []
    compile_now = compilation._compile

    def compile_and_record(grammar):
        message = compile_now(grammar)
        grammars.append(grammar)
        return message

    monkeypatch.setattr(compilation, "_cached_compile", compile_and_record)
    return grammars


def charge(body, units):
    budget = WorkBudget(units)
    with budget:
        charge_grammars(body)
    return units - budget.remaining


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_request_is_refused_before_anything_is_compiled(model, compiled, name):
    """Each of its parts alone is below its limits. The error names the part at which the budget ends."""
    with fail_if_stuck(), WorkBudget(), pytest.raises(RequestError) as refused:
        read_request({"input": "Hi", **COSTLY[name]}, model, DEFAULTS)

    assert (refused.value.status, refused.value.code in CODES) == (400, True)
    assert refused.value.param.startswith("tools[")
    assert compiled == []


def test_all_parts_share_one_budget():
    """The text format, functions, custom tools, and those of namespaces."""
    schema = combined_choices(2, 5)
    parts = [
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}},
        {"tools": [tool(0, schema, strict=True)]},
        {"tools": [grammar_tool(0, "start: /a?b?/")]},
        {"tools": [grammar_tool(0, "a?b?", "regex")]},
        {"tools": [{"type": "namespace", "name": "n", "tools": [tool(0, schema, strict=False)]}]},
    ]
    added = {"input": [{"type": "additional_tools", "tools": parts[4]["tools"]}]}
    tools = [each for part in parts[1:] for each in part["tools"]]
    alone = [charge(part, 10**9) for part in parts]

    assert min(alone) > 0
    assert charge(added, 10**9) == alone[4]
    assert charge({**parts[0], "tools": tools}, 10**9) == sum(alone)
    with pytest.raises(RequestError) as refused:
        charge({**parts[0], "tools": tools}, sum(alone) - 1)
    assert refused.value.param == "tools[3].tools[0].parameters"
    assert refused.value.message == (
        "Invalid schema for function 'f0': the schemas and grammars up to here take too much work in all; simplify "
        "them or send fewer."
    )


@pytest.mark.parametrize(
    "body",
    [
        {}, {"text": 1}, {"text": {"format": []}}, {"text": {"format": {"type": "json_schema"}}}, {"tools": "all"},
        {"tools": [1, {}, {"type": "function"}, {"type": "function", "parameters": []}]},
        {"tools": [{"type": "custom", "format": 1}, {"type": "custom", "format": {"type": "grammar", "syntax": []}}]},
        {"tools": [{"type": "namespace"}, {"type": "namespace", "tools": [{"type": "namespace", "tools": [{}]}]}]},
        {"tools": [tool(0, {"type": "object", "properties": 1}, strict=True), {"x": "x" * 400_000}]},
        {"tools": [tool(0, {"$ref": "#/nowhere", "type": "object"}, strict=False)]},
    ],
)  # fmt: skip
def test_malformed_parts_are_left_to_the_code_that_reads_them(body):
    charge(body, 10**9)


def test_a_large_set_of_ordinary_tools_is_accepted(model):
    """128 functions of 15 properties, one of them with a choice."""
    properties = {f"p{number}": {"type": "string", "description": "Something."} for number in range(14)}
    properties["choice"] = {"anyOf": [{"type": "string", "pattern": "^[a-z]+$"}, {"type": "null"}]}
    schema = {"type": "object", "properties": properties, "required": ["p0"], "additionalProperties": False}

    assert charge({"tools": [tool(number, schema, strict=True) for number in range(128)]}, WorkBudget().remaining) > 0


def test_no_grammar_is_compiled_for_a_disconnected_client(model, compiled):
    """Compilation is what takes long, so each one begins with a check."""
    budget = WorkBudget()
    body = {"input": "Hi", "tools": [tool(0, combined_choices(1, 3), strict=True)]}
    with budget:
        charge_grammars(body)
        budget.cancel()
        with pytest.raises(PreparationCancelled):
            select_tools(body, tool_format=None)

    assert compiled == []
