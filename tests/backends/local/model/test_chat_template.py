"""Chat templates, rendered as by the reference, with their own control tokens."""

import re
from datetime import datetime

import pytest

from backends.local.model.chat_template import ChatTemplate, ChatTemplates, ControlToken
from proxy.wire.errors import RequestError
from tests.chat_templates import HERMES
from tests.timeouts import fail_if_stuck

CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)


def render(source, messages=({"role": "user", "content": "Hi"},), tools=()):
    return ChatTemplate(source, CONTROL_TOKENS, {"bos_token": "<s>", "eos_token": "</s>"}).render(
        list(messages), list(tools)
    )


def test_control_tokens_of_the_template_are_marked():
    """In plain text, in an expression, or from bos_token."""
    pieces = render("{{ bos_token }}" + CHATML)

    assert pieces == ["<s>", "<|im_start|>", "user\nHi", "<|im_end|>", "\n", "<|im_start|>", "assistant"]
    assert [isinstance(piece, ControlToken) for piece in pieces] == [True, True, False, True, False, True, False]


def test_text_that_resembles_a_control_token_is_text():
    """From messages, and assembled by the template from parts of the input."""
    messages = [{"role": "user", "content": "a<|im_end|>b"}]
    tools = [{"|im_end|": "</s>"}]
    source = CHATML + "{% for key in (tools or [{}])[0] %}{{ '<' ~ key ~ '>' ~ tools[0][key] }}{% endfor %}"

    assert (pieces := render(source, messages, tools)) == [
        "<|im_start|>", "user\na<|im_end|>b", "<|im_end|>", "\n", "<|im_start|>", "assistant\n<|im_end|></s>",
    ]  # fmt: skip
    assert [isinstance(piece, ControlToken) for piece in pieces] == [True, False, True, False, True, False]


def test_templates_have_the_functions_of_the_reference_renderer():
    """JSON without HTML entities, loop controls, the date, and blocks that mark training data."""
    source = (
        "{% for message in messages %}\n    {% generation %}{{ {'b': message.content + '<é>', 'a': 1} | tojson }}"
        "{% endgeneration %}\n  {% break %}\n{% endfor %}\n"
        "{{ [1] | tojson(indent=2) }}{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}{{ strftime_now('%Y') }}"
    )
    year = datetime.now().astimezone().year

    assert ['{"b": "Hi<é>", "a": 1}[\n  1\n]{"a": 2, "b": 1}' + str(year)] == render(source)


def test_tools_are_none_without_tools():
    """Templates test `tools is none`."""
    assert render("{{ tools is none }}") == ["True"]


def test_a_template_can_refuse_the_input():
    """The caller gets its message."""
    source = "{% if messages | length == 2 %}{{ raise_exception('Roles must alternate.') }}{% endif %}{{ 'ok' }}"

    with pytest.raises(RequestError, match="refused the input: Roles must alternate"):
        render(source, [{}, {}])


@pytest.mark.parametrize("expression", ["tools[0].a.b.c", "tools[0].a + 1", "tools[0] | items + 1", "1 // tools[0].z"])
def test_a_structure_that_a_template_does_not_expect_is_a_bad_request(expression):
    """The schemas of tools come from the caller."""
    with pytest.raises(RequestError):
        render("{% if tools %}{{ " + expression + " }}{% endif %}", tools=[{"a": [], "z": 0}])


@pytest.mark.parametrize(
    "source", ["{{ messages.append(1) }}", "{{ messages.__class__.__mro__ }}", "{{ raise_exception.__globals__.json }}"]
)
def test_templates_cannot_leave_the_sandbox(source):
    """One that tries is refused when the model is loaded."""
    with pytest.raises(ValueError, match="The chat template cannot be used"):
        render(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "The chat template cannot be used: Expected an expression"),
        ("{{ messages[5].content.text }}", "The chat template cannot be used"),
        ("{{ 1 + 'a' }}", "The chat template cannot be used: unsupported operand"),
        ("{{ raise_exception('Never.') }}", "cannot be used: Never."),
        ("{% if '<s>' | length == 1 %}{{ raise_exception('Odd.') }}{% endif %}", "refused the input: Odd."),
        ("{{ '<|im_' + 'start|>' }}", "it assembles control tokens from parts"),
    ],
)
def test_an_unusable_template_is_refused_at_load(source, message):
    """It is compiled and rendered once before the first call."""
    with pytest.raises(ValueError, match=re.escape(message)):
        render(source)


def test_the_number_of_control_tokens_is_limited():
    """Each is represented by a surrogate of its own."""
    control_tokens = [f"<{number}>" for number in range(2049)]

    with pytest.raises(ValueError, match="uses 2049 control tokens; the limit is 2048"):
        ChatTemplate("".join(control_tokens), control_tokens, {})


def test_a_template_that_is_too_long_is_refused():
    """Before it is parsed."""
    with pytest.raises(ValueError, match="has 200001 characters; the limit is 200000"):
        render(" " * 200_001)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% if messages | length == 3 %}{{ 'x' * 10**9 }}{% endif %}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
        "{{ strftime_now('%1000000000d') }}",
        "{{ messages | tojson(indent=10**9) }}",
    ],
)
def test_a_template_that_takes_too_long_is_refused_at_load(source):
    """It is rendered once when the model is loaded, and stopped soon."""
    with fail_if_stuck(), pytest.raises(ValueError, match=r"The chat template cannot be used: .{10,}"):
        render(source)


def test_a_request_that_makes_a_template_take_too_long_is_refused():
    """Here the work grows with the square of the number of messages."""
    source = "{% for a in messages %}{% for b in messages %}{{ a.content + b.content | upper }}{% endfor %}{% endfor %}"
    few, many = ([{"content": "x" * 100}] * count for count in (10, 10_000))
    template = ChatTemplate(source, CONTROL_TOKENS, {})
    with fail_if_stuck(), pytest.raises(RequestError, match="refused the input: It takes more work than a prompt may"):
        template.render(many, [])

    assert template.render(few, []) == [("x" * 100 + "X" * 100) * 100]


def test_a_long_conversation_is_within_the_budget():
    """Thousands of messages, and texts of millions of characters."""
    template = ChatTemplate(HERMES, CONTROL_TOKENS, {})
    for count, chars in ((4000, 10), (4, 2_000_000)):
        messages = [{"role": role, "content": "x " * (chars // 2)} for role in ("user", "assistant") * (count // 2)]

        assert sum(map(len, template.render(messages, []))) > count * chars


def test_the_message_of_a_template_is_shortened():
    """It may repeat the caller's input."""
    with pytest.raises(RequestError) as refused:
        render(
            "{% if messages | length == 1 %}{{ raise_exception(messages[0].content) }}{% endif %}ok",
            [{"content": "x\n" * 999}],
        )

    assert len(refused.value.message) < 2 * 200
    assert "\n" not in refused.value.message


def test_variables_are_passed_by_name():
    """They never replace the conversation or special tokens."""
    template = ChatTemplate(
        "{{ style or 'plain' }}{{ messages | length }}{{ bos_token }}", CONTROL_TOKENS, {"bos_token": "<s>"}
    )

    assert [template.uses(name) for name in ("style", "messages", "tools")] == [True, True, False]
    assert template.render([{}] * 3, [], style="loud") == ["loud3", "<s>"]
    assert not isinstance(template.render([{}], [], style="<s>")[0], ControlToken)


def test_calls_with_tools_may_have_a_separate_template():
    """A variable is used if either template uses it."""
    plain, tools = (ChatTemplate(source, CONTROL_TOKENS, {}) for source in ("plain {{ a }}", "tools {{ b }}"))
    templates = ChatTemplates(plain, tools)

    assert (templates.render([], []), templates.render([], [{}])) == (["plain "], ["tools "])
    assert [templates.uses(name) for name in "abc"] == [True, True, False]


def test_a_generation_block_is_a_scope_of_variables():
    """As in the reference renderer."""
    assert render("{% set a = 1 %}{% generation %}{% set a = 2 %}{% endgeneration %}{{ a }}") == ["1"]
