"""A jinja2 sandbox that limits not only what a template can reach but also its cost: time and memory.

jinja2's own sandbox stops a template from reaching out, but not from `{% for %}` within `{% for %}`, `'x' * 10**9` or a
list that contains itself twice, forty times over. Such a template, or a request that makes a harmless one do the same,
would block all other callers. A timeout does not help: nothing can interrupt a thread during a long operation, and a
process for each prompt would cost a hundred times what rendering does. So each rendering has a budget of work, counted
in roughly the characters that it reads or writes:

    each iteration, each call of a macro    the size of its body                        see `template_metering.py`
    output, sums, slices, comparisons       their length; their depth where needed      see `template_metering.py`
    * ** %, methods, filters, tests         the length of arguments and results, before the result is made

Anything that is not in the tables here is refused when the template is compiled; chat templates need no more. A
rendering that exceeds its budget ends with WorkLimitExceeded, at the same place on every machine, and leaves nothing
running.
Source: https://jinja.palletsprojects.com/en/stable/sandbox/
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import wraps
from typing import Any

from jinja2 import TemplateRuntimeError, filters
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from backends.local.work_budget import PreparationCancelled, WorkBudget

WORK_BUDGET = 100_000_000
"""How much one rendering may do: under a second, and twenty times what the longest conversations take."""
NODE_COST = 20
"""The cost of one part of an expression, or of one value in a list."""
DEEP_NODE_COST, ITEM_COST, SLOW_FACTOR = 50, 200, 20
"""The cost of a value that is read in depth; of an item that passes lazy filters; how much slower some filters are."""
MAX_WIDTH = 1000
"""For widths, precisions and texts that are parsed as numbers."""
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
UNMETERED_FILTERS = "attr count d default first last length"
SHALLOW_FILTERS = "items list map reject rejectattr reverse select selectattr"
DEEP_FILTERS = "abs capitalize float lower safe string trim upper"
SLOW_FILTERS = "dictsort e escape groupby max min sort title truncate unique urlencode wordcount"
COMPARISON_TESTS = "eq == equalto ne != in lt < lessthan le <= gt > greaterthan ge >="
SCALARS = frozenset({bool, bytes, float, int, type(None)})
# A width of four digits, one taken from the values, or a field within a field.
TOO_WIDE = re.compile(r"\d{4}|%[^a-zA-Z%]*\*|\{[^{}]*\{")


class WorkLimitExceeded(TemplateRuntimeError):
    """The template, or its input, would take too much time or memory."""

    def __init__(self, message: str = "It takes more work than a prompt may") -> None:
        super().__init__(message)


class RenderingBudget(threading.local):
    """The remaining work of the rendering in this thread; prompts are rendered in several threads."""

    remaining = WORK_BUDGET
    request = WorkBudget()

    @contextmanager
    def of_request(self, request: WorkBudget) -> Iterator[None]:
        """Limit a block by the rest of the request's budget, and spend from it what the block spends."""
        limit = min(WORK_BUDGET, request.remaining)
        self.request, self.remaining = request, limit
        try:
            yield
        finally:
            request.remaining -= limit - max(0, self.remaining)

    def spend(self, units: int) -> None:
        self.remaining -= units
        if self.remaining < 0:
            raise WorkLimitExceeded
        if self.request.is_cancelled:
            raise PreparationCancelled


class TemplateNamespace(Namespace):
    """`namespace()`, printed without its values because they could contain each other."""

    def __repr__(self) -> str:
        return "<Namespace>"


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """A jinja2 environment in which each rendering has a budget of work."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.work = RenderingBudget()
        own = {"replace": self._replace, "join": self._join, "indent": self._indent, "format": self._format,
               "int": self._int, "round": self._round}  # fmt: skip
        native = self.filters
        self.filters = {name: native[name] for name in UNMETERED_FILTERS.split()}
        self.filters |= {name: self.meter(native[name], self.charge_shallow) for name in SHALLOW_FILTERS.split()}
        self.filters |= {name: self.meter(native[name], self.charge_deep) for name in DEEP_FILTERS.split()}
        self.filters |= {name: self.meter(native[name], self._charge_slow) for name in SLOW_FILTERS.split()}
        self.filters |= {name: self.meter(function) for name, function in own.items()}
        self.tests |= {name: self.meter(self.tests[name], self.charge_deep) for name in COMPARISON_TESTS.split()}
        self.globals = {name: self.globals[name] for name in ("range", "dict", "cycler", "joiner")}
        self.globals["namespace"] = TemplateNamespace

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        kind = type(obj)
        if kind is TemplateNamespace:
            return not attr.startswith("_")
        methods = METHODS.get(kind)
        if methods is None:  # texts that are marked as safe are a subclass of str
            methods = next((METHODS[known] for known in METHODS if issubclass(kind, known)), None)
        return super().is_safe_attribute(obj, attr, value) if methods is None else attr in methods

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            self._charge_format(left, right, left.count("%"))
        elif operator == "*":
            self._charge_product(left, right)
        elif operator == "**" and _bits(left) * max(1, abs(right)) > MAX_BITS:
            raise WorkLimitExceeded("It raises a number to a power that is too large")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Meter all calls of a template: of methods, of macros, of globals."""
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            self.work.spend(len(owner))
            args = self._charge_text_method(function.__name__, owner, args, kwargs)
        elif isinstance(owner, list | tuple):
            self.charge_deep(owner, *args)
        elif function is dict and args and not isinstance(args[0], Mapping):
            raise SecurityError("dict() accepts only an object and keyword arguments here")
        self.charge_shallow(*args, *kwargs.values())
        result = super().call(context, function, *args, **kwargs)
        if isinstance(owner, str):
            self.charge_shallow(result)
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        def metered_format(*args: Any, **kwargs: Any) -> str:
            self._charge_format(value.__self__, [*args, kwargs], value.__self__.count("{"))
            return formatted(*args, **kwargs)

        return metered_format

    def charge_shallow(self, *values: Any, **_: Any) -> None:
        """Spend the cost of going through values once, without their contents."""
        for value in values:
            kind = type(value)
            if kind is str:
                self.work.spend(len(value))
            elif kind not in SCALARS and isinstance(value, Sized):
                self.work.spend(NODE_COST * len(value))

    def charge_deep(self, *values: Any, **named: Any) -> None:
        """Spend the cost of reading values in depth; one that occurs twice counts twice."""
        if len(values) == 1 and type(values[0]) is str:
            self.work.spend(DEEP_NODE_COST + len(values[0]))
            return
        unread: list[Any] = [*values, *named.values()]
        units, remaining = 0, self.work.remaining
        for value in unread:  # it grows during the loop
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
            if units + DEEP_NODE_COST * len(unread) > remaining:
                raise WorkLimitExceeded
        self.work.spend(units + DEEP_NODE_COST * len(unread))

    def _charge_slow(self, *values: Any, **named: Any) -> None:
        before = self.work.remaining
        self.charge_deep(*values, **named)
        self.work.spend((SLOW_FACTOR - 1) * (before - self.work.remaining))

    def meter(self, function: Any, charge: Callable[..., None] | None = None) -> Callable[..., Any]:
        """Return a filter or test that spends the cost of its arguments and of its result."""
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            if charge is not None:
                charge(*args[skipped:], **kwargs)
            result = function(*args, **kwargs)
            if isinstance(result, Iterator):
                return self._meter_items(result)
            self.charge_shallow(result)
            return result

        return metered

    def _meter_items(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.work.spend(ITEM_COST)
            yield item

    def _charge_text_method(
        self, name: str, owner: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Return the arguments of a text method, after spending the cost of a result that can be long."""
        if name == "replace" and not kwargs and len(args) > 1:
            self._charge_replace(owner, str(args[0]), str(args[1]))
        elif name == "join" and args:
            args = (list(args[0]),)
            self.charge_deep(args[0])
            self.work.spend(len(owner) * len(args[0]))
        return args

    def _charge_replace(self, text: str, old: str, new: str) -> None:
        self.work.spend(len(text) + max(0, text.count(old) * (len(new) - len(old))))

    def _charge_format(self, text: str, values: Any, fields: int) -> None:
        """Spend the cost of formatting: each field may contain all values."""
        if TOO_WIDE.search(text):
            raise WorkLimitExceeded("It formats a text with too large a width")
        before = self.work.remaining
        self.charge_deep(values)
        self.work.spend(len(text) + fields * (before - self.work.remaining))

    def _charge_product(self, left: Any, right: Any) -> None:
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, Sized) and isinstance(times, int):
                self.work.spend((1 if isinstance(sequence, str) else NODE_COST) * len(sequence) * max(0, times))
        if _bits(left) + _bits(right) > MAX_BITS:
            raise WorkLimitExceeded("It multiplies numbers that are too long")

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        self.charge_deep(text, old, new)
        old, new = str(old), str(new)
        self._charge_replace(str(text), old, new)
        return str(text).replace(old, new, -1 if count is None else count)

    def _join(self, values: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
        values = list(values)
        self.charge_deep(values, d)
        self.work.spend(len(values) * len(str(d)))
        if attribute is not None:
            values = list(map(filters.make_attrgetter(self, attribute), values))
        return str(d).join(map(str, values))

    def _indent(self, text: str, width: int | str = 4, *where: bool, **named: bool) -> str:
        self.charge_deep(text)
        columns = width if isinstance(width, int) else len(width)
        self.work.spend((str(text).count("\n") + 1) * max(0, columns))
        return filters.do_indent(text, width, *where, **named)

    def _format(self, text: Any, *values: Any, **named: Any) -> str:
        self._charge_format(str(text), [*values, named], str(text).count("%"))
        return str(filters.do_format(text, *values, **named))

    def _int(self, text: Any, default: int = 0, base: int = 10) -> int:
        if isinstance(text, str) and len(text) > MAX_WIDTH:
            raise WorkLimitExceeded("It parses a number that is too long")
        return filters.do_int(text, default, base)

    def _round(self, number: float, precision: int = 0, method: Any = "common") -> float:
        if not -MAX_WIDTH < precision < MAX_WIDTH:
            raise WorkLimitExceeded("It rounds a number too precisely")
        return filters.do_round(number, precision, method)


def _bits(number: Any) -> int:
    return number.bit_length() if isinstance(number, int) else 0
