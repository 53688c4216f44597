"""Uploads that may be cut off and go on later: what tus 1.0.0 asks of a server, without HTTP.

Nothing is kept but each upload's folder, so a server that was killed goes on where the bytes end. Where the file goes in its
owner's media folder is written down before it goes there, so that a move that was cut off is made again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from app.admission import refusals
from app.desk.desk import Desk
from app.errors import (
    ChecksumMismatch,
    DiskFull,
    NotFound,
    OffsetMismatch,
    QuotaExceeded,
    StenopoolError,
    TooLarge,
    UploadLocked,
)
from app.intake import Intake
from app.jobs import new_id
from app.media.paths import discard_tree, free_bytes
from app.media.process import MB
from app.settings import Settings
from app.uploads import folder
from app.uploads.folder import DATA, Info
from app.uploads.part import Checksum, Part, move
from app.uploads.turn import Read, Turn, to_its_end

log = logging.getLogger("stenopool.uploads")

LOOK_S = 60.0
SILENT_S = 3.0
"""Seconds without a byte after which a request makes way, if its client comes again: a network that changes cuts connections
without telling the server."""
GIVE_UP_S = 5.0
RETURN_S = 3600.0
"""Seconds that clients have to come back after a start of the server, however long it was down."""


@dataclass(eq=False)
class Upload:
    """One upload. ``offset``: bytes that are there; ``ends_at``: when it expires, on the monotonic clock, in seconds."""

    id: str
    info: Info
    ends_at: float
    offset: int = 0
    finished: bool = False
    turn: Turn | None = None

    @property
    def whole(self) -> bool:
        """Whether every byte is there."""
        return self.offset == self.info.length


class Uploads:
    """All uploads. ``now`` is a monotonic clock in seconds; ``wall``, the time of day, is read at the start only."""

    def __init__(
        self,
        settings: Settings,
        desk: Desk,
        intake: Intake,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._desk, self._intake, self._now, self._wall = settings, desk, intake, now, wall
        self._all: dict[str, Upload] = {}
        self._stopping = False
        self.max_bytes = settings.max_upload_mb * 1_000_000

    # -- life

    async def recover(self) -> None:
        """Take up what the last boot left."""
        today, ttl_s = self._wall(), self._settings.upload_ttl_s
        for found in await asyncio.to_thread(folder.read_all, self._settings.uploads_dir):
            # The clock may be wrong now, or have been when the file was written: everybody has some time to come back.
            left_s = max(ttl_s - max(0.0, today - found.touched), min(ttl_s, RETURN_S))
            upload = Upload(found.id, found.info, self._now() + left_s, found.offset, found.moved)
            self._all[upload.id] = upload
            try:
                await self._finish(upload)
            except (OSError, StenopoolError):  # tried again when its client asks for it
                log.exception("an upload could not be finished", extra={"upload_id": upload.id})

    async def watch(self) -> None:
        """Delete what has expired, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except Exception:  # one failure must not end all sweeping
                log.exception("expired uploads could not be swept")

    async def look(self) -> None:
        """Delete what has expired; of a finished upload only the record, not the file in the media folder."""
        for upload in [one for one in self._all.values() if self._expired(one)]:
            del self._all[upload.id]
            await asyncio.to_thread(discard_tree, self._folder(upload))

    def drain(self) -> None:
        """The server stops: whoever sends bytes is told to come back, and what came is kept."""
        self._stopping = True
        for upload in self._all.values():
            if upload.turn is not None:
                upload.turn.give_up(refusals.stopping())

    # -- use cases

    def get(self, upload_id: str, owner: str) -> Upload:
        """The owner's upload.

        Raises:
            NotFound: there is none, it has expired, or it is another owner's.
        """
        upload = self._all.get(upload_id)
        if upload is None or upload.info.owner != owner or self._expired(upload):
            raise _gone()
        return upload

    async def create(self, owner: str, length: int, metadata: str = "", suffix: str = "") -> Upload:
        """Begin an upload of ``length`` bytes. One of none is finished at once.

        Raises:
            TooLarge: it is longer than uploads may be.
            QuotaExceeded: the owner has too many that are unfinished.
            DiskFull: it would not fit beside what others have still to send.
        """
        self._admit(owner, length)
        upload = Upload(new_id(), Info(owner, length, metadata, suffix), self._now() + self._settings.upload_ttl_s)
        self._all[upload.id] = upload
        try:
            await to_its_end(asyncio.to_thread(folder.make, self._folder(upload), upload.info))
            await self._finish(upload)
        except BaseException:  # its client will never know its id
            await self.remove(upload)
            raise
        return upload

    async def append(self, upload: Upload, offset: int, read: Read, checksum: Checksum | None = None) -> None:
        """Put what ``read`` gives at ``offset``, and finish the upload if these were the last bytes.

        What came before a failure is kept, unless a checksum was to show that it is right, or more came than may.

        Raises:
            OffsetMismatch: the upload does not end at ``offset``.
            UploadLocked: another request is writing.
            ChecksumMismatch: nothing was kept.
            TooLarge: more came than the upload's length; nothing was kept.
            DiskFull: what fitted was kept.
        """
        async with self._turn(upload) as turn:
            if offset != upload.offset:
                there = {"upload_offset": upload.offset}
                raise OffsetMismatch(f"The upload ends at {upload.offset}.", param="Upload-Offset", details=there)
            try:
                await self._receive(upload, turn, read, checksum)
            finally:
                upload.ends_at = self._now() + self._settings.upload_ttl_s
            await self._finish(upload)

    async def settle(self, upload: Upload) -> None:
        """Finish an upload whose bytes are all there, where that failed before.

        Raises:
            DiskFull: it fails again.
        """
        if upload.whole and not upload.finished and upload.turn is None:
            async with self._turn(upload):
                await self._finish(upload)

    async def remove(self, upload: Upload) -> None:
        """End an upload and delete its bytes, also those of a finished one in the media folder."""
        async with self._turn(upload, NotFound("The upload was deleted.")):
            del self._all[upload.id]
            await to_its_end(asyncio.to_thread(self._delete, upload))

    def expires_in_s(self, upload: Upload) -> float:
        """Seconds until the upload is deleted, if nothing comes."""
        return upload.ends_at - self._now()

    # -- inside

    def _admit(self, owner: str, length: int) -> None:
        if self._stopping:
            raise refusals.stopping()
        if length > self.max_bytes:
            raise TooLarge(f"An upload may have {self.max_bytes} bytes at most.", param="Upload-Length")
        begun = [one for one in self._all.values() if not one.finished and not self._expired(one)]
        if sum(one.info.owner == owner for one in begun) >= self._settings.key_uploads:
            hint = "Finish one of them, or end it with DELETE."
            raise QuotaExceeded("This key has too many unfinished uploads.", hint=hint, details={"reason": "uploads"})
        to_come = sum(one.info.length - one.offset for one in begun) + self._desk.disk.reserved
        if free_bytes(self._settings.uploads_dir) < length + to_come + self._settings.disk_reserve_mb * MB:
            details = {"reason": "disk", "predicted_bytes": length}
            raise DiskFull("The server has too little free disk for this.", details=details)

    @asynccontextmanager
    async def _turn(self, upload: Upload, why: StenopoolError | None = None) -> AsyncIterator[Turn]:
        """The right to change an upload. Whoever has it keeps it, unless silent; or, where ``why`` is said, in no case."""
        held = upload.turn
        if held is not None and (why or self._now() - held.heard_at >= SILENT_S):
            held.give_up(why or _locked())
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(held.over.wait(), GIVE_UP_S)
        if upload.turn is not None:
            raise _locked()
        if self._all.get(upload.id) is not upload:
            raise _gone()
        if self._stopping and why is None:
            raise refusals.stopping()
        turn = upload.turn = Turn(self._now)
        try:
            yield turn
        finally:
            upload.turn = None
            turn.over.set()

    async def _receive(self, upload: Upload, turn: Turn, read: Read, checksum: Checksum | None) -> None:
        start, kept = upload.offset, False
        part = Part(self._folder(upload) / DATA, start, checksum, self._settings.disk_reserve_mb)
        try:
            while (piece := await turn.next(read)) is not None:
                if upload.offset + len(piece) > upload.info.length:
                    raise TooLarge("More bytes came than Upload-Length says.", hint="Begin an upload of the right length.")
                if piece:
                    await to_its_end(asyncio.to_thread(part.write, piece))
                    upload.offset += len(piece)
            if not part.is_right():
                raise ChecksumMismatch("The bytes do not match their checksum.", param="Upload-Checksum")
            kept = True
        except TooLarge:
            raise
        except BaseException:
            kept = checksum is None
            raise
        finally:
            if not kept:
                upload.offset = start
            try:
                await to_its_end(asyncio.to_thread(part.close, upload.offset))
            except OSError:  # nobody knows what of it is on the disk
                upload.offset = start
                raise

    async def _finish(self, upload: Upload) -> None:
        """Move the file of a whole upload to where ``/transcribe`` finds it. Every step may be made again."""
        if upload.finished or not upload.whole:
            return
        if upload.info.audio_file is None:
            media_path, _ = await self._intake.new_media(upload.info.owner, upload.info.suffix)
            info = replace(upload.info, audio_file=media_path)
            await to_its_end(asyncio.to_thread(folder.write, self._folder(upload), info))
            upload.info = info
        target = self._settings.media_dir / str(upload.info.audio_file)
        await to_its_end(asyncio.to_thread(move, self._folder(upload) / DATA, target, self._settings.disk_reserve_mb))
        upload.finished = True

    def _delete(self, upload: Upload) -> None:
        if upload.info.audio_file is not None:
            (self._settings.media_dir / upload.info.audio_file).unlink(missing_ok=True)
        discard_tree(self._folder(upload))

    def _expired(self, upload: Upload) -> bool:
        return upload.turn is None and upload.ends_at <= self._now()

    def _folder(self, upload: Upload) -> Path:
        return self._settings.uploads_dir / upload.id


def _locked() -> UploadLocked:
    return UploadLocked("Another request is writing to this upload.")


def _gone() -> NotFound:
    return NotFound("There is no such upload.", hint="Begin a new one with POST /uploads.")
