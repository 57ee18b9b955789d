"""The cells that one claim's check needs, by the notebook's own data flow, as a script.

Each cell binds names, reads names, and changes some objects in place. From the check backwards, a
cell is needed if it binds or changes what is needed further down. Nothing is executed to find out.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import nbformat

from workflow.project import WorkflowError, chapters, read_notebook, source

#: Methods that change their object. Besides, by torch's convention, every name that ends with "_".
_CHANGING_METHODS = frozenset(
    {
        *("add", "append", "clear", "extend", "insert", "pop", "remove", "setdefault", "sort"),
        *("update", "backward", "step", "zero_grad", "load_state_dict"),
        *("train", "eval", "double", "float"),
    }
)
#: Functions that change their first argument are called for what they do to it.
_CHANGING_VERBS = ("train", "fit", "step", "normalize", "spectral_normalize", "critic_step")
_BUILT_IN = frozenset(dir(builtins))


@dataclass
class Flow:
    """What a cell does with names.

    Attributes
    ----------
    binds, reads, changes, imports : set of str
        Names that it gives a value, needs a value of, changes the object of, and imports.
    late : dict
        For each function or class that it defines, the names that its body will look up when it
        is called, and of these the ones that it changes.
    """

    binds: set[str] = field(default_factory=set)
    reads: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)
    imports: set[str] = field(default_factory=set)
    late: dict[str, tuple[set[str], set[str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plant:
    """Code that makes the truth otherwise, before everything or after a cell."""

    code: str
    after: str = ""


@dataclass(frozen=True)
class Slice:
    """The code cells of a chapter that a claim's check needs, in their order."""

    chapter: str
    claim: str
    cells: tuple[nbformat.NotebookNode, ...]
    of: int

    def script(
        self, parameters: dict[str, object] | None = None, plant: Plant | None = None
    ) -> str:
        """Return the cells as a script, with the parameters' values and a planted world."""
        given = [f"{name} = {value!r}" for name, value in (parameters or {}).items()]
        size = f"{len(self.cells)} of the {self.of} code cells of {self.chapter}"
        how = "Written from the notebook by its data flow; it needs the package lipbook."
        run = f"`make claim ID={self.claim}` runs it."
        parts = [f'"""The check of {self.claim}: {size}.\n\n{how}\n{run}\n"""\n']
        if plant and not plant.after:
            parts.append(f"# %% A planted world\n{plant.code}")
        for cell in self.cells:
            code = [cell.source, *(given if is_parameters(cell) else [])]
            parts.append(f"# %% {cell.id}\n" + "\n".join(code) + "\n")
            if plant and plant.after == cell.id:
                parts.append(f"# %% A planted world\n{plant.code}")
        if plant and plant.after not in ("", *(cell.id for cell in self.cells)):
            raise WorkflowError(f"the world of {self.claim} comes after {plant.after}, not needed")
        return "\n".join(parts)


def of_claim(claim: str, chapter: str) -> Slice:
    """Return the cells that a claim's check needs.

    Raises
    ------
    WorkflowError
        If no cell of the chapter checks the claim.
    """
    cells = [c for c in read_notebook(source(chapter)).cells if c.cell_type == "code"]
    return of_cells(cells, claim, chapter)


def of_cells(cells: list[nbformat.NotebookNode], claim: str, chapter: str) -> Slice:
    """Return those of some code cells that the claim's check needs."""
    check = next((n for n, cell in enumerate(cells) if checks(cell.source, claim)), None)
    if check is None:
        raise WorkflowError(f"no cell of {chapter} checks {claim}")
    flows = [flow(ast.parse(cell.source)) for cell in cells[: check + 1]]
    chosen = sorted(_needed(flows, check, [_starts(cell.source) for cell in cells]))
    return Slice(chapter, claim, tuple(cells[n] for n in chosen), len(cells))


def of_all_claims(cells: list[nbformat.NotebookNode], chapter: str) -> list[nbformat.NotebookNode]:
    """Return those of some code cells that the checks of all their claims need, in their order."""
    claims = [claim for cell in cells for claim in checked(cell.source)]
    needed = {cell.id for claim in claims for cell in of_cells(cells, claim, chapter).cells}
    return [cell for cell in cells if cell.id in needed]


def checks(code: str, claim: str) -> bool:
    """Tell whether a cell calls `claims.check` for this claim."""
    return claim in checked(code)


def checked(code: str) -> list[str]:
    """Return the claims for which a cell calls `claims.check`."""
    return [
        ast.unparse(node.args[0]).strip("'\"")
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("claims.check")
        and node.args
    ]


def is_parameters(cell: nbformat.NotebookNode) -> bool:
    """Tell whether a cell holds the chapter's parameters."""
    return "parameters" in cell.metadata.get("tags", ())


def chapter_of(claim: str) -> str:
    """Return the chapter with the cell that checks a claim."""
    for chapter in chapters():
        cells = read_notebook(source(chapter)).cells
        if any(checks(c.source, claim) for c in cells if c.cell_type == "code"):
            return chapter
    raise WorkflowError(f"no chapter checks {claim!r}; the ledger lists the claims that one does")


def flow(tree: ast.Module) -> Flow:
    """Return what the code of a cell binds, reads and changes."""
    found = Flow()
    for statement in tree.body:
        _follow(statement, found)
    return found


def _needed(flows: list[Flow], check: int, starts: list[bool]) -> set[int]:
    """Return the cells that are needed, from the check backwards."""
    chosen, needed = {check}, _reads(flows, check)
    modules = {name for here in flows for name in here.imports}  # which no cell changes
    for number in range(check - 1, -1, -1):
        here = flows[number]
        changed = _changes(flows, number) - modules
        if not starts[number] and not (here.binds | changed) & needed:
            continue
        chosen.add(number)
        needed = (needed - here.binds) | _reads(flows, number)
        # An import costs little: a function has its own, though nobody may call it here.
        needed |= {name for free, _ in here.late.values() for name in free} & modules - here.binds
    return chosen


def _reads(flows: list[Flow], number: int) -> set[str]:
    """Return what a cell reads, also through the functions that it may call."""
    return _through(flows, number, flows[number].reads | flows[number].changes, 0)


def _changes(flows: list[Flow], number: int) -> set[str]:
    called = flows[number].reads
    return flows[number].changes | _through(flows, number, called, 1) - called


def _through(flows: list[Flow], number: int, names: set[str], part: int) -> set[str]:
    """Return `names` with what the functions among them look up (0) or change (1) when called."""
    found, waiting, seen = set(names), set(names), set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        late = next(
            (flows[n].late[name] for n in range(number, -1, -1) if name in flows[n].late), None
        )
        if late is not None:
            found |= late[part]
            waiting |= late[0] - seen
    return found


def _define(statement: ast.FunctionDef | ast.ClassDef, found: Flow) -> None:
    """Note a definition: its body is looked up when it is called, its defaults now."""
    inner = Flow()
    for node in statement.body:
        _follow(node, inner)
    for looked_up, changed in inner.late.values():
        inner.reads |= looked_up
        inner.changes |= changed
    own = inner.binds | _arguments(statement)
    if isinstance(statement, ast.FunctionDef):
        now: list[ast.expr] = [
            *statement.decorator_list,
            *statement.args.defaults,
            *filter(None, statement.args.kw_defaults),
        ]
    else:
        now = [*statement.decorator_list, *statement.bases]
    _look(now, found)
    found.binds.add(statement.name)
    free = inner.reads - own - _BUILT_IN - {statement.name}
    found.late[statement.name] = (free, inner.changes - own)


def _follow(node: ast.stmt, found: Flow) -> None:
    """Note what a statement binds, reads and changes, in the order in which it does so."""
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            _define(node, found)
        case ast.Import() | ast.ImportFrom():
            found.imports |= {(name.asname or name.name).split(".")[0] for name in node.names}
            found.binds |= found.imports
        case ast.Assign(targets=targets, value=value):
            _look(value, found)
            _look(targets, found)
        case ast.AugAssign(target=target, value=value):
            _look(value, found)
            found.reads |= set(_root(target)) - found.binds
            found.changes |= set(_root(target)) - found.binds
        case ast.For(target=target, iter=over, body=body, orelse=other):
            _look(over, found)
            inner = Flow(binds=set(found.binds), late=found.late)
            for statement in (*body, *other):
                _follow(statement, inner)
            if inner.changes & _names(target):  # to change a part of it is to change the whole
                inner.changes |= _names(over) - _BUILT_IN
            found.reads |= inner.reads - _names(target) - found.binds
            found.changes |= inner.changes - _names(target) - found.binds
            found.binds |= inner.binds | _names(target)
        case ast.If() | ast.While() | ast.With() | ast.Try():
            for part in ast.iter_child_nodes(node):
                _follow(part, found) if isinstance(part, ast.stmt) else _look(part, found)
        case _:
            _look(node, found)


def _look(node: ast.AST | list[ast.expr], found: Flow) -> None:
    """Note what expressions, or the targets of an assignment, do."""
    for whole in node if isinstance(node, list) else [node]:
        own = {name for scope in _scopes(whole) for name in _bound_by(scope)} | _BUILT_IN
        for part in ast.walk(whole):
            if isinstance(part, ast.Name) and part.id not in own:
                if isinstance(part.ctx, ast.Load):
                    found.reads |= {part.id} - found.binds
                    _call(part.id, found)
                else:
                    found.binds.add(part.id)
            found.changes |= set(_changed_by(part)) - own - found.binds


def _call(name: str, found: Flow) -> None:
    """Note what a function of the same cell looks up and changes: it may be called here."""
    waiting, seen = {name}, set[str]()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        looked_up, changed = found.late.get(name, (set(), set()))
        found.reads |= looked_up - found.binds
        found.changes |= changed - found.binds
        waiting |= looked_up - seen


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _scopes(node: ast.AST) -> list[ast.AST]:
    kinds = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.FunctionDef)
    return [part for part in ast.walk(node) if isinstance(part, kinds)]


def _bound_by(scope: ast.AST) -> Iterator[str]:
    """Yield the names that belong to a comprehension, a lambda or an inner function."""
    if isinstance(scope, ast.Lambda | ast.FunctionDef):
        yield from _arguments(scope)
    if isinstance(scope, ast.FunctionDef):
        for part in ast.walk(scope):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                yield part.id
    for generator in getattr(scope, "generators", ()):
        yield from (n.id for n in ast.walk(generator.target) if isinstance(n, ast.Name))


def _arguments(node: ast.AST) -> set[str]:
    if not isinstance(node, ast.FunctionDef | ast.Lambda):
        return set()
    return {part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)}


def _changed_by(part: ast.AST) -> Iterable[str]:
    """Return the names whose objects an expression changes in place."""
    if isinstance(part, ast.Attribute | ast.Subscript) and isinstance(part.ctx, ast.Store):
        return _root(part)
    if not isinstance(part, ast.Call):
        return ()
    changed = [name for kw in part.keywords if kw.arg == "generator" for name in _root(kw.value)]
    name = part.func.attr if isinstance(part.func, ast.Attribute) else ""
    if name in _CHANGING_METHODS or name.endswith("_"):
        changed += _root(part.func)
    name = name or (part.func.id if isinstance(part.func, ast.Name) else "")
    if part.args and (name.endswith("_") or name.split("_")[0] in _CHANGING_VERBS):
        changed += _root(part.args[0])
    return changed


def _root(node: ast.AST) -> list[str]:
    """Return the name that attributes and subscripts hang on, if there is one."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
        node = node.value
    return [node.id] if isinstance(node, ast.Name) else []


def _starts(code: str) -> bool:
    """Tell whether a cell sets seeds and device: every check records them."""
    return "runtime.start(" in code
