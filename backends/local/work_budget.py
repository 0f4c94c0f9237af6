"""Limits the work of preparing one request: its schemas, its grammars, its prompt and the tokens of the prompt.

Work is counted, not timed, so that a request is refused at the same place on every machine. A unit is about one
character that is read or written: 10 ns on the machine of the README's figures. The work of schemas and grammars is
estimated and spent before any of them is compiled; a template and a tokenizer spend while they work.

    with WorkBudget(units): prepare()        in the thread that prepares the request
    current_budget().spend(units)            anywhere below it
    budget.cancel()                          in any thread: the next `spend` or `check` raises
"""  # fmt: skip

from contextvars import ContextVar, Token

REQUEST_UNITS = 200_000_000
"""How much one request may cost apart from the length of its prompt: two seconds."""
CONTEXT_TOKEN_UNITS = 2_500
"""How much a request may cost in addition for each token of the model's context: rendering and tokenizing it once."""


class WorkLimitReached(Exception):
    """The request costs more than its budget."""


class PreparationCancelled(Exception):
    """The client has disconnected."""


class WorkBudget:
    """The remaining work of one request. One thread spends, in a block of which it is the current budget; any thread
    may cancel.
    """

    def __init__(self, units: int = REQUEST_UNITS) -> None:
        self.remaining = units
        self.is_cancelled = False
        self._before: Token[WorkBudget | None]

    def __enter__(self) -> None:
        self._before = _current.set(self)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._before)

    def spend(self, units: int) -> None:
        """Subtract units. Raises WorkLimitReached below zero, PreparationCancelled after `cancel`."""
        self.check()
        self.remaining -= units
        if self.remaining < 0:
            raise WorkLimitReached

    def check(self) -> None:
        """Raises PreparationCancelled after `cancel`."""
        if self.is_cancelled:
            raise PreparationCancelled

    def cancel(self) -> None:
        """End the work at its next check."""
        self.is_cancelled = True


_current: ContextVar[WorkBudget | None] = ContextVar("headgate_work_budget", default=None)


def current_budget() -> WorkBudget:
    """Return the budget of the request that is being prepared; a new one outside of a request."""
    return _current.get() or WorkBudget()
