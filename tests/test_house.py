"""The laws of the house that no linter knows: files and functions that a reader can hold in the head, and no room for
leftovers."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(path for room in ("curia2_jax", "launch") for path in (ROOT / room).rglob("*.py"))


def test_no_file_is_over_320_lines_and_no_function_over_60():
    long = []
    for path in FILES:
        text = path.read_text()
        if text.count("\n") > 320:
            long.append(f"{path}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60:
                long.append(f"{path}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines")
    assert len(FILES) > 100 and not long


def test_no_file_is_a_room_for_leftovers():
    leftovers = ("util", "helper", "common", "manager", "engine", "factory", "registry", "misc")
    assert not [path for path in FILES if any(word in path.stem.lower() for word in leftovers)]


def test_every_module_says_what_it_is_for():
    assert not [path for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
