"""How much of a prompt comes from instructions and tools alone."""

from backends.local.model.prefix import Prefixes
from proxy.wire.errors import RequestError

SYSTEM, HELLO = {"role": "system", "content": "ab"}, {"role": "user", "content": "hello"}
TOOL = {"name": "f"}


class Letters:
    """A model whose tokens are letters."""

    def __init__(self, write=lambda messages, tools: "".join(each["content"] for each in messages)):
        self.reads = 0
        self.write = write

    def read(self, messages, tools, variables):
        self.reads += 1
        return [
            ord(letter) for letter in str(len(tools)) + str(variables.get("style", "")) + self.write(messages, tools)
        ]

    def length(self, prefixes, messages, tools=(), **variables):
        return prefixes.length(messages, tools, variables, self.read(messages, tools, variables))


def test_it_ends_where_the_user_begins():
    """Instructions, tools and variables count; what comes after the first other message does not."""
    letters = Letters()
    prefixes = Prefixes(letters.read)

    assert letters.length(prefixes, [SYSTEM, HELLO]) == 3
    assert letters.length(prefixes, [SYSTEM, SYSTEM, HELLO, SYSTEM], [TOOL]) == 5
    assert letters.length(prefixes, [SYSTEM, HELLO], [TOOL], style="loud") == 7
    assert letters.length(prefixes, [HELLO]) == 1


def test_it_is_computed_once():
    """And again only for other instructions, tools or variables."""
    letters = Letters()
    prefixes = Prefixes(letters.read)
    counts = []
    for messages, style in (([SYSTEM, HELLO], "a"), ([SYSTEM, HELLO, HELLO], "a"), ([SYSTEM, HELLO], "b")):
        before = letters.reads
        letters.length(prefixes, messages, style=style)
        counts.append(letters.reads - before - 1)

    assert counts == [3, 0, 3]


def test_it_leaves_two_tokens():
    """Or the engine would give the prompt back as part of the answer."""
    letters = Letters(lambda messages, tools: "always the same")
    prefixes = Prefixes(letters.read)

    assert letters.length(prefixes, [SYSTEM, HELLO]) == 16 - 2
    assert prefixes.length([SYSTEM], [], {}, [1]) == 0


def test_it_is_what_is_really_shared():
    """Where a template writes instructions at the end, or tells how many messages there are, it is short."""
    last = Letters(lambda messages, tools: "".join(each["content"] for each in reversed(messages)))
    counted = Letters(lambda messages, tools: "abc" + str(len(messages)) + "def" + messages[-1]["content"])
    prefixes = Prefixes(counted.read)

    assert last.length(Prefixes(last.read), [SYSTEM, HELLO]) == 1
    assert counted.length(prefixes, [SYSTEM, HELLO]) == 9 - 1
    assert counted.length(prefixes, [SYSTEM, HELLO, HELLO]) == 4


def test_a_template_that_refuses_the_probe_shares_nothing():
    """It may take other conversations."""

    def refuse(messages, tools, variables):
        raise RequestError("No.")

    assert Prefixes(refuse).length([SYSTEM, HELLO], [], {}, [1, 2, 3]) == 0


def test_tools_nested_too_deeply_share_nothing():
    """They cannot be told from others by what they are."""
    deep = {}
    for _ in range(2000):
        deep = {"a": deep}

    assert Prefixes(Letters().read).length([HELLO], [deep], {}, [1, 2, 3]) == 0
