"""How large the pieces of a Python tree are: `python tools/structure.py plugins/steph [FOLDER …]`, a column a folder.

Modules are files with code. Lines count docstrings and blanks; a function's are those of its whole definition. A helper
is a function or method whose name begins with one underscore; it is named at one place where its module names it once
beside its definition. Comments count alone on their line or behind code; code lines are neither blank, comment nor
docstring.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path
from statistics import median, quantiles


def figures(folder: Path) -> dict[str, str]:
    """Each figure of a folder by its name."""
    modules, functions, helpers, once, comments, code = [], [], 0, 0, 0, 0
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        if not any(not _is_docstring(node) for node in tree.body):
            continue
        lines = text.count("\n")
        modules.append(lines)
        defined = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        functions += [(node.end_lineno or node.lineno) - node.lineno + 1 for node in defined]
        named = Counter(re.findall(r"\b\w+\b", text))
        private = [node.name for node in defined if re.match("_[^_]", node.name)]
        helpers += len(private)
        once += sum(named[name] == 2 for name in private)
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        remarks = [token for token in tokens if token.type == tokenize.COMMENT]
        alone = sum(token.line.lstrip().startswith("#") for token in remarks)
        blank = sum(not line.strip() for line in text.splitlines())
        comments += len(remarks)
        code += lines - blank - alone - sum(_docstring_lines(node) for node in ast.walk(tree))
    return {
        "modules": f"{len(modules)}",
        "lines": f"{sum(modules):,}",
        "module, median lines": f"{median(modules):.0f}",
        "function, median lines": f"{median(functions):.0f}",
        "function, 90th percentile": f"{quantiles(functions, n=10)[-1]:.0f}",
        "private helpers": f"{helpers}",
        "of them named at one place only": f"{once / max(1, helpers):.0%}",
        "comments a code line": f"{comments / max(1, code):.3f}",
    }


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _docstring_lines(node: ast.AST) -> int:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
        return 0
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1 if _is_docstring(first) else 0


def main(folders: list[str]) -> str:
    """The table, as Markdown."""
    columns = [figures(Path(folder)) for folder in folders]
    head = f"| | {' | '.join(folders)} |\n|---|{'---|' * len(folders)}\n"
    return head + "".join(f"| {name} | {' | '.join(one[name] for one in columns)} |\n" for name in columns[0])


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    sys.stdout.write(main(sys.argv[1:]))
