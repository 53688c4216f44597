"""The download child: ``python -I _ytdlp.py`` in a private folder that holds ``request.json``.

Started by :mod:`app.media.download` only; prints one line of JSON. It works in two steps: find the *named* extractor that
takes the URL, by its pattern and without a request, then let yt-dlp download with that one.

yt-dlp is a large program that follows whatever a site answers, so its own care is not relied on: an audit hook lets this
process open connections to public addresses only (checked on the number that is connected to, so neither redirects nor
rebinding matter) and start no program at all. What remains: a site of the allow-list decides which *public* addresses are
asked, and without a JavaScript runtime YouTube offers fewer formats.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

# -I leaves the project out of the search path; addresses.py needs nothing but the standard library.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from app.media.addresses import is_public

sys.path.pop(0)

_OUTPUT = "media"
_PROGRAMS = ("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn")
_SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")


class _Guard:
    """The audit hook. ``blocked`` remembers that a connection was refused."""

    def __init__(self, allow: list[str]) -> None:
        self._allow = tuple(ipaddress.ip_network(network) for network in allow)
        self.blocked = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _PROGRAMS:
            raise PermissionError(f"not allowed here: {event}")
        if event not in _SENDS or len(args) < 2 or args[1] is None:
            return
        # A name (which the C library would resolve by itself) and a Unix socket's path are no public address either.
        host = args[1][0] if isinstance(args[1], tuple) else ""
        if not is_public(str(host), self._allow):
            self.blocked = True
            raise PermissionError("not a public address")


class _Listener:
    """yt-dlp's logger: prints nothing, keeps what the parent has to know."""

    def __init__(self) -> None:
        self.too_large = False

    def debug(self, message: str) -> None:
        # There is no exception and no flag for this one.
        self.too_large = self.too_large or "max-filesize" in message

    info = debug

    def warning(self, message: str) -> None:
        sys.stderr.write(message[:500] + "\n")

    error = warning


class _Refusal:
    """yt-dlp's match_filter: no live streams, nothing over the cap (seconds)."""

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s
        self.code = ""

    def __call__(self, info: dict[str, Any], *, incomplete: bool = False) -> str | None:
        if info.get("is_live") or info.get("live_status") in ("is_live", "is_upcoming"):
            self.code = "live"
        elif (info.get("duration") or 0) > self._max_s:
            self.code = "too_long"
        return self.code or None


def main() -> None:
    folder = Path.cwd()
    request = json.loads((folder / "request.json").read_text())
    # Optional C clients would connect without telling the audit hook.
    for module in ("curl_cffi", "websockets"):
        sys.modules[module] = None  # type: ignore[assignment]
    import yt_dlp
    from yt_dlp.globals import plugin_dirs

    plugin_dirs.value = []
    guard = _Guard(request["allow"])
    sys.addaudithook(guard)
    try:
        answer = _work(yt_dlp, request, folder, guard)
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}: {error}"[:2000] + "\n")
        answer = {"error": "refused" if guard.blocked else "failed"}
    sys.stdout.write(json.dumps(answer) + "\n")


def find_extractor(classes: list[Any], names: list[str], url: str) -> Any | None:
    """The first extractor of ``names`` (lower case) whose pattern takes ``url``; never the generic one."""
    wanted = {name.lower() for name in names} - {"generic"}
    return next((c for c in classes if c.IE_NAME.lower() in wanted and c.ie_key() != "Generic" and c.suitable(url)), None)


def options(request: dict[str, Any], folder: Path, name: str, listener: _Listener, refusal: _Refusal) -> dict[str, Any]:
    """yt-dlp's parameters. Embedded, it reads no configuration file."""
    return {
        "allowed_extractors": [re.escape(name.lower()), "-generic"],
        "format": "bestaudio/best",
        "outtmpl": {"default": str(folder / f"{_OUTPUT}.%(ext)s")},
        "logger": listener,
        "match_filter": refusal,
        "max_filesize": request["max_bytes"],
        "socket_timeout": 20,
        "retries": 2,
        "fragment_retries": 2,
        "extractor_retries": 1,
        "file_access_retries": 0,
        "noplaylist": True,
        "playlist_items": "1",
        "proxy": "",
        "cachedir": False,
        "usenetrc": False,
        "enable_file_urls": False,
        "external_downloader": {},
        "hls_prefer_native": True,
        "ffmpeg_location": str(folder / "none"),
        "fixup": "never",
        "js_runtimes": {},
        "remote_components": [],
        "skip_unavailable_fragments": False,
        "continuedl": False,
        "updatetime": False,
        "restrictfilenames": True,
        "quiet": True,
        "noprogress": True,
        "color": "never",
    }


def _work(yt_dlp: Any, request: dict[str, Any], folder: Path, guard: _Guard) -> dict[str, Any]:
    found = find_extractor(yt_dlp.extractor.gen_extractor_classes(), request["extractors"], request["url"])
    if found is None:
        return {"error": "unsupported"}
    listener, refusal = _Listener(), _Refusal(request["max_s"])
    with yt_dlp.YoutubeDL(options(request, folder, found.IE_NAME, listener, refusal)) as downloader:
        info = downloader.extract_info(request["url"], download=True)
    entries = (info or {}).get("entries")
    info = next(iter(entries), None) if entries else info
    made = [entry.name for entry in os.scandir(folder) if entry.name.startswith(f"{_OUTPUT}.")]
    if listener.too_large or refusal.code or len(made) != 1 or not info:
        return {"error": "too_large" if listener.too_large else refusal.code or "failed"}
    duration = info.get("duration")
    return {
        "file": made[0],
        "title": str(info.get("title") or ""),
        "extractor": found.IE_NAME.lower(),
        "duration_s": float(duration) if isinstance(duration, (int, float)) else None,
    }


if __name__ == "__main__":
    main()
