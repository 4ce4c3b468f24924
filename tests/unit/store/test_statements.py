"""sql/*.sql: named blocks, all of them used, none of them written into Python."""

from __future__ import annotations

import ast
import re
from importlib import resources
from pathlib import Path

import pytest

from relay.store.statements import load_statements

STORE = Path(str(resources.files("relay.store")))
TABLES = sorted(path.stem for path in (STORE / "sql").glob("*.sql"))
SQL_WORDS = re.compile(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM)\b.*\b(FROM|SET|VALUES|WHERE)\b", re.DOTALL)


@pytest.mark.parametrize("table", TABLES)
def test_every_statement_is_used_by_the_module_of_its_file(table: str) -> None:
    source = (STORE / f"{table}.py").read_text("utf-8")
    for name in load_statements(table):
        assert f'"{name}"' in source, f"{table}.sql: nobody uses {name}"


@pytest.mark.parametrize("table", TABLES)
def test_no_comment_reaches_the_server(table: str) -> None:
    for name, text in load_statements(table).items():
        assert not any(line.lstrip().startswith("--") for line in text.splitlines()), name


def test_a_statement_given_twice_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "twice.sql").write_text("-- one()\nSELECT 1;\n-- one()\nSELECT 2;\n")
    monkeypatch.setattr("relay.store.statements.resources.files", lambda _package: tmp_path)
    with pytest.raises(ValueError, match="statement one is there twice"):
        load_statements("twice")


@pytest.mark.parametrize("module", sorted(STORE.glob("*.py")), ids=lambda path: path.stem)
def test_no_statement_stands_in_python(module: Path) -> None:
    allowed = {"embedded"}  # asks and creates its own database before there is any schema
    if module.stem in allowed:
        return
    tree = ast.parse(module.read_text("utf-8"))
    documented = {id(node.body[0].value) for node in ast.walk(tree)
                  if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                  and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            assert not SQL_WORDS.search(node.value), f"{module.name}:{node.lineno}"
