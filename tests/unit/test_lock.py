"""One server per data folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import StenopoolError
from app.lock import claim


def test_second_claim_of_a_folder_is_refused_until_the_first_is_given_back(tmp_path: Path) -> None:
    first = claim(tmp_path / "data")
    with pytest.raises(StenopoolError, match="Another running server"):
        claim(tmp_path / "data")
    os.close(first)
    os.close(claim(tmp_path / "data"))


def test_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    script = f"import os; from pathlib import Path; from app.lock import claim; claim(Path({str(tmp_path)!r})); os._exit(0)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    os.close(claim(tmp_path))
