"""A URL to a file: with one of the named yt-dlp extractors where one takes the URL, else as a plain file.

Both ways start with the URL policy. yt-dlp runs in a child (:mod:`app.media._ytdlp`) with a deadline, resource limits and
a watch on its folder: its own ``max_filesize`` does not hold for fragments.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from app.errors import DiskFull, DownloadFailed, StenopoolError, TooLarge, TooLong, UrlRefused
from app.media.net import fetch
from app.media.paths import free_bytes, new_name, require_disk, safe_title
from app.media.process import MB, ChildFailed, ChildStopped, ChildTimeout, Limits, run
from app.media.urls import Policy, Target, check_url, resolve
from app.settings import Settings

log = logging.getLogger(__name__)

SUFFIXES = (
    ".wav", ".mp3", ".m4a", ".m4b", ".aac", ".flac", ".ogg", ".oga", ".opus", ".webm", ".mp4", ".m4v", ".mov", ".mkv", ".mka",
    ".avi", ".amr", ".3gp", ".wma", ".wmv", ".aif", ".aiff",
)  # fmt: skip
"""A URL that ends in one of these is a plain file; no extractor is asked."""
TEMPORARY = ".download-"
"""Start of the folders that hold unfinished downloads; what a crash left of them may be deleted at start."""

_CHILD = (sys.executable, "-I", str(Path(__file__).with_name("_ytdlp.py")))
_MEMORY = 2048 * MB
_LOGGED = 2000


@dataclass(frozen=True)
class Downloaded:
    """A finished download. ``source_url`` has no query; ``title`` is cleaned; ``extractor`` is "direct" for a plain file.

    ``duration_s`` (seconds) is what the site says, None where it says nothing.
    """

    path: Path
    title: str
    source_url: str
    extractor: str
    size_bytes: int
    duration_s: float | None


async def download(
    url: str, dst_dir: Path, settings: Settings, *, policy: Policy | None = None, child: Sequence[str] = _CHILD
) -> Downloaded:
    """Download into a new file with a random name in ``dst_dir`` (existing, absolute). On an error nothing is left.

    ``policy`` and ``child`` are for tests.

    Raises:
        UrlRefused: the URL policy forbids it.
        DownloadFailed: the remote side failed, is a live stream or a web page, or took too long.
        TooLarge: over ``settings.max_download_mb``. TooLong: the site says that it is over ``settings.max_audio_s``.
        DiskFull: no room.
    """
    policy = policy or Policy.of(settings)
    target = check_url(url, policy)
    await resolve(target, policy)
    require_disk(dst_dir, 0, settings.disk_reserve_mb)
    work = dst_dir / (TEMPORARY + new_name())
    await asyncio.to_thread(work.mkdir, 0o700)
    try:
        made = None
        if settings.extractors and PurePosixPath(target.path.split("?")[0]).suffix.lower() not in SUFFIXES:
            made = await _extracted(target, work, settings, policy, child)
        if made is None:
            made = await _plain(target, work, policy)
        final = dst_dir / new_name(made.path.suffix)
        await asyncio.to_thread(os.replace, made.path, final)
        return Downloaded(final, made.title, made.source_url, made.extractor, made.size_bytes, made.duration_s)
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, work, ignore_errors=True))


async def _plain(target: Target, work: Path, policy: Policy) -> Downloaded:
    part = work / "file"
    got = await fetch(target.url, part, policy)
    suffix = PurePosixPath(got.name).suffix
    named = part.with_name(new_name(suffix))
    await asyncio.to_thread(os.replace, part, named)
    title = safe_title(got.name.removesuffix(suffix))
    return Downloaded(named, title, target.redacted, "direct", got.size_bytes, None)


async def _extracted(target: Target, work: Path, settings: Settings, policy: Policy, child: Sequence[str]) -> Downloaded | None:
    """The download by a named extractor, or None where none takes the URL."""
    answer = await _run_child(target, work, settings, policy, child)
    if answer.get("error") == "unsupported":
        return None
    if "error" in answer:
        raise _child_error(str(answer["error"]), policy, settings)
    path = work / PurePosixPath(str(answer["file"])).name
    size = await asyncio.to_thread(_regular_size, path)
    if size > policy.max_bytes:
        raise _child_error("too_large", policy, settings)
    duration = answer.get("duration_s")
    title = safe_title(str(answer.get("title") or ""))
    return Downloaded(path, title, target.redacted, str(answer["extractor"]), size, duration)


async def _run_child(target: Target, work: Path, settings: Settings, policy: Policy, child: Sequence[str]) -> dict[str, Any]:
    request = {
        "url": target.url,
        "extractors": list(settings.extractors),
        "max_bytes": policy.max_bytes,
        "max_s": settings.max_audio_s,
        "allow": [str(network) for network in policy.allow],
    }
    # In a file, not in the arguments: every user of the machine can read those, and a URL may hold a token.
    await asyncio.to_thread((work / "request.json").write_text, json.dumps(request))
    limits = Limits(int(policy.timeout_s) + 5, policy.max_bytes + MB, _MEMORY)
    watch = _folder_watch(work, policy)
    env = {"YTDLP_NO_PLUGINS": "1", "PYTHONDONTWRITEBYTECODE": "1", "no_proxy": "*"}
    try:
        done = await run(child, cwd=work, timeout_s=policy.timeout_s, limits=limits, env=env, watch=watch)
    except ChildFailed as error:
        log.info("download child failed: reason=%s stderr=%r", error.reason, error.stderr[-_LOGGED:])
        code = error.reason if isinstance(error, ChildStopped) else "slow" if isinstance(error, ChildTimeout) else "failed"
        raise _child_error(code, policy, settings) from error
    if done.stderr:
        log.info("download child: code=%s stderr=%r", done.returncode, done.stderr[-_LOGGED:])
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {"error": "failed"}


def _folder_watch(work: Path, policy: Policy) -> Callable[[], str | None]:
    def watch() -> str | None:
        if _folder_size(work) > policy.max_bytes:
            return "too_large"
        return "disk_full" if free_bytes(work) < policy.reserve_mb * MB // 2 else None

    return watch


def _folder_size(folder: Path) -> int:
    """Bytes of the files in ``folder``, which another process is changing."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(here, name)).st_size
            except OSError:
                continue
    return total


def _regular_size(path: Path) -> int:
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise DownloadFailed("The site did not deliver a file.", param="url")
    return found.st_size


def _child_error(code: str, policy: Policy, settings: Settings) -> StenopoolError:
    errors: dict[str, StenopoolError] = {
        "too_large": TooLarge(f"The remote file is larger than {policy.max_bytes // MB} MB.", param="url"),
        "too_long": TooLong(f"The recording is longer than {settings.max_audio_s:g} s.", param="url"),
        "live": DownloadFailed("Live streams cannot be downloaded.", param="url", hint="Try again when the stream is over."),
        "refused": UrlRefused("The site leads to an address that is not public.", param="url"),
        "slow": DownloadFailed("The remote server was too slow.", param="url"),
        "disk_full": DiskFull("The server ran out of disk space."),
    }
    return errors.get(code) or DownloadFailed("The site did not deliver the recording.", param="url")
