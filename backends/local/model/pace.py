"""Puts into a chat template's syntax tree the places where a rendering spends its work; see `sandbox.py`.

{% for %}, {% macro %}, {% call %}, {% block %}  spend what stands in their bodies at every turn
for ... if                                       spends at every item that is tried
{{ x }}, x + y, x ~ y                            spend the length of what is printed or joined
x[1:2]                                           the length of what is cut out
x == y, x in y                                   what comparing takes, unless one side stands in the template
{x: y}, (x, y)                                   take no containers as keys, and no tuples in tuples: they are hashed

They are filters whose names cannot be written in a template.
"""

# ruff: noqa: N802  the names of visitors are jinja2's

from functools import partial
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from backends.local.model.sandbox import NODE, BoundedSandbox

# What a turn of a loop and a call of a macro cost that do nothing.
TURN, CALL = 100, 1000
SPEND, PRINTED, ADDED, JOINED, CUT, COMPARED, SEARCHED, KEY, FLAT = (
    f"{name} " for name in ("spend", "printed", "added", "joined", "cut", "compared", "searched", "key", "flat")
)
ONLY_TEXTS = {str}


def paced(tree: nodes.Template, sandbox: BoundedSandbox) -> nodes.Template:
    """The tree, changed in place; it can only be rendered in this sandbox."""
    sandbox.filters |= _filters(sandbox)
    _Pacing().visit(tree)
    return tree


class _Pacing(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.For:
        cost = TURN + _cost(node.body + node.else_)
        self.generic_visit(node)
        node.body.insert(0, _spend(cost))
        if node.test is not None:
            spend = _filter(nodes.Const(TURN + _cost([node.test])), SPEND)
            node.test = nodes.And(spend, node.test)
        return node

    def visit_Macro(self, node: Any) -> Any:
        cost = CALL + _cost(node.body)
        self.generic_visit(node)
        node.body.insert(0, _spend(cost))
        return node

    visit_CallBlock = visit_Block = visit_Macro  # noqa: N815

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [each if _plain(each) or _is_text(each) else _filter(each, PRINTED) for each in node.nodes]
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Expr:
        """A whole chain of them at once: most of what templates do is a + b + c."""
        summands: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            summands.insert(0, self.visit(left.right))
            left = left.left
        summands.insert(0, self.visit(left))
        return _filter(nodes.List(summands, lineno=node.lineno), ADDED)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), JOINED)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(node, CUT) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        if len(node.ops) > 1 or not (_plain(node.expr) or _plain(node.ops[0].expr)):
            node.expr = _filter(node.expr, COMPARED)
            for each in node.ops:
                each.expr = _filter(each.expr, SEARCHED if each.op in ("in", "notin") else COMPARED)
        elif node.ops[0].op in ("in", "notin") and not _plain(node.ops[0].expr):
            node.ops[0].expr = _filter(node.ops[0].expr, SEARCHED)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:
        self.generic_visit(node)
        node.key = node.key if _plain(node.key) else _filter(node.key, KEY)
        return node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return node if node.ctx != "load" or _plain(node) else _filter(node, FLAT)


def _filters(sandbox: BoundedSandbox) -> dict[str, Any]:
    work = sandbox.work

    @pass_context  # so that it is not computed once for all when the template is compiled
    def spend(_: Context, units: int) -> bool:
        work.spend(units)
        return True

    def printed(value: Any) -> Any:
        if type(value) is str:
            work.spend(len(value))
        else:
            sandbox.read(value)
        return value

    def added(values: list[Any]) -> Any:
        if set(map(type, values)) == ONLY_TEXTS:
            work.spend(sum(map(len, values)))
            return "".join(values)
        made = values[0]
        for value in values[1:]:
            made = made + value
            sandbox.glance(made)
        return made

    def cut(value: Any) -> Any:
        sandbox.glance(value)
        return value

    def searched(value: Any) -> Any:
        if not isinstance(value, dict):
            sandbox.read(value)
        return value

    return {
        SPEND: spend, PRINTED: printed, ADDED: added, JOINED: partial(_joined, sandbox), CUT: cut, COMPARED: printed,
        SEARCHED: searched, KEY: _key, FLAT: _flat,
    }  # fmt: skip


def _joined(sandbox: BoundedSandbox, values: list[Any]) -> str:
    sandbox.read(values)
    texts = [str(value) for value in values]
    sandbox.work.spend(sum(map(len, texts)))
    return "".join(texts)


def _key(value: Any) -> Any:
    if isinstance(value, tuple):
        raise SecurityError("A tuple cannot be a key here.")
    return value


def _flat(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if any(isinstance(value, tuple) for value in values):
        raise SecurityError("A tuple cannot hold tuples here.")
    return values


def _plain(node: nodes.Node) -> bool:
    """Whether this stands in the template as it is, so that its size is part of the template's own."""
    if isinstance(node, nodes.List | nodes.Tuple):
        return all(map(_plain, node.items))
    return isinstance(node, nodes.Const | nodes.TemplateData)


def _is_text(node: nodes.Node) -> bool:
    """Whether this makes a text that has been paid for."""
    if not isinstance(node, nodes.Filter) or node.name not in (ADDED, JOINED):
        return False
    parts = node.node.items if isinstance(node.node, nodes.List) else []
    return node.name == JOINED or any(isinstance(each, nodes.Const) and isinstance(each.value, str) for each in parts)


def _cost(body: list[Any]) -> int:
    """How much one turn takes at most, but for what depends on values."""
    units = 0
    for part in body:
        units += NODE * (1 + sum(1 for _ in part.find_all(nodes.Node)))
        units += sum(len(text.data) for text in part.find_all(nodes.TemplateData))
        units += sum(len(const.value) for const in part.find_all(nodes.Const) if isinstance(const.value, str))
    return units


def _spend(units: int) -> nodes.ExprStmt:
    return nodes.ExprStmt(_filter(nodes.Const(units), SPEND))


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
