"""Which expressions of a module run: `running` notes them, `never_run` lists the others."""

import ast
import contextlib
import dis
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, ModuleType

Place = tuple[int | None, int | None, int | None, int | None]
"""First and last line, first and last column."""


@contextlib.contextmanager
def running(*modules: ModuleType) -> Iterator[dict[str, set[Place]]]:
    """Context that notes the places of all instructions that run in `modules`, by file.

    Instructions, not lines, so both arms of a conditional expression count.
    """
    ran: dict[str, set[Place]] = {inspect.getfile(module): set() for module in modules}
    places: dict[CodeType, dict[int, Place]] = {}

    def local(frame: FrameType, event: str, _) -> object:
        if event == "opcode":
            code = frame.f_code
            if code not in places:
                places[code] = {2 * i: place for i, place in enumerate(code.co_positions())}
            ran[code.co_filename].add(places[code][frame.f_lasti])
        return local

    def enter(frame: FrameType, event: str, _) -> object:
        if frame.f_code.co_filename not in ran:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return local(frame, "opcode", None) if event == "opcode" else local

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield ran
    finally:
        sys.settrace(before)


def never_run(module: ModuleType, ran: dict[str, set[Place]]) -> list[str]:
    """Expressions in the functions of `module` that did not run, as `line: text`. Raised errors do not count."""
    file = inspect.getfile(module)
    text = Path(file).read_text()
    raised = {n for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Raise)
              for n in range(node.lineno, node.end_lineno + 1)}  # fmt: skip
    lines, seen = text.splitlines(), ran[file]
    missing = set()
    for code in _functions(compile(text, file, "exec")):
        for instruction in dis.get_instructions(code):
            place = tuple(instruction.positions)
            line, last, begin, end = place
            counts = instruction.opname.startswith(("LOAD", "CALL", "BINARY")) and line not in raised
            if counts and line == last and end and end > begin and place not in seen:
                missing.add((line, begin, end))
    return [f"{line}: {lines[line - 1][begin:end]}" for line, begin, end in sorted(missing)]


def _functions(code: CodeType) -> Iterator[CodeType]:
    """Code of all functions in a module, those inside others too; not that of its classes and of itself."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_flags & inspect.CO_OPTIMIZED:
                yield inner
            yield from _functions(inner)
