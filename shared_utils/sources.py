"""The source of what a notebook defines: a model's classes as a file of their own, a function with all that it uses."""

import __future__

import argparse
import ast
import builtins
import contextlib
import enum
import functools
import inspect
import linecache
import math
import symtable
import sys
import sysconfig
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn


def model_source(model_class: type, notebook: str = "") -> str:
    """Return Python source that defines `model_class` and everything it needs.

    Classes and functions of the class's own notebook or file are copied, plain constants are written with their values,
    all else is imported. Raises ValueError that names what can be neither.
    """
    if _is_installed(model_class.__module__):
        return f"from {model_class.__module__} import {model_class.__qualname__}\n"
    functions = _functions_of(model_class)
    names = functions[0].__globals__ if functions else vars(sys.modules[model_class.__module__])
    parts: dict[str, _Part] = {}
    _collect(model_class.__name__, model_class, "the run", names, model_class, parts)

    imports = sorted({part.text for part in parts.values() if part.kind == "import"})
    imports.sort(key=lambda text: text.startswith("from"))
    constants = [part.text for part in parts.values() if part.kind == "constant"]
    origin = f" of {notebook}" if notebook else ""
    head = [f'"""The model{origin}, as it was when the run was saved; load_run executes this file."""', ""]
    if any(part.future for part in parts.values()):
        head += ["from __future__ import annotations", ""]
    blocks = ["\n".join([*head, *imports, "", *constants]).strip(), *_in_order(parts)]
    return "\n\n\n".join(blocks) + "\n"


def function_sources(train: Callable) -> dict[str, str]:
    """Return the source of a function and of all that it uses of its own notebook or file: name -> text.

    Unlike model.py it need not be complete: imported functions and classes are named, and what has neither source nor a
    plain value, such as data, is left out.
    """
    root = inspect.unwrap(train.func if isinstance(train, functools.partial) else train)
    if not isinstance(root, types.FunctionType):
        raise ValueError(f"train is a {type(train).__name__}; a sweep needs a function, or a functools.partial of one.")
    found: dict[str, str] = {}
    path: list[int] = []  # what is being visited: closures may call each other, and a namespace hold itself
    met: dict[int, tuple[str, object]] = {}  # objects of the notebook, which may know each other

    def visit(name: str, value: object) -> None:
        if name in found or id(value) in path or len(path) > _DEEPEST:
            return
        if type(value).__module__ == root.__module__ and not isinstance(value, type | types.FunctionType | nn.Module):
            first, _ = met.setdefault(id(value), (name, value))
            if first != name:
                found[name] = f"the same as {first}"
                return
        path.append(id(value))
        visit_one(name, value)
        path.pop()

    def visit_one(name: str, value: object) -> None:
        target = inspect.unwrap(value) if callable(value) and not isinstance(value, nn.Module) else value
        if is_literal(value) or isinstance(value, np.generic | range):
            found[name] = _stable_text(value)
        elif isinstance(value, functools.partial):
            visit_all(name, {"function": value.func, "arguments": value.args, "keywords": value.keywords})
        elif isinstance(value, dict):
            visit_all(name, value)
        elif isinstance(value, list | tuple):
            visit_all(name, dict(enumerate(value)))
        elif isinstance(value, nn.Module):  # augmentation, as a rule: its settings, not its weights
            for place, module in value.named_modules():
                own = {key: item for key, item in vars(module).items() if key not in _OF_EVERY_MODULE}
                settings = {key: item for key, item in own.items() if is_literal(item)}
                found[f"{name}.{place}"] = _stable_text([type(module).__name__, settings])
                visit(type(module).__name__, type(module))
                for key in sorted(own.keys() - settings.keys()):  # functions that it was given, numbers of NumPy
                    visit(f"{name}.{place}.{key}", own[key])
        elif isinstance(target, type | types.FunctionType) and target.__module__ == root.__module__:
            found[name] = _source_text(target)
            for function in _functions_of(target) if isinstance(target, type) else [target]:
                visit_all(f"{name} {function.__name__}", {"defaults": function.__defaults__ or ()})
                visit_all(f"{name} {function.__name__}", {"keyword defaults": function.__kwdefaults__ or {}})
            around = _names_around(target)
            for used in sorted(_names_in(found[name], target)):
                if used in around:  # what closures enclose is each one's own, what is global there is once
                    enclosed = isinstance(target, types.FunctionType) and used in target.__code__.co_freevars
                    visit(f"{name} {used}" if enclosed else used, around[used])
        elif isinstance(target, type | types.FunctionType | types.BuiltinFunctionType):
            found[name] = f"{target.__module__}.{target.__qualname__}"
        elif isinstance(value, float | Path | torch.dtype | torch.device | enum.Enum):  # floats: infinity
            found[name] = repr(value)
        elif isinstance(value, types.MethodType):
            visit_all(name, {"object": value.__self__, "function": value.__func__})
        elif isinstance(value, types.SimpleNamespace | argparse.Namespace):
            visit_all(name, vars(value))
        elif type(value).__module__ == root.__module__:
            kind = type(value)
            if _functions_of(kind):
                visit(kind.__name__, kind)
            else:  # a notebook's class without methods has no source
                visit_all(kind.__name__, {key: item for key, item in vars(kind).items() if not key.startswith("__")})
            visit(f"{name}.", _attributes(value))
        elif is_dataclass(value):
            visit_all(name, {part.name: getattr(value, part.name) for part in fields(value)})
        elif callable(value):  # what a library keeps in it may be a counter
            visit(type(value).__name__, type(value))

    def visit_all(name: str, values: dict) -> None:
        found[name] = found.get(name, type(values).__name__)
        for key, value in values.items():
            visit(f"{name}[{key!r}]", value)

    visit(root.__name__, train if isinstance(train, functools.partial) else root)
    return found


_DEEPEST = 60  # what an object of an object of an object holds is looked at so far
_OF_EVERY_MODULE = vars(nn.Module()).keys()  # parameters, hooks and what else PyTorch keeps


def _attributes(value: object) -> dict | tuple | None:
    """Return the attributes of an object, those in slots too, or None where C keeps them."""
    try:
        return object.__getstate__(value)
    except TypeError:
        return None


@dataclass
class _Part:
    """What a global name stands for: the text of an import, a constant or a definition."""

    kind: str
    text: str
    needs: set[str] = field(default_factory=set)  # names without which the definition itself fails
    future: bool = False  # defined under `from __future__ import annotations`


def _collect(name: str, value: object, user: str, names: dict, root: type, parts: dict[str, _Part]) -> None:
    """Add to `parts` what `name` stands for, and before it all that it uses; `names` are the notebook's globals."""
    target = inspect.unwrap(value) if callable(value) else value
    is_own = isinstance(target, type | types.FunctionType) and target.__module__ == root.__module__
    if isinstance(value, types.ModuleType):
        package, _, own_name = value.__name__.rpartition(".")
        line = f"from {package} import {name}" if package and own_name == name else f"import {value.__name__}"
        parts[name] = _Part("import", line + ("" if own_name == name else f" as {name}"))
    elif is_literal(value):
        parts[name] = _Part("constant", f"{name} = {value!r}")
    elif is_own and target.__name__ == name:
        text, future = _find_source(target, user)
        needs, calls = _used_names(text)
        parts[name] = _Part("definition", text, needs, future)
        for used in sorted(needs | calls):
            if used in names and used not in parts:
                _collect(used, names[used], name, names, root, parts)
            elif used not in names and not hasattr(builtins, used):
                raise ValueError(f"model.py cannot hold {name}: it uses {used}, which is not defined.")
        parts[name] = parts.pop(name)  # behind what it uses
    else:
        line = None if is_own else _import_line(name, value, root)
        if line is None:
            raise ValueError(
                f"model.py cannot hold {name}, a {type(value).__name__} that {user} uses: make it an argument of "
                f"{root.__name__}, or write it as a class, a def, or a plain number, text, list or dict."
            )
        parts[name] = _Part("import", line)


def _in_order(parts: dict[str, _Part]) -> list[str]:
    """Return the definitions, each behind those without which it could not be executed."""
    ordered: dict[str, str] = {}

    def put(name: str) -> None:
        if name in parts and parts[name].kind == "definition" and name not in ordered:
            for needed in sorted(parts[name].needs - {name}):
                put(needed)
            ordered[name] = parts[name].text

    for name in parts:
        put(name)
    return list(ordered.values())


def _functions_of(model_class: type) -> list[types.FunctionType]:
    functions = []
    for member in vars(model_class).values():
        member = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
        if callable(member) and isinstance(inspect.unwrap(member), types.FunctionType):
            functions.append(inspect.unwrap(member))
    written = [function for function in functions if function.__code__.co_filename != "<string>"]  # not by dataclass
    return [function for function in written if function.__module__ == model_class.__module__]


def _find_source(target: type | types.FunctionType, user: str) -> tuple[str, bool]:
    """Return the source of a class or function, and whether its annotations were postponed.

    inspect.getsource fails for the classes of a notebook, whose module has no file; but the code of their methods knows
    its cell, and linecache has the text of that.
    """
    kind = ast.ClassDef if isinstance(target, type) else ast.FunctionDef
    for function in _functions_of(target) if isinstance(target, type) else [target]:
        code = function.__code__
        lines = linecache.getlines(code.co_filename, function.__globals__)
        for node in ast.walk(ast.parse("".join(lines))):
            if isinstance(node, kind) and node.name == target.__name__:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if first <= code.co_firstlineno <= node.end_lineno:
                    text = textwrap.dedent("".join(lines[first - 1 : node.end_lineno])).rstrip()
                    return text, bool(code.co_flags & __future__.annotations.compiler_flag)
    with contextlib.suppress(OSError, TypeError):  # a class without methods, in a file
        return textwrap.dedent(inspect.getsource(target)).rstrip(), False
    raise ValueError(
        f"model.py cannot hold {target.__name__}, which {user} uses: its source is not to be found; define it at the "
        "top level of a cell or file, with a method of its own."
    )


def _used_names(source: str) -> tuple[set[str], set[str]]:
    """Return the global names that a definition uses when it is executed, and those that it uses when it is called."""
    needs: set[str] = set()
    calls: set[str] = set()

    def visit(table: symtable.SymbolTable, called: bool) -> None:
        for symbol in table.get_symbols():
            if symbol.is_referenced() and symbol.is_global() and not symbol.get_name().startswith("__"):
                (calls if called else needs).add(symbol.get_name())
        for child in table.get_children():
            comprehension = child.get_name() in ("listcomp", "setcomp", "dictcomp", "genexpr")
            visit(child, called or (child.get_type() == "function" and not comprehension))

    visit(symtable.symtable(source, "model.py", "exec"), False)
    return needs, calls


def is_literal(value: object) -> bool:
    """Say whether `repr` of a value is Python that makes it again: plain numbers, texts, and lists or dicts of them."""
    if isinstance(value, list | tuple | set) and type(value) in (list, tuple, set):
        return all(is_literal(item) for item in value)
    if type(value) is dict:
        return all(is_literal(item) for pair in value.items() for item in pair)
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str, bytes)


def _import_line(name: str, value: object, root: type) -> str | None:
    """Return the line that imports `value` as `name`, or None; what does not know its module is looked for in all."""
    module, original = getattr(value, "__module__", None), getattr(value, "__qualname__", name)
    if isinstance(module, str) and module in sys.modules and vars(sys.modules[module]).get(original) is value:
        return f"from {module} import {original}" + _alias(original, name)
    others = sys.modules.keys() - {"__main__", root.__module__}
    for module in sorted(others, key=lambda module: (module.count("."), module)):
        if getattr(sys.modules[module], "__dict__", {}).get(name) is value:
            return f"from {module} import {name}"
    return None


def _alias(original: str, name: str) -> str:
    return "" if original == name else f" as {name}"


def _is_installed(module: str) -> bool:
    """Say whether a module comes from Python or a package, so that importing it is enough."""
    path = None if module == "__main__" else getattr(sys.modules.get(module), "__file__", None)
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return path is not None and any(Path(path).is_relative_to(place) for place in places)


def _stable_text(value: object) -> str:
    """Return the text of a plain value; that of a set comes in another order in every process."""
    if isinstance(value, set):
        return f"{{{', '.join(sorted(map(repr, value)))}}}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(map(_stable_text, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_stable_text(item)}' for key, item in value.items())}}}"
    return repr(value)


def _source_text(target: type | types.FunctionType) -> str:
    try:
        return _find_source(target, "train")[0]
    except (ValueError, SyntaxError):
        with contextlib.suppress(OSError, TypeError):  # a lambda
            return textwrap.dedent(inspect.getsource(target)).rstrip()
    raise ValueError(
        f"The source of {target.__name__} is not to be found, so a sweep could not know when it changes: define it "
        "at the top level of a cell or file."
    )


def _names_in(text: str, target: type | types.FunctionType) -> set[str]:
    try:
        return set.union(*_used_names(text))
    except SyntaxError:  # the line of a lambda is a piece of a statement
        return set(target.__code__.co_names) | set(target.__code__.co_freevars)


def _names_around(target: type | types.FunctionType) -> dict[str, object]:
    """Return the globals of a function or class, and the variables of the function that it was defined in."""
    functions = _functions_of(target) if isinstance(target, type) else [target]
    names = dict(functions[0].__globals__ if functions else vars(sys.modules[target.__module__]))
    for function in functions:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not filled yet
                names[name] = cell.cell_contents
    return names
