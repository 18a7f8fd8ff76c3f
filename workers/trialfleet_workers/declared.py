"""An objective's signature, read from its source without importing it.

A coordinator needs to know how an objective is called, not to call it. Importing it for that costs as much as its
evaluators' import does: a second of CPU where it imports scikit-learn, and the memory for as long as the study runs.
"""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trialfleet_workers.objective import parse_reference
from trialfleet_workers.user_modules import find_module

#: What the annotation of an objective's first parameter is called where its name says all there is to know.
_PLAIN = {"dict", "Dict", "Mapping", "Any", "Trial"}


def declared_function(reference: str, base: Path) -> Callable[..., Any] | None:
    """A function that does nothing, with the signature of the one that `reference` names.

    None when only the import can tell: the file is not found or not readable, or the function is not simply defined at
    the top of its module, once and without decorators.

    Args:
        reference: "package.module:function" or "file.py:function".
        base: folder that a file's path is relative to, and where modules are looked for first.

    Raises:
        ObjectiveError: `reference` is not of that form.
    """
    place, attribute = parse_reference(reference)
    path = base / place if place.endswith(".py") else find_module(place, [str(base.resolve())])
    try:
        tree = ast.parse(path.read_bytes()) if path is not None else None
    except (OSError, SyntaxError, ValueError):
        return None
    found = None if tree is None else _definition(tree, attribute)
    return None if found is None else _stub(found)


def _definition(tree: ast.Module, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The one definition of `name`, if nothing else in the module could make it something else."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = [node for node in functions if node.name == name and not node.decorator_list]
    if len(found) != 1 or _bindings(tree, name) != 1:
        return None
    first = [*found[0].args.posonlyargs, *found[0].args.args][:1]
    if first and first[0].annotation is not None and _last_name(first[0].annotation) not in _PLAIN:
        return None
    return found[0]


def _bindings(tree: ast.Module, name: str) -> int:
    """How often the module binds `name`, at any depth; `from … import *` may bind everything."""
    count = 0
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                count += node.name == name
            case ast.Name(id=bound, ctx=ast.Store() | ast.Del()):
                count += bound == name
            case ast.alias(name=imported, asname=renamed):
                count += imported == "*" or (renamed or imported.partition(".")[0]) == name
    return count


def _last_name(annotation: ast.expr) -> str:
    """`Trial` of `optuna.Trial`, `"optuna.Trial"` and of `Trial[int]`."""
    match annotation:
        case ast.Subscript(value=value):
            return _last_name(value)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case ast.Constant(value=str(text)):
            return text.partition("[")[0].rpartition(".")[2]
    return ""


def _stub(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Callable[..., Any]:
    """The function without a body, its defaults None and its annotations text, so that nothing has to be imported."""
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        if argument.annotation is not None:
            argument.annotation = ast.Constant(ast.unparse(argument.annotation))
    for variadic in (arguments.vararg, arguments.kwarg):
        if variadic is not None:
            variadic.annotation = None
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [None if default is None else ast.Constant(None) for default in arguments.kw_defaults]
    stub = ast.FunctionDef(name=function.name, args=arguments, body=[ast.Pass()], decorator_list=[])
    module = ast.fix_missing_locations(ast.Module(body=[stub], type_ignores=[]))
    namespace: dict[str, Any] = {}
    # What runs is a definition made here, whose parts are names and constants.
    exec(compile(module, "<signature>", "exec"), namespace)  # noqa: S102  # see the line above
    declared: Callable[..., Any] = namespace[function.name]
    return declared
