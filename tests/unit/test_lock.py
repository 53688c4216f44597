"""One server per data folder."""

from __future__ import annotations

import os
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
    pid = os.fork()
    if pid == 0:
        claim(tmp_path)
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(claim(tmp_path))
