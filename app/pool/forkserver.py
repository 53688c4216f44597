"""What the forkserver imports before anything else (Linux), by name: the workers' own code, and its place when memory runs out.

Nobody else may import it. While the kernel still frees what a killed worker held, it may look for another victim (seen with
Linux 6.18: the server itself, 8 ms later). Then it shall be this process, which is started again, and not the server.
"""

import contextlib
from pathlib import Path

from setproctitle import setproctitle

from app.pool import worker  # noqa: F401  (imported once here, not again in every worker)

OOM_SCORE = 800
"""Below that of workers, which go first."""

with contextlib.suppress(OSError):  # not writable in some sandboxes
    Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
setproctitle("stenopool forkserver")
