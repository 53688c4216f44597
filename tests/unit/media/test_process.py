"""The runner of children: whatever the child does, the call comes back and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from app.errors import CapacityError
from app.media import process
from app.media.process import ChildFailed, ChildStopped, ChildTimeout, Finished, Limits, run

MB = 1024 * 1024
LIMITS = Limits(cpu_s=20, file_bytes=MB)
ROOT = Path(__file__).resolve().parents[3]


async def shell(script: str, cwd: Path, timeout_s: float = 10, limits: Limits = LIMITS, **more: object) -> Finished:
    return await run(["/bin/sh", "-c", script], cwd=cwd, timeout_s=timeout_s, limits=limits, **more)  # type: ignore[arg-type]


async def gone(pid: int, within_s: float = 3.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        await asyncio.sleep(0.02)
    return False


async def written(path: Path, lines: int = 1) -> list[int]:
    for _ in range(500):
        if path.exists() and len(path.read_text().split()) >= lines:
            return [int(word) for word in path.read_text().split()]
        await asyncio.sleep(0.01)
    raise AssertionError(f"{path.name} never came")


async def test_output_and_exit_code_come_back(tmp_path: Path) -> None:
    done = await shell("echo out; echo err >&2; exit 3", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", "err\n")


async def test_signal_is_reported_as_128_plus_n(tmp_path: Path) -> None:
    assert (await shell("kill -SEGV $$", tmp_path)).returncode == 128 + signal.SIGSEGV


async def test_launcher_that_cannot_fork_is_a_lack_of_processes_and_not_the_inputs_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = tmp_path / "launcher.py"
    launcher.write_text(
        "import os\ndef fork():\n    raise BlockingIOError(11, 'no process')\nos.fork = fork\n"
        f"exec(compile(open({process._LAUNCHER!r}).read(), 'launcher', 'exec'))\n"
    )
    monkeypatch.setattr(process, "_LAUNCHER", str(launcher))
    with pytest.raises(CapacityError):
        await shell("echo out", tmp_path)


async def test_no_descriptor_for_a_child_is_a_lack_of_descriptors(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(CapacityError):
            await shell("echo out", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_missing_program_is_127_and_never_an_exception(tmp_path: Path) -> None:
    done = await run(["/nonexistent/tool"], cwd=tmp_path, timeout_s=5, limits=LIMITS)
    assert done.returncode == 127
    assert "FileNotFoundError" in done.stderr


async def test_missing_folder_is_child_failed(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed):
        await shell("true", tmp_path / "none")


async def test_environment_holds_no_variable_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STENOPOOL_API_KEYS", "sk-secret")
    monkeypatch.setenv("DATABASE_URL", "postgres://secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    done = await shell("env", tmp_path, env={"EXTRA": "1"})
    names = {line.split(b"=")[0] for line in done.stdout.splitlines()}
    assert names <= {b"PATH", b"HOME", b"TMPDIR", b"LC_ALL", b"TZ", b"EXTRA", b"PWD", b"_", b"SHLVL", b"OLDPWD"}
    assert b"EXTRA" in names


async def test_stdin_is_empty(tmp_path: Path) -> None:
    assert (await shell("cat; echo end", tmp_path)).stdout == b"end\n"


async def test_no_descriptor_of_the_server_or_the_launcher_leaks(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        script = "import os\nfor fd in range(3, 200):\n try: os.fstat(fd); print(fd)\n except OSError: pass"
        done = await run([sys.executable, "-I", "-S", "-c", script], cwd=tmp_path, timeout_s=10, limits=LIMITS)
    assert done.stdout == b""


async def test_deadline_kills_the_group_with_its_grandchild(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ChildTimeout):
        await shell("sleep 600 & echo $! > pids; echo $$ >> pids; wait", tmp_path, timeout_s=0.5)
    assert time.monotonic() - began < 3
    for pid in await written(tmp_path / "pids", 2):
        assert await gone(pid)


async def test_deadline_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    with pytest.raises(ChildTimeout):
        await shell("trap '' TERM INT HUP; echo $$ > pids; while :; do sleep 1; done", tmp_path, timeout_s=0.5)
    assert await gone((await written(tmp_path / "pids"))[0])


async def test_stopped_launcher_still_ends_at_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(ChildTimeout):
        await shell("echo $$ > pids; kill -STOP $PPID; sleep 600", tmp_path, timeout_s=0.5)
    assert await gone((await written(tmp_path / "pids"))[0])


async def test_killed_launcher_takes_the_program_along(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed):
        await shell("echo $$ > pids; kill -KILL $PPID; sleep 600", tmp_path)
    assert await gone((await written(tmp_path / "pids"))[0])


async def test_grandchild_that_outlives_the_program_is_killed(tmp_path: Path) -> None:
    began = time.monotonic()
    done = await shell("sleep 600 & echo $! > pids; exit 4", tmp_path)
    assert done.returncode == 4
    assert time.monotonic() - began < 3
    assert await gone((await written(tmp_path / "pids"))[0])


async def test_process_that_left_the_group_and_holds_the_pipe_is_not_waited_for(tmp_path: Path) -> None:
    if not Path("/usr/bin/setsid").exists():
        pytest.skip("needs setsid")
    began = time.monotonic()
    done = await shell("setsid sleep 8 & exit 0", tmp_path)
    assert done.returncode == 0
    assert time.monotonic() - began < 4


async def test_flood_of_stderr_is_bounded_and_keeps_both_ends(tmp_path: Path) -> None:
    script = "echo first >&2; head -c 50000000 /dev/zero | tr '\\0' 'x' >&2; echo last >&2"
    done = await shell(script, tmp_path, timeout_s=30)
    assert len(done.stderr) < 70_000
    assert done.stderr.startswith("first")
    assert done.stderr.endswith("last\n")
    assert "bytes dropped" in done.stderr


async def test_flood_of_stdout_is_bounded(tmp_path: Path) -> None:
    assert len((await shell("head -c 9000000 /dev/zero", tmp_path)).stdout) == MB


async def test_endless_flood_ends_at_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(ChildTimeout) as caught:
        await shell("yes >&2", tmp_path, timeout_s=0.5)
    assert len(caught.value.stderr) < 70_000


async def test_cancelled_call_kills_the_group(tmp_path: Path) -> None:
    task = asyncio.ensure_future(shell("sleep 600 & echo $! > pids; echo $$ >> pids; wait", tmp_path, timeout_s=600))
    pids = await written(tmp_path / "pids", 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in pids:
        assert await gone(pid)


async def test_watch_ends_the_child_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(ChildStopped) as caught:
        await shell("echo $$ > pids; sleep 600", tmp_path, watch=lambda: "full" if (tmp_path / "pids").exists() else None)
    assert caught.value.reason == "full"
    assert await gone((await written(tmp_path / "pids"))[0])


async def test_file_size_limit_ends_the_program(tmp_path: Path) -> None:
    done = await shell("exec head -c 5000000 /dev/zero > big", tmp_path)
    assert done.returncode == 128 + signal.SIGXFSZ
    assert (tmp_path / "big").stat().st_size <= MB


async def test_cpu_limit_ends_a_busy_loop(tmp_path: Path) -> None:
    done = await shell("while :; do :; done", tmp_path, timeout_s=20, limits=Limits(cpu_s=1, file_bytes=MB))
    assert done.returncode in (128 + signal.SIGXCPU, 128 + signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no limit on address space")
async def test_memory_limit_stops_a_greedy_program(tmp_path: Path) -> None:
    greedy = [sys.executable, "-I", "-S", "-c", "b'x' * (1 << 30)"]
    done = await run(greedy, cwd=tmp_path, timeout_s=20, limits=Limits(20, MB, memory_bytes=256 * MB))
    assert done.returncode == 1
    assert "MemoryError" in done.stderr


async def test_children_die_when_the_server_is_killed(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from app.media.process import *\n"
        "asyncio.run(run(['/bin/sh', '-c', 'sleep 600 & echo $! > pids; echo $$ >> pids; wait'],"
        " cwd=Path(sys.argv[1]), timeout_s=600, limits=Limits(20, 1 << 20)))"
    )
    server = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    pids = await written(tmp_path / "pids", 2)
    server.kill()
    server.wait(5)
    for pid in pids:
        assert await gone(pid)


async def test_thirty_children_at_once_leave_no_process_and_no_descriptor(tmp_path: Path) -> None:
    await shell("true", tmp_path)
    before = psutil.Process().num_fds()
    done = await asyncio.gather(*(shell(f"exit {number}", tmp_path) for number in range(30)))
    assert [one.returncode for one in done] == list(range(30))
    await asyncio.sleep(0.2)
    assert psutil.Process().num_fds() <= before + 2
    assert not [child for child in psutil.Process().children() if "_exec.py" in " ".join(child.cmdline())]
