"""The demo model, held to schemas and calls: a model that was trained for them, with a tokenizer of real size."""

import json
from pathlib import Path

import jsonschema
import pytest

from backends.local.decoding.batch import run_batch
from backends.local.grammar import json_object_grammar, json_rule, json_schema_grammar, schema_prompt
from backends.local.host.device import Placement, place
from backends.local.model import read_model
from tests.backends.local.decoding.test_batch import Heard
from tests.backends.local.decoding.test_constrained import Counting, Speaker
from tests.backends.local.tiny_models import Tiny

DEMO = Path("backends/demo")
LIMIT = 300
PEOPLE = {"Emma": (41, "Boston"), "Tom": (7, "Riga"), "Nora": (23, "Paris"), "Liam": (65, "Oslo")}


def person(extra=None):
    properties = {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}} | (extra or {})
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


HARDER = {
    "kind": {"enum": ["human", "animal"]},
    "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "minItems": 1, "maxItems": 2},
    "born": {"type": "string", "format": "date"},
    "score": {"type": "number", "minimum": 0, "maximum": 1},
}
FUNCTION = {
    "type": "object",
    "properties": {"location": {"type": "string", "maxLength": 30}},
    "required": ["location"],
    "additionalProperties": False,
}
CALL = f"""start: <tool_call> "\\n" call "\\n" </tool_call>
call: "{{\\"name\\": \\"get_weather\\", \\"arguments\\": " {json_rule(FUNCTION)} "}}"
"""
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "", "parameters": FUNCTION}}


@pytest.fixture(scope="module")
def demo():
    model = read_model(DEMO)
    tiny = Tiny(DEMO, model.vocabulary)
    speaker = Speaker(tiny, Counting(place(DEMO, model.vocabulary, Placement("cpu", workers=1))))
    yield model, speaker
    del speaker.generator.generator


def answered(demo, schema, text, *, tools=(), grammar="", temperature=0.0):
    model, speaker = demo
    system = [] if tools else [{"role": "system", "content": schema_prompt(schema)}]
    prompt = model.prompt([*system, {"role": "user", "content": text}], tools)
    job = speaker.job(grammar or json_schema_grammar(schema), LIMIT, prompt, temperature=temperature)
    speaker.generator.calls = 0
    heard = speaker.run(job)
    free = Heard()
    run_batch(speaker.generator.generator, speaker.vocabulary, [job], (), free.emit, free.ended)
    return speaker.spelt(heard.ids(job)), heard.ends[1], speaker.spelt(free.ids(job))


@pytest.mark.parametrize("name", PEOPLE)
def test_what_it_says_by_itself_is_left_as_it_is(demo, name):
    """It follows what it was trained on; then the grammar changes nothing, and costs no further call."""
    age, city = PEOPLE[name]
    text, ends, free = answered(demo, person(), f"{name} is {age} years old and lives in {city}.")

    assert json.loads(text).keys() == {"name", "age", "city"}
    assert ends == [("stop", "")]
    if free == text:
        assert demo[1].generator.calls <= 2


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("name", PEOPLE)
def test_it_is_held_to_what_it_never_saw(demo, name, temperature):
    """Dates, enums, bounds: whatever it makes of them, they are valid."""
    age, city = PEOPLE[name]
    schema = person(HARDER)
    text, ends, _ = answered(demo, schema, f"{name} is {age} years old and lives in {city}.", temperature=temperature)

    if ends == [("stop", "")]:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    else:
        assert ends == [("length", "")]  # a text without bound may go on and on


@pytest.mark.parametrize("text", ["name is Ann, age is 5", "Return colour and size as JSON: colour is red, size is 12"])
def test_any_object_is_one(demo, text):
    said, ends, _ = answered(demo, None, text, grammar=json_object_grammar())

    assert said.startswith("{")
    assert ends == [("length", "")] or isinstance(json.loads(said), dict)


@pytest.mark.parametrize("text", ["What is the weather in Oslo?", "Tell me a story.", "Hello!"])
def test_a_call_is_a_call_whatever_was_asked(demo, text):
    said, ends, _ = answered(demo, None, text, tools=[WEATHER], grammar=CALL)
    call = json.loads(said.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))

    assert ends == [("stop", "")]
    assert call["name"] == "get_weather"
    jsonschema.Draft202012Validator(FUNCTION).validate(call["arguments"])
