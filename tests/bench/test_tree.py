"""The tree of calls as it is printed."""

import sys

from tests.bench.tree import CallTree, lines_of

CALLS = {("a", "b"): 30, ("a", "b", "C len"): 20, ("a", "c"): 40, ("a", "d"): 1}


def test_functions_are_listed_below_those_that_call_them():
    """Those with the most calls below them come first, and rare ones are left out."""
    assert lines_of(CALLS, 10, 0.5) == [
        "     9.1    0.00 a",
        "     5.0    3.00   b",
        "     2.0    2.00     C len",
        "     4.0    4.00   c",
    ]


def test_calls_in_python_and_in_c_are_counted_while_that_is_asked_for():
    tree = CallTree()

    def called() -> int:
        return len("abc")

    sys.setprofile(tree.note)
    called()
    tree.is_counting = True
    called()
    tree.is_counting = False
    sys.setprofile(None)
    lengths = {path[-2].partition(" ")[0]: count for path, count in tree.calls.items() if path[-1] == "C len"}

    assert lengths == {called.__qualname__: 1}
