"""What the code behind a study does, as digests that a move leaves alone.

The definitions that a study's ``measure`` and ``cells`` reach, through whatever first-party
modules, are digested one by one: function, class or constant. Where a definition lies, how it is
imported, its comments, docstrings and annotations do not count; nor does a clause that only
refuses, since it refused nothing that is in a table. So moving a function, editing its neighbour
or telling a bad input more clearly ages no table; editing what was measured does.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

#: What a study runs, and what its results are compared by.
ENTRANCES = ("cells", "measure")
PACKAGES = ("lipbook", "studies")
#: Fields of a syntax tree that do nothing when the code runs.
_SILENT = ("ctx", "kind", "annotation", "returns")


class Place(NamedTuple):
    """A top-level definition, or a whole module where `name` is empty."""

    module: str
    name: str = ""


class Sources:
    """The first-party modules under a folder, parsed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.module = cache(self._parsed)

    def digests(self, study: str) -> dict[str, str]:
        """Return a digest for each definition that the study reaches, by its bare name."""
        found: dict[str, set[str]] = {}
        for place in self._reached([Place(study, name) for name in ENTRANCES]):
            text = "\0".join(self._meaning(self._definition(place), place.module))
            found.setdefault(place.name, set()).add(hashlib.sha256(text.encode()).hexdigest())
        return {name: _joined(found[name]) for name in sorted(found)}

    def _parsed(self, name: str) -> _Module | None:
        if name.split(".")[0] not in PACKAGES:
            return None
        path = self.root.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return _Module(ast.parse(file.read_text(encoding="utf-8"))) if file.exists() else None

    def _definition(self, place: Place) -> ast.stmt:
        module = self.module(place.module)
        assert module is not None, place
        return module.defined[place.name]

    def _reached(self, start: list[Place]) -> set[Place]:
        seen: set[Place] = set()
        waiting = [place for place in start if self.find(place.module, place.name)]
        while waiting:
            place = waiting.pop()
            if place in seen:
                continue
            seen.add(place)
            nodes = _walk(self._definition(place))
            found = (self._target(node, place.module) for node in nodes)
            waiting += [target for target in found if target and target.name]
        return seen

    def find(self, module: str, name: str) -> Place | None:
        """Return where a name that a module uses is defined, if that is first-party code."""
        here = self.module(module)
        if here is None:
            return None
        if name in here.defined:
            return Place(module, name)
        if name not in here.imported:
            return Place(f"{module}.{name}") if self.module(f"{module}.{name}") else None
        source, attribute = here.imported[name]
        if not attribute:
            return Place(source) if self.module(source) else None
        return self.find(source, attribute)

    def _target(self, node: ast.AST, module: str) -> Place | None:
        """Return what a name, or an attribute of a module, stands for."""
        if isinstance(node, ast.Name):
            return self.find(module, node.id)
        if isinstance(node, ast.Attribute):
            owner = self._target(node.value, module)
            return self.find(owner.module, node.attr) if owner and not owner.name else None
        return None

    def _meaning(self, node: object, module: str) -> Iterator[str]:
        """Spell a syntax tree out. Empty fields are left out: newer Pythons have more of them."""
        if isinstance(node, ast.AST):
            target = self._target(node, module)
            if target and target.name:
                yield f"={target.name}"
                return
            if isinstance(node, ast.Import | ast.ImportFrom):
                return
            yield type(node).__name__
            for field, value in ast.iter_fields(node):
                if isinstance(value, list) and field == "body" and _is_text(value[:1]):
                    value = value[1:]
                if value is not None and value != [] and field not in _SILENT:
                    yield field
                    yield from self._meaning(value, module)
        elif isinstance(node, list):
            for child in node:
                if not _only_refuses(child):
                    yield from self._meaning(child, module)
            yield "]"
        else:
            yield repr(node)


class _Module:
    """A module's top-level definitions, and what its import lines call what."""

    def __init__(self, tree: ast.Module) -> None:
        self.defined: dict[str, ast.stmt] = {}
        self.imported: dict[str, tuple[str, str]] = {}
        for statement in tree.body:
            for defined in _names(statement):
                self.defined[defined] = statement
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    full = alias.name if alias.asname else alias.name.split(".")[0]
                    self.imported[alias.asname or full] = (full, "")
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = (node.module, alias.name)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all below it that do something, as ``ast.walk`` yields all."""
    yield node
    for field, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        if field not in _SILENT:
            for child in children:
                if isinstance(child, ast.AST) and not _only_refuses(child):
                    yield from _walk(child)


def _only_refuses(node: object) -> bool:
    """Whether a statement raises or does nothing: an assertion, or an ``if`` with a lone raise."""
    if isinstance(node, ast.If):
        return len(node.body) == 1 and isinstance(node.body[0], ast.Raise) and not node.orelse
    return isinstance(node, ast.Assert)


def _names(statement: ast.stmt) -> list[str]:
    """Return the names that a top-level statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        nodes = [node for target in statement.targets for node in ast.walk(target)]
        return [node.id for node in nodes if isinstance(node, ast.Name)]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return []


def _joined(digests: set[str]) -> str:
    """Return one short digest: two definitions of one name, in two modules, count together."""
    return hashlib.sha256("\0".join(sorted(digests)).encode()).hexdigest()[:12]


def _is_text(statements: list[ast.stmt]) -> bool:
    """Tell whether a body begins with a docstring."""
    return any(
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
        for statement in statements
    )
