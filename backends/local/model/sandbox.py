"""A jinja2 sandbox that bounds not only what a template can reach but also what it can cost: time and memory.

jinja2's own sandbox stops a template from reaching out, but not from `{% for %}` within `{% for %}`, `'x' * 10**9` or a
list that holds itself twice, forty times over. Such a template, or a request that drives a harmless one to it, would
stop every other caller. A clock cannot help: nothing can interrupt a thread in the middle of a long operation, and a
process of its own for each prompt would cost a hundred times what rendering does. So each rendering has an amount of
work, counted in about a character read or written:

    each turn of a loop, each call of a macro   what stands in its body             see `pace.py`
    what is printed, added, cut, compared      its length; in depth where need be  see `pace.py`
    * ** %, methods, filters, tests           the length of what they read and make, before it is made

What is not in the tables here is refused when the template is compiled; chat templates need no more. A rendering that
has used up its amount ends with TooMuchWork, on every machine at the same place, and leaves nothing running.
Source: https://jinja.palletsprojects.com/en/stable/sandbox/
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import wraps
from typing import Any

from jinja2 import TemplateRuntimeError, filters
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

WORK = 100_000_000
"""How much one rendering may do: less than a second, and twenty times what the longest conversations take."""
NODE = 20
"""What one part of an expression, or one value in a list, costs."""
READ_NODE, PACED_NODE, SLOWLY = 50, 200, 20
"""What a value read in depth costs; one that goes through filters one by one; how much slower some filters are."""
WIDEST = 1000
"""For widths, precisions and texts that are read as numbers."""
MAX_BITS = 4096

TEXT_METHODS = (
    "capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower isnumeric "
    "isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition "
    "rsplit rstrip split splitlines startswith strip swapcase title upper"
)
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(TEXT_METHODS.split()),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    **dict.fromkeys((bool, bytes, float, int, type(None)), frozenset()),
}
READS_NOTHING = "attr count d default first last length"
READS_ITEMS = "items list map reject rejectattr reverse select selectattr"
READS_ALL = "abs capitalize float lower safe string trim upper"
READS_ALL_SLOWLY = "dictsort e escape groupby max min sort title truncate unique urlencode wordcount"
COMPARING_TESTS = "eq == equalto ne != in lt < lessthan le <= gt > greaterthan ge >="
SCALARS = frozenset({bool, bytes, float, int, type(None)})
# A width of four digits, one that is given with the values, or a field within a field.
WIDE = re.compile(r"\d{4}|%[^a-zA-Z%]*\*|\{[^{}]*\{")


class TooMuchWork(TemplateRuntimeError):
    """The template, or what it was given, would take too long or too much memory."""

    def __init__(self, what: str = "It takes more work than a prompt may") -> None:
        super().__init__(what)


class Work(threading.local):
    """What is left of a rendering's work. Prompts are rendered in several threads; each has its own."""

    left = WORK

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise TooMuchWork


class Plain(Namespace):
    """`namespace()`, without its values when it is printed: they could hold each other."""

    def __repr__(self) -> str:
        return "<Namespace>"


class BoundedSandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.work = Work()
        own = {"replace": self._replace, "join": self._join, "indent": self._indent, "format": self._format,
               "int": self._int, "round": self._round}  # fmt: skip
        native = self.filters
        self.filters = {name: native[name] for name in READS_NOTHING.split()}
        self.filters |= {name: self.measured(native[name], self.glance) for name in READS_ITEMS.split()}
        self.filters |= {name: self.measured(native[name], self.read) for name in READS_ALL.split()}
        self.filters |= {name: self.measured(native[name], self._read_slowly) for name in READS_ALL_SLOWLY.split()}
        self.filters |= {name: self.measured(function) for name, function in own.items()}
        self.tests |= {name: self.measured(self.tests[name], self.read) for name in COMPARING_TESTS.split()}
        self.globals = {name: self.globals[name] for name in ("range", "dict", "cycler", "joiner")}
        self.globals["namespace"] = Plain

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        kind = type(obj)
        if kind is Plain:
            return not attr.startswith("_")
        methods = METHODS.get(kind)
        if methods is None:  # texts that are marked as safe are texts, too
            methods = next((METHODS[known] for known in METHODS if issubclass(kind, known)), None)
        return super().is_safe_attribute(obj, attr, value) if methods is None else attr in methods

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            self._expect_text(left, right, left.count("%"))
        elif operator == "*":
            self._expect_product(left, right)
        elif operator == "**" and _bits(left) * max(1, abs(right)) > MAX_BITS:
            raise TooMuchWork("It raises a number to a power that is too high")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """All calls that a template makes: of methods, of macros, of what the sandbox gives it."""
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            self.work.spend(len(owner))
            args = self._expected(function.__name__, owner, args, kwargs)
        elif isinstance(owner, list | tuple):
            self.read(owner, *args)
        elif function is dict and args and not isinstance(args[0], Mapping):
            raise SecurityError("dict() takes an object and names here")
        self.glance(*args, *kwargs.values())
        made = super().call(context, function, *args, **kwargs)
        if isinstance(owner, str):
            self.glance(made)
        return made

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        def expected(*args: Any, **kwargs: Any) -> str:
            self._expect_text(value.__self__, [*args, kwargs], value.__self__.count("{"))
            return formatted(*args, **kwargs)

        return expected

    def glance(self, *values: Any, **_: Any) -> None:
        """Spend what going through values once costs, not looking into what they hold."""
        for value in values:
            kind = type(value)
            if kind is str:
                self.work.spend(len(value))
            elif kind not in SCALARS and isinstance(value, Sized):
                self.work.spend(NODE * len(value))

    def read(self, *values: Any, **named: Any) -> None:
        """Spend what values cost that are read in depth: one that is held twice is read twice."""
        if len(values) == 1 and type(values[0]) is str:
            self.work.spend(READ_NODE + len(values[0]))
            return
        unread: list[Any] = [*values, *named.values()]
        units, left = 0, self.work.left
        for value in unread:  # it grows as it is read
            kind = type(value)
            if kind is str:
                units += len(value)
            elif kind in SCALARS:
                pass
            elif kind is dict or isinstance(value, Mapping):
                unread.extend(value)
                unread.extend(value.values())
            elif isinstance(value, str):
                units += len(value)
            elif kind is list or (isinstance(value, Sized) and isinstance(value, Iterable)):
                unread.extend(value)
            if units + READ_NODE * len(unread) > left:
                raise TooMuchWork
        self.work.spend(units + READ_NODE * len(unread))

    def _read_slowly(self, *values: Any, **named: Any) -> None:
        before = self.work.left
        self.read(*values, **named)
        self.work.spend((SLOWLY - 1) * (before - self.work.left))

    def measured(self, function: Any, reads: Callable[..., None] | None = None) -> Callable[..., Any]:
        """A filter or test that spends for what it is given and for what it makes."""
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def within_measure(*args: Any, **kwargs: Any) -> Any:
            if reads is not None:
                reads(*args[skipped:], **kwargs)
            made = function(*args, **kwargs)
            if isinstance(made, Iterator):
                return self._paced(made)
            self.glance(made)
            return made

        return within_measure

    def _paced(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.work.spend(PACED_NODE)
            yield item

    def _expected(self, name: str, owner: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of a method of texts, after spending for what it will make where that can be long."""
        if name == "replace" and not kwargs and len(args) > 1:
            self._expect_replaced(owner, str(args[0]), str(args[1]))
        elif name == "join" and args:
            args = (list(args[0]),)
            self.read(args[0])
            self.work.spend(len(owner) * len(args[0]))
        return args

    def _expect_replaced(self, text: str, old: str, new: str) -> None:
        self.work.spend(len(text) + max(0, text.count(old) * (len(new) - len(old))))

    def _expect_text(self, text: str, values: Any, fields: int) -> None:
        """For values that are put into a text: each field may hold all of them."""
        if WIDE.search(text):
            raise TooMuchWork("It formats a text too wide")
        before = self.work.left
        self.read(values)
        self.work.spend(len(text) + fields * (before - self.work.left))

    def _expect_product(self, left: Any, right: Any) -> None:
        for some, times in ((left, right), (right, left)):
            if isinstance(some, Sized) and isinstance(times, int):
                self.work.spend((1 if isinstance(some, str) else NODE) * len(some) * max(0, times))
        if _bits(left) + _bits(right) > MAX_BITS:
            raise TooMuchWork("It multiplies numbers that are too long")

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        self.read(text, old, new)
        old, new = str(old), str(new)
        self._expect_replaced(str(text), old, new)
        return str(text).replace(old, new, -1 if count is None else count)

    def _join(self, values: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
        values = list(values)
        self.read(values, d)
        self.work.spend(len(values) * len(str(d)))
        if attribute is not None:
            values = list(map(filters.make_attrgetter(self, attribute), values))
        return str(d).join(map(str, values))

    def _indent(self, text: str, width: int | str = 4, *where: bool, **named: bool) -> str:
        self.read(text)
        by = width if isinstance(width, int) else len(width)
        self.work.spend((str(text).count("\n") + 1) * max(0, by))
        return filters.do_indent(text, width, *where, **named)

    def _format(self, text: Any, *values: Any, **named: Any) -> str:
        self._expect_text(str(text), [*values, named], str(text).count("%"))
        return str(filters.do_format(text, *values, **named))

    def _int(self, text: Any, default: int = 0, base: int = 10) -> int:
        if isinstance(text, str) and len(text) > WIDEST:
            raise TooMuchWork("It reads a text as a number that is too long")
        return filters.do_int(text, default, base)

    def _round(self, number: float, precision: int = 0, method: Any = "common") -> float:
        if not -WIDEST < precision < WIDEST:
            raise TooMuchWork("It rounds a number too precisely")
        return filters.do_round(number, precision, method)


def _bits(number: Any) -> int:
    return number.bit_length() if isinstance(number, int) else 0
