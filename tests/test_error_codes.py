"""proxy/errors.md lists exactly the error codes of the sources, with the right status."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from proxy.wire import errors
from proxy.wire.lifting import OUTAGES, SENTENCES, add_contact, lifted_by
from tests import sources
from tests.sources import ROOT, parse, walk

PAGE = (ROOT / "proxy" / "errors.md").read_text()
TRAINING = ROOT / "backends" / "training"
SOURCES = [path for path in sources.SOURCES if TRAINING not in path.parents and path.stem != "_template"]
# Statuses of the classes in proxy/wire/errors.py; other classes inherit theirs.
STATUSES = {
    "HeadgateError": 500,
    "Unauthenticated": 401,
    "RequestError": 400,
    "PolicyViolation": 400,
    "LimitExceeded": 429,
    "UnknownModel": 404,
    "Unavailable": 503,
    "BackendError": 502,
    "Stop": 200,
}
# Codes that a source composes: the literal part of the f-string, and the values of the other part.
COMPOSED = {"_below_min_value": ("integer", "decimal"), "_above_max_value": ("integer", "decimal")}
Found = Iterator[tuple[str, int | None]]  # a code, and its status if that can be read


def texts_in(node: ast.AST | None) -> list[str]:
    """Return the texts that an expression can be: a literal, or one of two."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    return [*texts_in(node.body), *texts_in(node.orelse)] if isinstance(node, ast.IfExp) else []


def name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


@cache
def class_statuses() -> dict[str, int]:
    """Return the status of each error class of the sources."""
    statuses = dict(STATUSES)
    classes = [node for path in SOURCES for node in walk(parse(path)) if isinstance(node, ast.ClassDef)]
    for node in classes:
        for base in node.bases:
            if name_of(base) in statuses:
                statuses.setdefault(node.name, statuses[name_of(base)])
    return statuses


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((item.value for item in call.keywords if item.arg == name), None)


def status_of(call: ast.Call, class_name: str) -> int | None:
    """Return the status with which an error is raised, or None if it is neither a literal nor known from the class."""
    status = keyword(call, "status")
    if status is None:
        return class_statuses().get(class_name)
    return status.value if isinstance(status, ast.Constant) and isinstance(status.value, int) else None


def codes_of_calls(scope: ast.AST, class_name: str = "") -> Found:
    """Yield the codes of `code="..."`, and of `code=code` where `code` was assigned literals in the same function."""
    assigned = [
        text
        for node in walk(scope)
        if isinstance(node, ast.Assign) and [name_of(target) for target in node.targets] == ["code"]
        for text in texts_in(node.value)
    ]
    for node in walk(scope):
        if not isinstance(node, ast.Call):
            continue
        value = keyword(node, "code")
        is_assigned = isinstance(value, ast.Name) and value.id == "code"
        name = name_of(node.func)
        for code in assigned if is_assigned else texts_in(value):
            yield code, status_of(node, class_name if name == "__init__" else name)


def codes_of_defaults(scope: ast.AST) -> Found:
    """Yield the codes that are defaults of a parameter `code`."""
    for node in walk(scope):
        if isinstance(node, ast.FunctionDef):
            pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            for text in (text for argument, default in pairs if argument.arg == "code" for text in texts_in(default)):
                yield text, None


def codes_of_constants(tree: ast.Module) -> Found:
    """Yield the codes that a module passes through one of its constants."""
    constants = {
        name_of(target): node.value for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
    }
    for scope in walk(tree):
        if isinstance(scope, ast.ClassDef):
            for node in (node for node in walk(scope) if isinstance(node, ast.Call)):
                value = keyword(node, "code")
                if isinstance(value, ast.Name):
                    yield from ((text, class_statuses()[scope.name]) for text in texts_in(constants.get(value.id)))


def codes_of_records(tree: ast.Module) -> Found:
    """Yield the codes that are only logged: `record.code = "..."`."""
    for node in walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                for name, value in zip(names, values, strict=False):
                    if isinstance(name, ast.Attribute) and name.attr == "code":
                        yield from ((text, None) for text in texts_in(value))


def composed_codes(tree: ast.Module) -> Found:
    """Yield the codes of f-strings that end in one of the composed parts."""
    for node in walk(tree):
        if isinstance(node, ast.JoinedStr):
            for text in texts_in(node.values[-1]):
                yield from ((f"{kind}{text}", 400) for kind in COMPOSED.get(text, ()))


def reasons_in(tree: ast.Module) -> Found:
    """Yield the reasons of the violations and stops that a policy raises, except those with a code of the protocol."""
    calls = [node for node in walk(tree) if isinstance(node, ast.Call)]
    functions = [node for node in walk(tree) if isinstance(node, ast.FunctionDef)]
    for call in calls:
        if name_of(call.func) in ("PolicyViolation", "LimitExceeded", "Stop") and keyword(call, "code") is None:
            reason, status = call.args[0], STATUSES[name_of(call.func)]
            yield from ((text, status) for text in texts_in(reason))
            if isinstance(reason, ast.Name):  # a parameter: look at the arguments of the function's calls
                (function,) = [node for node in functions if call in walk(node) and _has_parameter(node, reason.id)]
                position = [argument.arg for argument in function.args.args].index(reason.id)
                for other in calls:
                    if name_of(other.func) == function.name:
                        yield from ((text, status) for text in texts_in(other.args[position]))
            if isinstance(reason, ast.Subscript):  # the first part of a problem, returned or passed
                yield from ((text, status) for text in _problems_in(tree))
                (function,) = [node for node in functions if call in walk(node)]
                passed = [other.args[0] for other in calls if name_of(other.func) == function.name]
                pairs = [argument.elts[0] for argument in passed if isinstance(argument, ast.Tuple)]
                yield from ((text, status) for pair in pairs for text in texts_in(pair))


def _has_parameter(function: ast.FunctionDef, name: str) -> bool:
    return name in [argument.arg for argument in function.args.args]


def _problems_in(tree: ast.Module) -> Iterator[str]:
    """Yield the first parts of the pairs of texts that a module returns, or has as constants of the type Problem."""
    for node in walk(tree):
        value = node.value if isinstance(node, ast.Return | ast.AnnAssign) else None
        if isinstance(node, ast.AnnAssign) and name_of(node.annotation) != "Problem":
            continue
        for pair in (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,):
            if isinstance(pair, ast.Tuple) and len(pair.elts) == 2:
                yield from texts_in(pair.elts[0])


@cache
def imports_from_support(path: Path) -> dict[str, tuple[Path, str]]:
    """Return where in policies/support each imported name is defined; the name there is "" for a whole module."""
    found = {}
    for node in walk(parse(path)):
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        if module.startswith("policies.support"):
            for imported in node.names:
                file = ROOT / f"{module.replace('.', '/')}.py"
                place = (
                    (file, imported.name) if file.exists() else (ROOT / "policies/support" / f"{imported.name}.py", "")
                )
                found[imported.asname or imported.name] = place
    return found


@cache
def definitions_in(path: Path) -> dict[str, ast.stmt]:
    """Return the functions, classes and constants of a module by their names."""
    found: dict[str, ast.stmt] = {}
    for node in parse(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                found[name_of(target)] = node
    return found


def names_used(path: Path, definition: ast.stmt) -> Iterator[tuple[Path, str]]:
    """Yield the definitions, in this module and in policies/support, that one definition refers to."""
    imported = imports_from_support(path)
    for node in walk(definition):
        if isinstance(node, ast.Attribute) and imported.get(name_of(node.value), (path, "."))[1] == "":
            yield imported[name_of(node.value)][0], node.attr
        if isinstance(node, ast.Name):
            yield imported.get(node.id, (path, node.id))


def modules_of_policy(path: Path) -> Iterator[ast.Module]:
    """Yield a policy's module, and what it uses of each module of policies/support, directly or not."""
    waiting, used = [(path, name) for name in definitions_in(path)], defaultdict(set)
    while waiting:
        module, name = waiting.pop()
        definition = definitions_in(module).get(name)
        if definition is not None and name not in used[module]:
            used[module].add(name)
            waiting += names_used(module, definition)
    for module, names in used.items():
        yield ast.Module([node for name, node in definitions_in(module).items() if name in names], [])


def policy_codes() -> Found:
    """Yield `<policy>.<reason>` for each reason of a policy and of the support functions that it uses."""
    for path in SOURCES:
        if path.parent == ROOT / "policies" and path.stem != "__init__":
            for module in modules_of_policy(path):
                yield from ((f"{path.stem}.{reason}", status) for reason, status in reasons_in(module))


def codes_in_sources() -> Found:
    yield from policy_codes()
    for path in SOURCES:
        tree = parse(path)
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        for node in functions:
            yield from codes_of_calls(node)
        for node in classes:
            for method in node.body:
                yield from codes_of_calls(method, node.name)
        yield from codes_of_defaults(tree)
        yield from codes_of_constants(tree)
        yield from codes_of_records(tree)
        yield from composed_codes(tree)


@cache
def statuses_by_code() -> dict[str, set[int]]:
    """Return the codes of the sources, each with the statuses that can be determined."""
    statuses: dict[str, set[int]] = defaultdict(set)
    for code, status in codes_in_sources():
        statuses[code] |= {status} if status is not None else set()
    return statuses


@cache
def rows() -> list[tuple[str, str, str, str, str]]:
    """Return the rows of the page, one per code: code, status, fault, who can lift it, remedy."""
    found = []
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            codes, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            found += [(code, *cells) for code in re.findall(r"`([^`]+)`", codes)]
    return found


def documented() -> list[str]:
    return [code for code, *_ in rows()]


def missing(codes: Iterable[str], others: Iterable[str]) -> list[str]:
    return sorted(set(codes) - set(others))


def test_every_code_of_the_sources_is_on_the_page():
    """The page has a remedy for each code."""
    assert missing(statuses_by_code(), documented()) == []


def test_every_code_on_the_page_is_in_the_sources():
    """A code that was removed has no row, and no code has two."""
    assert missing(documented(), statuses_by_code()) == []
    assert len(documented()) == len(set(documented()))


def test_a_row_has_the_status_of_the_sources():
    """It is the status of the error's class or of the raise; "upstream" means that the upstream's status is forwarded."""
    numbers = {code: int(status) for code, status, *_ in rows() if status.isdigit()}

    assert [code for code, *_ in rows() if code not in numbers] == ["upstream_error"]
    assert [code for code, number in numbers.items() if not statuses_by_code()[code] <= {number}] == []


def test_a_row_has_a_fault_and_a_remedy():
    """The fault is one of a few words."""
    faults = ("client", "operator", "load", "gateway", "network", "upstream", "backend")

    assert [code for code, _, fault, _, action in rows() if fault not in faults or not action] == []


def test_a_row_says_who_can_lift_a_refusal():
    """The page and the sources agree, and each limit has an owner."""
    by_request = {"invalid_token", "token_expired"}  # the client signs in again

    assert [code for code, _, _, lifter, _ in rows() if lifter != lifted_by(code)] == []
    assert {code for code, status, _, lifter, _ in rows() if status in ("401", "403", "429") and lifter == "client"} == by_request  # fmt: skip
    assert [code for code, status, _, lifter, _ in rows() if status in ("401", "403", "429") and lifter == "none"] == []


def test_a_refusal_says_who_can_lift_it():
    """In its message, and how that person is reached; once, if it is sent several times."""
    for code in documented():
        error = errors.HeadgateError("No.", code=code)
        for _ in range(2):
            add_contact(error, "#llm-gateway")
        sentence = SENTENCES.get("outage" if code in OUTAGES else lifted_by(code))

        assert error.message == ("No." if sentence is None else f"No. {sentence} Contact: #llm-gateway")


def test_the_codes_are_one_table():
    """One table can be searched and sorted."""
    assert re.findall(r"^\|[-|]+\|$", PAGE, re.MULTILINE) == ["|---|---|---|---|---|"]


def test_the_statuses_of_the_classes_are_those_that_this_test_assumes():
    """The test raises each class without an explicit status."""
    made = [
        errors.HeadgateError("."), errors.Unauthenticated("."), errors.RequestError("."),
        errors.PolicyViolation("reason", "."), errors.UnknownModel("m"), errors.Unavailable(".", code="c"),
        errors.BackendError("."), errors.LimitExceeded("reason", ".", after_s=1),
    ]  # fmt: skip

    assert {type(error).__name__: error.status for error in made} | {"Stop": 200} == STATUSES


def test_codes_are_found_in_every_form_in_which_sources_write_them():
    """The tests above depend on this."""
    found = statuses_by_code()

    assert found["request_timeout"] == {408}  # a literal
    assert found["model_not_found"] == {404}  # of super().__init__
    assert "upstream_error" in found  # a default
    assert "write_timeout" in found  # of a record
    assert found["server_shutdown"] == {503}  # a constant
    assert found["invalid_json_schema"] == {400}  # one of two
    assert found["decimal_above_max_value"] == {400}  # an f-string
    assert found["local_model_busy"] == {429}  # a class of a backend
    assert found["models.not_allowed"] == {400}  # a reason
    assert found["size.too_many_items"] == {400}  # a reason that is a parameter
    assert found["input_urls.private"] == {400}  # a reason in a pair
    assert found["input_urls.unresolved"] == {400}  # a reason in a pair that is passed
    assert found["models.alternative_field"] == {400}  # a reason of a function of a support module
    assert "fields.alternative_field" not in found  # which uses other functions of the same module
    assert found["tools.too_many_values"] == {400}  # a reason of a support module
    assert found["max_tool_calls.exceeded"] == {200}  # a stop
