"""How the audio of a request comes in: from the upload, the media folder or an address, and then as PCM on disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from app.admission.controller import Controller
from app.admission.ticket import Ticket
from app.desk.desk import Desk
from app.media.decode import Decoded, decode, in_place
from app.media.download import Downloaded, download
from app.media.paths import copy_inside, new_name
from app.settings import Settings

OWNED = "by-key"


@dataclass(frozen=True)
class Source:
    """Where the audio comes from: exactly one of an upload that is already in the folder, a media path, a URL."""

    upload: Path | None = None
    audio_file: str | None = None
    url: str | None = None


def source_of(where: dict[str, str], folder: Path) -> Source:
    """The audio of a job whose row says ``where`` it is (:attr:`app.jobs.Job.source`)."""
    if "url" in where or "audio_file" in where:
        return Source(url=where.get("url"), audio_file=where.get("audio_file"))
    return Source(upload=folder / where.get("file", "upload"))


class Intake:
    """Every ffmpeg and yt-dlp run takes a turn at the desk, as a request of its own or as a part of one."""

    def __init__(self, settings: Settings, desk: Desk) -> None:
        self._settings, self._desk = settings, desk

    async def fetch(self, owner: str, folder: Path, source: Source) -> Path:
        """The input as a file in ``folder``."""
        if source.upload:
            return source.upload
        if source.url:
            async with self.part(self._desk.downloads, owner):
                return (await download(source.url, folder, self._settings)).path
        target = folder / "input"
        await asyncio.to_thread(target.unlink, missing_ok=True)  # of an earlier try
        wanted = _visible(owner, source.audio_file or "")
        await copy_inside(self._settings.media_dir, wanted, target, reserve_mb=self._settings.disk_reserve_mb)
        return target

    async def decode(self, owner: str, input_file: Path, folder: Path, *, keep: bool = False) -> Decoded:
        """The input as PCM: where it lies, or beside it; then the input is deleted, unless it is to be kept for another try."""
        size = input_file.stat().st_size  # noqa: ASYNC240  (a hop to a thread takes a hundred times as long)
        decoded = await in_place(input_file, self._settings)
        if decoded is None:
            try:
                async with self.part(self._desk.media, owner):
                    decoded = await decode(input_file, folder / "audio.pcm", self._settings)
            finally:
                if not keep:
                    await asyncio.to_thread(input_file.unlink, missing_ok=True)
        self._desk.prices.costs.observe_upload(owner, size, decoded.duration_s)
        return decoded

    async def download(self, url: str, folder: Path, ticket: Ticket) -> Downloaded:
        """Fetch media into ``folder``."""
        async with self.turn(self._desk.downloads, ticket):
            return await download(url, folder, self._settings)

    async def new_media(self, owner: str, suffix: str) -> tuple[str, Path]:
        """A new name in the owner's part of the media folder: as callers see it, and where it is."""
        folder = self._settings.media_dir / OWNED / owner
        for part in (folder.parent, folder):  # one by one: parents made by mkdir would be open to all
            await asyncio.to_thread(part.mkdir, 0o700, exist_ok=True)
        name = new_name(suffix)
        return f"{OWNED}/{owner}/{name}", folder / name

    @asynccontextmanager
    async def part(self, controller: Controller, owner: str) -> AsyncIterator[None]:
        """A turn for a part of what was admitted already."""
        ticket = controller.join(self._desk.prices.media(owner, controller.what))
        try:
            async with self.turn(controller, ticket):
                yield
        finally:
            self._desk.release(controller, ticket)

    @asynccontextmanager
    async def turn(self, controller: Controller, ticket: Ticket) -> AsyncIterator[None]:
        """The turn of ``ticket``, and what it took is learned."""
        await self._desk.turn(controller, ticket, self._settings.queue_timeout_s)
        began = time.monotonic()
        yield
        self._desk.prices.learn_media(controller.what, time.monotonic() - began)


def _visible(owner: str, path: str) -> str:
    """What other keys downloaded looks as if it were not there."""
    first, _, rest = path.partition("/")
    hidden = first == OWNED and rest.partition("/")[0] != owner
    return "" if hidden else path
