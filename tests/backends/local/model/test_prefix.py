"""How much of a prompt depends only on instructions and tools."""

from backends.local.model.prefix import PrefixFinder
from proxy.wire.errors import RequestError

SYSTEM, HELLO = {"role": "system", "content": "ab"}, {"role": "user", "content": "hello"}
TOOL = {"name": "f"}


class CharacterModel:
    """A model whose tokens are characters."""

    def __init__(self, write=lambda messages, tools: "".join(each["content"] for each in messages)):
        self.renderings = 0
        self.write = write

    def tokenize(self, messages, tools, variables):
        self.renderings += 1
        return [
            ord(letter) for letter in str(len(tools)) + str(variables.get("style", "")) + self.write(messages, tools)
        ]

    def length(self, finder, messages, tools=(), **variables):
        return finder.prefix_length(messages, tools, variables, self.tokenize(messages, tools, variables))


def test_the_prefix_ends_before_the_first_user_message():
    """It depends on instructions, tools and variables, and on nothing after the first other message."""
    model = CharacterModel()
    finder = PrefixFinder(model.tokenize)

    assert model.length(finder, [SYSTEM, HELLO]) == 3
    assert model.length(finder, [SYSTEM, SYSTEM, HELLO, SYSTEM], [TOOL]) == 5
    assert model.length(finder, [SYSTEM, HELLO], [TOOL], style="loud") == 7
    assert model.length(finder, [HELLO]) == 1


def test_the_prefix_is_cached():
    """It is computed again only for other instructions, tools or variables."""
    model = CharacterModel()
    finder = PrefixFinder(model.tokenize)
    counts = []
    for messages, style in (([SYSTEM, HELLO], "a"), ([SYSTEM, HELLO, HELLO], "a"), ([SYSTEM, HELLO], "b")):
        before = model.renderings
        model.length(finder, messages, style=style)
        counts.append(model.renderings - before - 1)

    assert counts == [3, 0, 3]


def test_the_prefix_leaves_two_tokens():
    """Otherwise the engine would return the prompt as part of the answer."""
    model = CharacterModel(lambda messages, tools: "always the same")
    finder = PrefixFinder(model.tokenize)

    assert model.length(finder, [SYSTEM, HELLO]) == 16 - 2
    assert finder.prefix_length([SYSTEM], [], {}, [1]) == 0


def test_only_really_shared_tokens_count():
    """The prefix is short if a template puts instructions at the end, or writes the number of messages."""
    last = CharacterModel(lambda messages, tools: "".join(each["content"] for each in reversed(messages)))
    counted = CharacterModel(lambda messages, tools: "abc" + str(len(messages)) + "def" + messages[-1]["content"])
    finder = PrefixFinder(counted.tokenize)

    assert last.length(PrefixFinder(last.tokenize), [SYSTEM, HELLO]) == 1
    assert counted.length(finder, [SYSTEM, HELLO]) == 9 - 1
    assert counted.length(finder, [SYSTEM, HELLO, HELLO]) == 4


def test_a_template_that_refuses_the_probe_shares_nothing():
    """It may accept the conversation itself."""

    def refuse(messages, tools, variables):
        raise RequestError("No.")

    assert PrefixFinder(refuse).prefix_length([SYSTEM, HELLO], [], {}, [1, 2, 3]) == 0


def test_tools_nested_too_deeply_share_nothing():
    """They cannot be a cache key."""
    deep = {}
    for _ in range(2000):
        deep = {"a": deep}

    assert PrefixFinder(CharacterModel().tokenize).prefix_length([HELLO], [deep], {}, [1, 2, 3]) == 0
