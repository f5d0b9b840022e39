"""Lists the small changes that can be made to a source file: `mutants(text, file)`.

Each changes one expression: another comparison, sign or operator, a number off by one, arguments exchanged, a keyword
or a term dropped, branches exchanged. Docstrings, annotations, messages and raised errors stay as they are.
"""

import ast
import copy
import dataclasses
import warnings
from collections.abc import Iterator

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.RShift: ast.LShift,
    ast.LShift: ast.RShift,
}  # fmt: skip
FUNCTIONS = {
    "max": "min", "min": "max", "maximum": "minimum", "minimum": "maximum", "any": "all", "all": "any", "ceil": "floor",
    "floor": "round", "sum": "mean", "mean": "sum",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One changed expression."""

    file: str
    line: int
    kind: str
    begin: int
    end: int
    """Characters of the file that `after` replaces."""
    before: str
    after: str
    source: str
    """Changed line as it was, stripped."""
    column: int
    """Place in `source`."""
    statement: str
    """Key of the statement, see `statements`."""

    @property
    def name(self) -> str:
        """Place by its text, and the change: stays when other lines of the file change."""
        function = self.statement.partition(": ")[0]
        return f"{self.file}{function}: {self.source} [{self.column}]: {self.before} -> {self.after}"

    def applied(self, text: str) -> str:
        """Text of the file with the change made."""
        return text[: self.begin] + self.after + text[self.end :]


def mutants(text: str, file: str) -> list[Mutant]:
    """All mutants of a file, in the order of its lines; see `compiles`."""
    tree, starts, lines = ast.parse(text), _starts(text), text.splitlines()
    found: dict[tuple[int, int, str], Mutant] = {}
    for statement, key in statements(tree, lines):
        for node in _expressions(statement):
            for kind, new in _changed(node):
                begin, end = (
                    _offset(starts, lines, line, column)
                    for line, column in ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
                )
                before, after = text[begin:end], ast.unparse(ast.fix_missing_locations(new))
                if isinstance(new, (ast.BinOp, ast.BoolOp, ast.UnaryOp, ast.Compare, ast.IfExp)):
                    after = f"({after})"
                line = lines[node.lineno - 1]
                column = begin - starts[node.lineno - 1] - len(line) + len(line.lstrip())
                change = node.lineno, kind, begin, end, " ".join(before.split()), after
                made = Mutant(file, *change, line.strip(), column, key)
                if after != before:
                    found[begin, end, after] = made
    return sorted(found.values(), key=lambda m: (m.begin, m.end, m.after))


def statements(tree: ast.Module, lines: list[str]) -> Iterator[tuple[ast.stmt, str]]:
    """Statements that do something, with a key "function: first line" each. Docstrings, imports and raises are not."""

    def walk(body: list[ast.stmt], path: str) -> Iterator[tuple[ast.stmt, str]]:
        for node in body:
            if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.Pass | ast.Global):
                continue
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue
            yield node, f"{path}: {lines[node.lineno - 1].strip()}"
            inside = isinstance(node, ast.FunctionDef | ast.ClassDef)
            for field in ("body", "orelse", "finalbody"):
                yield from walk(getattr(node, field, []), f"{path}.{node.name}" if inside else path)
            for handler in getattr(node, "handlers", []):
                yield from walk(handler.body, path)

    return walk(tree.body, "")


def _expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    """Expressions of a statement itself, without those of the statements inside it, types and messages."""
    skipped = {"body", "orelse", "finalbody", "handlers", "annotation", "returns", "decorator_list", "msg", "bases"}
    if isinstance(statement, ast.Assign) and _is_type(statement.value):
        return

    def walk(node: ast.AST) -> Iterator[ast.expr]:
        if isinstance(node, ast.JoinedStr | ast.stmt | ast.ExceptHandler):
            return
        if isinstance(node, ast.Call) and _called(node) in ("warn", "print", "problem", "isinstance", "UserError"):
            return
        if isinstance(node, ast.expr):
            yield node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child)

    for name, value in ast.iter_fields(statement):
        if name not in skipped:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child)


def _is_type(value: ast.expr) -> bool:
    """True for Float[Array, "..."], A | B and the like, which have no effect when run."""
    names = {"Float", "Num", "Bool", "Integer", "Shaped", "UInt8", "Callable", "Literal", "Sequence", "dict", "tuple"}
    return any(isinstance(n, ast.Subscript) and isinstance(n.value, ast.Name) and n.value.id in names
               for n in ast.walk(value) if not isinstance(value, ast.Call))  # fmt: skip


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _changed(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Changed copies of a node, each with the kind of its change."""

    def new(**fields) -> ast.expr:
        made = copy.copy(node)
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    if isinstance(node, ast.Constant):
        yield from ((kind, ast.Constant(value)) for kind, value in _numbers(node.value))
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        yield "comparison", new(ops=[COMPARISONS[type(node.ops[0])]()])
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not _is_text(node):
        yield "operator", new(op=OPERATORS[type(node.op)]())
        if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
            yield "term dropped", node.left
        if isinstance(node.op, ast.Sub | ast.Div):
            yield "exchanged", new(left=node.right, right=node.left)
    elif isinstance(node, ast.BoolOp):
        yield "operator", new(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        yield "term dropped", new(values=node.values[:-1]) if len(node.values) > 2 else node.values[0]
    elif isinstance(node, ast.UnaryOp):
        yield "sign", node.operand
    elif isinstance(node, ast.IfExp):
        yield "exchanged", new(body=node.orelse, orelse=node.body)
    elif isinstance(node, ast.Call):
        yield from _calls(node, new)
    elif isinstance(node, ast.Attribute) and node.attr in FUNCTIONS and isinstance(node.ctx, ast.Load):
        yield "function", new(attr=FUNCTIONS[node.attr])


def _calls(node: ast.Call, new) -> Iterator[tuple[str, ast.expr]]:
    """Changed calls: two positional arguments exchanged, a keyword dropped."""
    for i, (a, b) in enumerate(zip(node.args, node.args[1:])):
        if not any(isinstance(x, ast.Starred | ast.Lambda | ast.GeneratorExp) for x in (a, b)):
            yield "exchanged", new(args=[*node.args[:i], b, a, *node.args[i + 2 :]])
    for i, keyword in enumerate(node.keywords):
        if keyword.arg:
            yield "keyword dropped", new(keywords=node.keywords[:i] + node.keywords[i + 1 :])


def _numbers(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, bool):
        yield "constant", not value
    elif isinstance(value, int):
        yield "off by one", value + 1
        if value > 1:
            yield "off by one", value - 1
    elif isinstance(value, float):
        yield "constant", value * 2 if value else 1.0


def _is_text(node: ast.BinOp) -> bool:
    return any(isinstance(n, ast.JoinedStr) or (isinstance(n, ast.Constant) and isinstance(n.value, str))
               for n in (node.left, node.right))  # fmt: skip


def compiles(text: str) -> bool:
    """True if `text` is a module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(text, "mutant", "exec")
        except (SyntaxError, ValueError):
            return False
    return True


def _starts(text: str) -> list[int]:
    """Number of the first character of each line."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def _offset(starts: list[int], lines: list[str], line: int, column: int) -> int:
    """Number of a character; `column` counts bytes of UTF-8, as `ast` does."""
    return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())
