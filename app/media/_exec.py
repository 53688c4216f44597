"""Launcher of every media child: ``python -I -S _exec.py STATUS_FD LIMITS -- program argument ...``.

Not imported by the service and free of its imports, so that it starts in about 10 ms. It makes a process group of its own
and forks once:

* the child sets the resource limits, takes ``/dev/null`` as stdin and becomes the program;
* this process waits for it and reports its exit code on ``STATUS_FD`` (128 + n where signal n ended it; "no process"
  where it could not fork), then kills
  what is left of the process group, itself included, so that no grandchild outlives the program.

stdin is a lifeline: nobody writes to it, and its end means that the server is done with the child or is dead (SIGKILL
and crashes included). Then the group is killed. This holds on every Unix, unlike ``PR_SET_PDEATHSIG``, which is
Linux-only, follows the parent *thread* and does not reach grandchildren.

``LIMITS`` is ``name=value,...`` with the ``RLIMIT_`` names of :mod:`resource` in lower case.
"""

import _signal as signal  # type: ignore[import-not-found]  # what :mod:`signal` makes of it takes as long to import as Python
import os
import resource
import select
import sys

EXEC_FAILED = 127


def main() -> None:
    status_fd, limits, dashes = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    program = sys.argv[4:]
    if dashes != "--" or not program:
        sys.exit("usage: _exec.py STATUS_FD LIMITS -- program argument ...")
    os.setpgid(0, 0)  # before anything may kill the group
    os.set_inheritable(status_fd, False)
    # A SIGCHLD must wake the select below, so it needs a handler and a pipe that it writes to.
    woken, waker = os.pipe()
    for fd in (woken, waker):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        child = os.fork()
    except OSError:  # as many processes as there may be; nobody shall think that the program failed on its input
        os.write(status_fd, b"no process\n")
        return
    if child == 0:
        _become(program, limits)
    code = _wait(child, woken)
    os.write(status_fd, b"%d\n" % code)
    os.killpg(0, signal.SIGKILL)


def _become(program: list[str], limits: str) -> None:
    """Turn this process into ``program``; never returns."""
    try:
        signal.set_wakeup_fd(-1)
        # Python ignores these two, and "ignored" survives an exec: the file size limit would not end the program.
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.nice(5)  # the server must answer while every core decodes
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for item in filter(None, limits.split(",")):
            name, _, value = item.partition("=")
            _limit(getattr(resource, "RLIMIT_" + name.upper()), int(value))
        os.execvp(program[0], program)  # noqa: S606
    except BaseException as error:
        os.write(2, f"launcher: {type(error).__name__}: {error}\n".encode())
    os._exit(EXEC_FAILED)


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(which, (value, value))
    except (ValueError, OSError):
        # macOS refuses RLIMIT_AS; the others work everywhere.
        if which != resource.RLIMIT_AS:
            raise


def _wait(child: int, woken: int) -> int:
    """Exit code of the child, which is killed when the lifeline ends."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        ready = select.select([0, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 512)
        if 0 in ready and not os.read(0, 512):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)  # reaped here, so that a server running as pid 1 is left no zombie
            os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
