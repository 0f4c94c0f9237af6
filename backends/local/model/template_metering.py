"""Adds metering to a chat template's syntax tree: the places where a rendering spends work; see `template_sandbox.py`.

{% for %}, {% macro %}, {% call %}, {% block %}  spend the size of their bodies at every iteration or call
for ... if                                       spends at every item that is tested
{{ x }}, x + y, x ~ y                            spend the length of what is printed or joined
x[1:2]                                           spends the length of the slice
x == y, x in y                                   spend the cost of comparing, unless one side is a constant
{x: y}, (x, y)                                   reject containers as keys and tuples in tuples: both are hashed

The metering is done by filters whose names cannot be written in a template.
"""

# ruff: noqa: N802  the names of visitors are jinja2's

from functools import partial
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from backends.local.model.template_sandbox import NODE_COST, BoundedSandbox

# The cost of an empty iteration and of an empty macro call.
ITERATION_COST, CALL_COST = 100, 1000
SPEND, PRINT, ADD, JOIN, SLICE, COMPARE, SEARCH, KEY, TUPLE = (
    f"{name} " for name in ("spend", "print", "add", "join", "slice", "compare", "search", "key", "tuple")
)
ONLY_STRINGS = {str}


def add_metering(tree: nodes.Template, sandbox: BoundedSandbox) -> nodes.Template:
    """Add metering to a tree in place and return it; it can then be rendered only in this sandbox."""
    sandbox.filters |= _filters(sandbox)
    _MeteringTransformer().visit(tree)
    return tree


class _MeteringTransformer(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.For:
        cost = ITERATION_COST + _body_cost(node.body + node.else_)
        self.generic_visit(node)
        node.body.insert(0, _spend(cost))
        if node.test is not None:
            spend = _filter(nodes.Const(ITERATION_COST + _body_cost([node.test])), SPEND)
            node.test = nodes.And(spend, node.test)
        return node

    def visit_Macro(self, node: Any) -> Any:
        cost = CALL_COST + _body_cost(node.body)
        self.generic_visit(node)
        node.body.insert(0, _spend(cost))
        return node

    visit_CallBlock = visit_Block = visit_Macro  # noqa: N815

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [
            each if _is_constant(each) or _is_metered_text(each) else _filter(each, PRINT) for each in node.nodes
        ]
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Expr:
        """Meter a whole chain at once, because most expressions in templates are a + b + c."""
        summands: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            summands.insert(0, self.visit(left.right))
            left = left.left
        summands.insert(0, self.visit(left))
        return _filter(nodes.List(summands, lineno=node.lineno), ADD)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), JOIN)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(node, SLICE) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        if len(node.ops) > 1 or not (_is_constant(node.expr) or _is_constant(node.ops[0].expr)):
            node.expr = _filter(node.expr, COMPARE)
            for each in node.ops:
                each.expr = _filter(each.expr, SEARCH if each.op in ("in", "notin") else COMPARE)
        elif node.ops[0].op in ("in", "notin") and not _is_constant(node.ops[0].expr):
            node.ops[0].expr = _filter(node.ops[0].expr, SEARCH)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:
        self.generic_visit(node)
        node.key = node.key if _is_constant(node.key) else _filter(node.key, KEY)
        return node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return node if node.ctx != "load" or _is_constant(node) else _filter(node, TUPLE)


def _filters(sandbox: BoundedSandbox) -> dict[str, Any]:
    work = sandbox.work

    @pass_context  # prevents jinja2 from evaluating it once at compile time
    def spend(_: Context, units: int) -> bool:
        work.spend(units)
        return True

    def print_value(value: Any) -> Any:
        if type(value) is str:
            work.spend(len(value))
        else:
            sandbox.charge_deep(value)
        return value

    def add(values: list[Any]) -> Any:
        if set(map(type, values)) == ONLY_STRINGS:
            work.spend(sum(map(len, values)))
            return "".join(values)
        total = values[0]
        for value in values[1:]:
            total = total + value
            sandbox.charge_shallow(total)
        return total

    def slice_value(value: Any) -> Any:
        sandbox.charge_shallow(value)
        return value

    def search(value: Any) -> Any:
        if not isinstance(value, dict):
            sandbox.charge_deep(value)
        return value

    return {
        SPEND: spend, PRINT: print_value, ADD: add, JOIN: partial(_join, sandbox), SLICE: slice_value,
        COMPARE: print_value, SEARCH: search, KEY: _check_key, TUPLE: _check_tuple,
    }  # fmt: skip


def _join(sandbox: BoundedSandbox, values: list[Any]) -> str:
    sandbox.charge_deep(values)
    texts = [str(value) for value in values]
    sandbox.work.spend(sum(map(len, texts)))
    return "".join(texts)


def _check_key(value: Any) -> Any:
    if isinstance(value, tuple):
        raise SecurityError("A tuple cannot be a key here.")
    return value


def _check_tuple(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if any(isinstance(value, tuple) for value in values):
        raise SecurityError("A tuple cannot contain tuples here.")
    return values


def _is_constant(node: nodes.Node) -> bool:
    """Whether this is a constant of the template, whose size counts as part of the template."""
    if isinstance(node, nodes.List | nodes.Tuple):
        return all(map(_is_constant, node.items))
    return isinstance(node, nodes.Const | nodes.TemplateData)


def _is_metered_text(node: nodes.Node) -> bool:
    """Whether this is a text whose cost was spent when it was made."""
    if not isinstance(node, nodes.Filter) or node.name not in (ADD, JOIN):
        return False
    parts = node.node.items if isinstance(node.node, nodes.List) else []
    return node.name == JOIN or any(isinstance(each, nodes.Const) and isinstance(each.value, str) for each in parts)


def _body_cost(body: list[Any]) -> int:
    """Return the cost of one iteration or call, without what depends on values."""
    units = 0
    for part in body:
        units += NODE_COST * (1 + sum(1 for _ in part.find_all(nodes.Node)))
        units += sum(len(text.data) for text in part.find_all(nodes.TemplateData))
        units += sum(len(const.value) for const in part.find_all(nodes.Const) if isinstance(const.value, str))
    return units


def _spend(units: int) -> nodes.ExprStmt:
    return nodes.ExprStmt(_filter(nodes.Const(units), SPEND))


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
