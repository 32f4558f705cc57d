"""Imports go one way: server -> scheduler -> engine -> cache."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("cache", "engine", "scheduler", "server")  # each may import those before it
PURE = tuple(f"cache/{n}.py" for n in ("radix", "node", "leaf_queue", "shares", "loan", "tokens"))
MLX = {"mlx", "mlx_lm"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The top-level packages that a file imports, wherever in it that happens."""
    inside = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level <= len(inside), f"{path} leaves its package"
            yield inside[0]
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


def test_imports_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    source = (
        "import a.b, c\nfrom d.e import f\n\ndef g():\n    from . import h\n    import i as j\n"
    )
    (tmp_path / "engine" / "part").mkdir(parents=True)
    (tmp_path / "engine" / "part" / "x.py").write_text(source)
    assert set(imported(tmp_path / "engine" / "part" / "x.py")) == {"a", "c", "d", "engine", "i"}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    assert sources(package)
    above = set(PACKAGES[PACKAGES.index(package) + 1 :]) | {"tests", "deploy"}
    wrong = {
        str(p.relative_to(ROOT)): found
        for p in sources(package)
        if (found := above & {*imported(p)})
    }
    assert not wrong


@pytest.mark.parametrize("name", PURE)
def test_the_tree_knows_no_arrays(name):
    path = ROOT / name
    assert not MLX & {*imported(path)}
    siblings = {
        f"cache/{n.module}.py"
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(n, ast.ImportFrom) and n.level == 1
    }
    assert siblings <= {*PURE}


def test_only_the_lower_packages_compute():
    for package in ("scheduler", "server"):
        for path in sources(package):
            assert "mlx" not in imported(path), path


def test_a_start_is_refused_before_the_engine_is_imported():
    """What reads options, settings and keys comes without mlx-lm, which takes seconds."""
    modules = ", ".join(f"server.{n}" for n in ("cli", "serve_config", "launch"))
    code = f"import sys, {modules}; print(*{{'mlx_lm', 'transformers'}} & {{*sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (found.stdout.strip(), found.stderr) == ("", "")
