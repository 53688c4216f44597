"""The README lists every error that a caller can meet, with its status."""

from __future__ import annotations

import re
from pathlib import Path

from app.errors import ALL

README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")


def test_the_table_of_errors_is_what_the_tree_says() -> None:
    section = README.partition("\n## Errors\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \| [^|]+ \| [^|]+ \|$", section, re.MULTILINE)
    assert len(rows) == section.count("\n| `")
    assert sorted(rows) == sorted((error.code, str(error.status)) for error in ALL)
