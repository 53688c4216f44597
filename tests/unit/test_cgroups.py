"""Limits of control groups, read from recorded trees of proc and sys; and one look from inside a real group."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.admission.memory import MemoryProbe, Reading
from app.cgroups import _folders, cpu_quota, memory

PROJECT = Path(__file__).parents[2]

GB = 1 << 30
MB = 1 << 20
UNLIMITED = 9223372036854771712

V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"
V1_CPU = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V2 = "41 31 0:38 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"


def record(root: Path, cgroup: str, mounts: str, files: dict[str, object] | None = None) -> Path:
    """Write a tree: what /proc/self says, and files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup + "\n")
    (root / "proc/self/mountinfo").write_text(f"23 1 254:0 / / rw - ext4 /dev/root rw\n{mounts}\n")
    for name, content in (files or {}).items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def v1(folder: str, limit: int, usage: int, inactive: int = 0, kills: int = 0) -> dict[str, object]:
    """The files of one v1 group."""
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": usage,
        f"{folder}/memory.stat": f"cache 1\ninactive_file 5\ntotal_inactive_file {inactive}\ntotal_swap {3 * MB}",
        f"{folder}/memory.oom_control": f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}",
    }


def v2(folder: str, limit: object, usage: int, inactive: int = 0, high: object = "max", kills: int = 0) -> dict[str, object]:
    """The files of one v2 group."""
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.high": high,
        f"{folder}/memory.current": usage,
        f"{folder}/memory.stat": f"anon 7\nfile 9\ninactive_file {inactive}\nactive_file 3",
        f"{folder}/memory.events": f"low 0\nhigh 0\nmax 12\noom 1\noom_kill {kills}\noom_group_kill 0",
        f"{folder}/memory.swap.current": 2 * MB,
    }


def test_nested_v1_groups_give_the_smallest_headroom_and_the_smallest_limit(tmp_path: Path) -> None:
    files = v1("memory", UNLIMITED, 20 * GB)
    files |= v1("memory/box", 4 * GB, 4 * GB, inactive=256 * MB)
    files |= v1("memory/box/job", 1 * GB, 300 * MB, inactive=100 * MB, kills=2)
    found = memory(record(tmp_path, "5:devices:/\n4:memory:/box/job\n1:name=systemd:/", V1, files))
    assert found.tightest is not None
    assert found.smallest is not None
    assert (found.tightest.version, found.tightest.folder.name, found.tightest.headroom) == (1, "box", 256 * MB)
    assert (found.smallest.folder.name, found.smallest.limit, found.smallest.used) == ("job", GB, 200 * MB)
    assert (len(found.groups), found.oom_kills, found.swap_used) == (2, 2, 3 * MB)


def test_v2_with_only_an_ancestor_limited_gives_the_ancestor(tmp_path: Path) -> None:
    files = v2("pod", 2 * GB, 700 * MB, inactive=200 * MB, kills=9)
    files |= v2("pod/app", "max", 300 * MB, kills=1)
    found = memory(record(tmp_path, "0::/pod/app/leaf", V2, files))
    assert [(group.version, group.folder.name, group.headroom) for group in found.groups] == [(2, "pod", 2 * GB - 500 * MB)]
    # The leaf has no memory controller, so it is the group above it that is charged and that counts kills.
    assert (found.oom_kills, found.swap_used) == (1, 2 * MB)


def test_hybrid_whose_v2_side_has_no_memory_controller_gives_the_v1_limit(tmp_path: Path) -> None:
    cgroup = "9:name=systemd:/\n4:memory:/process_api/4b7e\n1:cpu:/\n0::/"
    unified = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
    files = v1("memory", UNLIMITED, 9 * GB) | v1("memory/process_api", UNLIMITED, 8 * GB)
    files |= v1("memory/process_api/4b7e", GB, 100 * MB) | {"unified/cgroup.controllers": "hugetlb"}
    found = memory(record(tmp_path, cgroup, f"{V1}\n{unified}", files))
    assert [(group.version, group.limit) for group in found.groups] == [(1, GB)]


def test_hybrid_with_limits_on_both_sides_counts_both(tmp_path: Path) -> None:
    unified = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
    files = v1("memory/a", 2 * GB, 0) | v2("unified/b", 1 * GB, 0)
    found = memory(record(tmp_path, "4:memory:/a\n0::/b", f"{V1}\n{unified}", files))
    assert sorted((group.version, group.limit) for group in found.groups) == [(1, 2 * GB), (2, GB)]


@pytest.mark.parametrize("path", ["/", "/docker/4f2a", "/../../system.slice/other.scope"])
def test_container_that_sees_its_own_group_as_the_top_gives_that_group(tmp_path: Path, path: str) -> None:
    found = memory(record(tmp_path, f"0::{path}", V2, v2(".", 512 * MB, 12 * MB)))
    assert found.smallest is not None
    assert (found.smallest.limit, found.smallest.used) == (512 * MB, 12 * MB)


def test_container_whose_group_is_mounted_as_a_part_of_the_hierarchy_gives_that_group(tmp_path: Path) -> None:
    mount = V1.replace("0:32 / ", "0:32 /docker/4f2a ")
    files = v1("memory", 512 * MB, 100 * MB) | v1("memory/inner", 256 * MB, 10 * MB) | v1("memory/docker/4f2a", 1 * MB, 0)
    found = memory(record(tmp_path, "4:memory:/docker/4f2a/inner", mount, files))
    assert [group.limit for group in found.groups] == [256 * MB, 512 * MB]


def test_mount_of_a_foreign_group_is_ignored_where_another_mount_shows_ours(tmp_path: Path) -> None:
    foreign = "50 31 0:32 /docker/other /sys/fs/cgroup/foreign rw - cgroup2 cgroup2 rw"
    files = v2("docker/me", 2 * GB, 0) | v2("foreign", 1 * MB, 0)
    found = memory(record(tmp_path, "0::/docker/me", f"{foreign}\n{V2}", files))
    assert [group.limit for group in found.groups] == [2 * GB]


def test_v1_limit_of_an_ancestor_that_is_not_mounted_counts(tmp_path: Path) -> None:
    files = v1("memory", UNLIMITED, 100 * MB)
    files["memory/memory.stat"] = f"hierarchical_memory_limit {3 * GB}\ntotal_inactive_file {40 * MB}"
    found = memory(record(tmp_path, "4:memory:/", V1, files))
    assert found.smallest is not None
    assert (found.smallest.limit, found.smallest.used) == (3 * GB, 60 * MB)


def test_of_groups_with_the_same_limit_the_fuller_one_is_the_smallest(tmp_path: Path) -> None:
    found = memory(record(tmp_path, "0::/a/b", V2, v2("a", GB, 900 * MB) | v2("a/b", GB, 100 * MB)))
    assert found.smallest is not None
    assert found.smallest.folder.name == "a"


def test_memory_high_is_a_limit_and_may_be_exceeded(tmp_path: Path) -> None:
    found = memory(record(tmp_path, "0::/a", V2, v2("a", 2 * GB, 1100 * MB, high=GB)))
    assert found.tightest is not None
    assert (found.tightest.limit, found.tightest.headroom) == (GB, GB - 1100 * MB)


@pytest.mark.parametrize("version", [1, 2])
def test_page_cache_that_can_be_given_up_is_not_in_use(tmp_path: Path, version: int) -> None:
    files = v1("memory", GB, GB, inactive=900 * MB) if version == 1 else v2(".", GB, GB, inactive=900 * MB)
    found = memory(record(tmp_path, "4:memory:/" if version == 1 else "0::/", V1 if version == 1 else V2, files))
    assert found.tightest is not None
    assert found.tightest.headroom == 900 * MB


def test_stale_statistics_do_not_make_use_negative(tmp_path: Path) -> None:
    found = memory(record(tmp_path, "0::/", V2, v2(".", GB, 10, inactive=500)))
    assert found.smallest is not None
    assert found.smallest.used == 0


@pytest.mark.parametrize("name", ["memory.max", "memory.current"])
@pytest.mark.parametrize("content", [None, "", "garbage", "-5", "1 2", "\x00\x01", "1e9", "99" * 3000])
def test_group_with_an_unusable_file_does_not_count_and_its_parent_does(tmp_path: Path, name: str, content: str | None) -> None:
    files = v2("a", 4 * GB, GB) | v2("a/b", GB, 0)
    files.pop(f"a/b/{name}")
    if content is not None:
        files[f"a/b/{name}"] = content
    found = memory(record(tmp_path, "0::/a/b", V2, files))
    assert [group.limit for group in found.groups] == [4 * GB]


def test_file_that_cannot_be_read_is_a_file_that_is_not_there(tmp_path: Path) -> None:
    files = v2("a", 4 * GB, GB)
    root = record(tmp_path, "0::/a/b", V2, files)
    (root / "sys/fs/cgroup/a/b/memory.max").mkdir(parents=True)
    assert [group.limit for group in memory(root).groups] == [4 * GB]


@pytest.mark.parametrize("limit", [0, UNLIMITED, (1 << 63) - 1, 9223372036854775807 // 65536 * 65536])
def test_v1_value_that_means_no_limit_does_not_count(tmp_path: Path, limit: int) -> None:
    assert memory(record(tmp_path, "4:memory:/", V1, v1("memory", limit, 100))).groups == ()


@pytest.mark.parametrize("name", ["proc/self/cgroup", "proc/self/mountinfo"])
@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\xfe\x00 - cgroup2\n0::\n::::\n - \n", b"0::\n1 2 3 \\000 \\000/x - cgroup2 x\n"]
)
def test_garbled_proc_files_give_no_limits(tmp_path: Path, name: str, content: bytes | None) -> None:
    root = record(tmp_path, "0::/a", V2, v2("a", GB, 0) | {"a/cpu.max": "100000 100000"})
    (root / name).unlink()
    if content is not None:
        (root / name).write_bytes(content)
    assert memory(root).groups == ()
    assert cpu_quota(root) is None


def test_machine_without_proc_gives_no_limits(tmp_path: Path) -> None:
    found = memory(tmp_path)
    assert (found.groups, found.tightest, found.smallest, found.oom_kills, found.swap_used) == ((), None, None, 0, None)
    assert cpu_quota(tmp_path) is None


def test_group_that_vanished_with_its_folder_leaves_its_ancestors(tmp_path: Path) -> None:
    found = memory(record(tmp_path, "0::/a/gone (deleted)", V2, v2("a", GB, 0)))
    assert [group.limit for group in found.groups] == [GB]


def test_mount_point_and_group_with_blanks_and_colons_in_their_names_are_found(tmp_path: Path) -> None:
    mount = V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/my\\040groups ")
    found = memory(record(tmp_path, "0::/a:b c", mount, v2("my groups/a:b c", GB, 0)))
    assert [group.limit for group in found.groups] == [GB]


@pytest.mark.parametrize(("leaf", "top", "quota"), [("150000 100000", "max 100000", 1.5), ("max 100000", "50000 100000", 0.5)])
def test_v2_cpu_quota_is_the_smallest_of_all_ancestors(tmp_path: Path, leaf: str, top: str, quota: float) -> None:
    root = record(tmp_path, "0::/a/b", V2, {"a/b/cpu.max": leaf, "a/cpu.max": top, "cpu.max": "800000 100000"})
    assert cpu_quota(root) == quota


def test_v1_cpu_quota_is_the_smallest_of_all_ancestors(tmp_path: Path) -> None:
    files = {"cpu,cpuacct/a/cpu.cfs_quota_us": -1, "cpu,cpuacct/cpu.cfs_quota_us": 250000}
    files |= dict.fromkeys(("cpu,cpuacct/a/cpu.cfs_period_us", "cpu,cpuacct/cpu.cfs_period_us"), 100000)
    assert cpu_quota(record(tmp_path, "3:cpu,cpuacct:/a", V1_CPU, dict(files))) == 2.5


@pytest.mark.parametrize("content", ["max 100000", "garbage", "100000", "0 100000", "100000 0", "-1 100000", "1 2 3", ""])
def test_unusable_cpu_quota_is_none(tmp_path: Path, content: str) -> None:
    assert cpu_quota(record(tmp_path, "0::/", V2, {"cpu.max": content})) is None


@pytest.fixture
def real_group() -> Iterator[tuple[Path, int]]:
    """A control group of this machine with a limit of 1 GB, below the one that this process is in, and its version."""
    if MemoryProbe().read().limit <= GB:
        pytest.skip("there is less memory here than the group would get")
    parents = [(version, folder) for version, folder in _folders(Path("/"), "memory") if can_nest(version, folder)]
    if not parents:
        pytest.skip("no writable control group with a memory controller")
    version, parent = parents[0]
    group = parent / f"stenopool-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.max" if version == 2 else "memory.limit_in_bytes")).write_text(str(GB))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no control group can be made: {error}")
    yield group, version
    group.rmdir()


def can_nest(version: int, folder: Path) -> bool:
    # A v2 group that holds processes hands no controllers on; one above it may.
    shared, limit = folder / "cgroup.subtree_control", folder / "memory.limit_in_bytes"
    passes_on = limit.exists() if version == 1 else shared.exists() and "memory" in shared.read_text().split()
    return passes_on and os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)


INSIDE = """
import json, sys
from dataclasses import asdict
from app.admission.memory import MemoryProbe
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write("0")
probe = MemoryProbe()
readings = [probe.read()]
with open(sys.argv[2], "wb") as file:
    file.write(b"x" * (64 << 20))
readings.append(probe.read())
block = bytearray(b"x") * (128 << 20)
readings.append(probe.read())
print(json.dumps([asdict(reading) for reading in readings]))
"""


def test_process_in_a_real_group_sees_its_limit_and_what_it_takes(real_group: tuple[Path, int], tmp_path: Path) -> None:
    group, version = real_group
    command = [sys.executable, "-c", INSIDE, str(group), str(tmp_path / "file")]
    printed = subprocess.run(command, check=True, capture_output=True, cwd=PROJECT, timeout=60).stdout
    start, cached, grown = (Reading(**each) for each in json.loads(printed))
    assert (start.source, start.container, start.limit) == (f"cgroup v{version}", True, GB)
    assert 0 < start.used < 200 * MB
    assert start.available <= GB - start.used
    # What was written to a file is page cache, unless the file lies in memory; what was allocated is not.
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], check=True, capture_output=True, timeout=30).stdout
    assert cached.used - start.used < 32 * MB or kind.strip() == b"tmpfs"
    assert 120 * MB < grown.used - cached.used < 150 * MB
    assert 120 * MB < grown.own - cached.own < 150 * MB
    assert cached.available - grown.available > 100 * MB
