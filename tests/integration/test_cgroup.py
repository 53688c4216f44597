"""A real server in a real memory control group that is smaller than what is asked of it. The long run: benchmarks/cgroup.py."""

from __future__ import annotations

import pytest

from benchmarks.cgroup import Mix, group_root, run


@pytest.mark.skipif(group_root() is None, reason="no cgroup v1 memory controller that can be written")
@pytest.mark.timeout(400)
def test_in_two_gigabytes_at_five_times_the_capacity_nothing_is_killed_or_lost() -> None:
    result = run(limit_mb=2048, jobs=16, factor=5.0, capacity_s=3.0, mix=Mix(4, 2))
    assert result["source"] == "cgroup v1"
    assert (result["oom_kills"], result["lost"], result["wrong"], result["right"]) == (0, 0, 0, 16), result
    assert result["peak_working_share"] <= 0.92, result
    assert result["longest_retry_after_s"] <= 120
