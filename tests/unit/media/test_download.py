"""A URL to a file: which way is taken, what the child may do, what comes back."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.errors import DiskFull, DownloadFailed, StenopoolError, TooLarge, TooLong, UrlRefused
from app.media._ytdlp import find_extractor, options
from app.media.download import download
from app.settings import Settings

from .conftest import send, serving

ROOT = Path(__file__).resolve().parents[3]
DRIVER = """
import sys
sys.path.insert(0, {root!r})
import yt_dlp.extractor
import yt_dlp.globals
from yt_dlp.extractor.common import InfoExtractor

class FakeIE(InfoExtractor):
    IE_NAME = "fake"
    _VALID_URL = r"http://127\\.0\\.0\\.1:\\d+/watch/(?P<id>\\w+)"

    def _real_extract(self, url):
        video = self._match_id(url)
        base = url.split("/watch/")[0]
        page = self._download_webpage(url, video)
        if "http" in page:
            base = page.strip()
        return {{"id": video, "title": "A <Talk> " + video, "duration": 9999 if video == "long" else 3,
                "is_live": video == "live", "formats": [{{"url": base + "/media/" + video + ".mp3", "format_id": "0",
                "ext": "mp3", "vcodec": "none"}}]}}

yt_dlp.extractor.import_extractors()
yt_dlp.globals.extractors.value["FakeIE"] = FakeIE
from app.media import _ytdlp
_ytdlp.main()
"""


@pytest.fixture
def child(tmp_path: Path) -> list[str]:
    """The download child with one more extractor, "fake", that takes http://127.0.0.1:*/watch/*."""
    (tmp_path / "driver.py").write_text(DRIVER.format(root=str(ROOT)))
    return [sys.executable, "-I", str(tmp_path / "driver.py")]


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


async def site(_: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    path = head.split(b" ")[1].split(b"?")[0]
    if path.startswith(b"/watch/inward"):
        await send(writer, b"http://10.0.0.1", "Content-Type: text/plain")
    elif path.startswith(b"/media/big"):
        await send(writer, bytes(1_100_000), "Content-Type: audio/mpeg")
    elif path.startswith(b"/media/"):
        await send(writer, b"music", "Content-Length: 5", "Content-Type: audio/mpeg")
    elif path.startswith(b"/page"):
        await send(writer, b"<html><audio src=/media/x.mp3></html>", "Content-Type: text/html")
    else:
        await send(writer, b"a page", "Content-Type: text/plain")


def stub(tmp_path: Path, code: str) -> list[str]:
    (tmp_path / "stub.py").write_text(code)
    return [sys.executable, "-I", "-S", str(tmp_path / "stub.py")]


async def test_plain_file_is_fetched_without_starting_the_child(inbox: Path, settings: Settings) -> None:
    async with serving(site) as (url, policy, seen):
        made = await download(f"{url}/media/My%20Talk.MP3?token=s", inbox, settings, policy=policy, child=["/nonexistent"])
    assert made.path.read_bytes() == b"music"
    assert (made.title, made.extractor, made.size_bytes, made.duration_s) == ("My Talk", "direct", 5, None)
    assert made.source_url == f"{url}/media/My%20Talk.MP3"
    assert made.path.suffix == ".mp3"
    assert [entry.name for entry in inbox.iterdir()] == [made.path.name]
    assert len(seen) == 1


async def test_page_that_no_extractor_takes_is_fetched_plainly_and_never_by_the_generic_extractor(
    inbox: Path, settings: Settings
) -> None:
    async with serving(site) as (url, policy, seen):
        with pytest.raises(DownloadFailed, match="web page"):
            await download(f"{url}/page", inbox, settings, policy=replace(policy, timeout_s=20, idle_s=20, connect_s=20))
    assert len(seen) == 1
    assert b"stenopool" in seen[0]
    assert not list(inbox.iterdir())


async def test_named_extractor_downloads(inbox: Path, settings: Settings, child: list[str]) -> None:
    named = settings.model_copy(update={"extractors": ("fake",)})
    async with serving(site) as (url, policy, _):
        made = await download(f"{url}/watch/abc", inbox, named, policy=replace(policy, timeout_s=20), child=child)
    assert made.path.read_bytes() == b"music"
    assert (made.title, made.extractor, made.duration_s) == ("A Talk abc", "fake", 3.0)
    assert [entry.name for entry in inbox.iterdir()] == [made.path.name]


@pytest.mark.parametrize(
    ("video", "error", "words"),
    [
        ("inward", UrlRefused, "not public"),
        ("big", TooLarge, "larger"),
        ("long", TooLong, "longer"),
        ("live", DownloadFailed, "Live"),
    ],
)
async def test_site_that_misbehaves_is_refused_in_plain_words(
    video: str, error: type[StenopoolError], words: str, inbox: Path, settings: Settings, child: list[str]
) -> None:
    named = settings.model_copy(update={"extractors": ("fake",)})
    async with serving(site) as (url, policy, _):
        with pytest.raises(error, match=words):
            await download(f"{url}/watch/{video}", inbox, named, policy=replace(policy, timeout_s=20), child=child)
    assert not list(inbox.iterdir())


@pytest.mark.parametrize(
    ("code", "error"),
    [
        pytest.param("import time; time.sleep(600)", DownloadFailed, id="hangs"),
        pytest.param("import os\nwhile True: os.write(2, bytes(65536))", DownloadFailed, id="floods-stderr"),
        pytest.param("print('not json /etc/passwd')", DownloadFailed, id="garbage"),
        pytest.param("print('[]')", DownloadFailed, id="wrong-shape"),
        pytest.param("import os; os.kill(os.getpid(), 11)", DownloadFailed, id="crashes"),
        pytest.param('print(\'{"error": "failed: /etc/passwd"}\')', DownloadFailed, id="own-words"),
        pytest.param(
            "import time\nfor n in range(9): open(f'media.{n}', 'wb').write(bytes(200_000))\ntime.sleep(600)",
            TooLarge,
            id="many-fragments",
        ),
        pytest.param(
            "import json, os; os.symlink('/etc/passwd', 'media.mp3');"
            "print(json.dumps({'file': 'media.mp3', 'title': '', 'extractor': 'x', 'duration_s': None}))",
            DownloadFailed,
            id="delivers-a-link",
        ),
    ],
)
async def test_child_that_misbehaves_ends_in_a_clean_error(
    code: str, error: type[StenopoolError], inbox: Path, tmp_path: Path, settings: Settings
) -> None:
    async with serving(site) as (url, policy, _):
        began = time.monotonic()
        with pytest.raises(error) as caught:
            await download(f"{url}/watch/x", inbox, settings, policy=policy, child=stub(tmp_path, code))
    assert time.monotonic() - began < 5
    assert "passwd" not in caught.value.message
    assert not list(inbox.iterdir())


async def test_url_stays_out_of_the_process_list(inbox: Path, tmp_path: Path, settings: Settings) -> None:
    code = (
        "import json, sys\nurl = json.load(open('request.json'))['url']\n"
        "command = open('/proc/self/cmdline').read() if sys.platform == 'linux' else ''\n"
        "open('media.mp3', 'w').write(str('token' in url and 'token' not in command))\n"
        "print(json.dumps({'file': 'media.mp3', 'title': '', 'extractor': 'x', 'duration_s': None}))"
    )
    async with serving(site) as (url, policy, _):
        made = await download(f"{url}/watch/x?token=1", inbox, settings, policy=policy, child=stub(tmp_path, code))
    assert made.path.read_text() == "True"


async def test_cancelled_download_leaves_nothing(inbox: Path, tmp_path: Path, settings: Settings) -> None:
    hanging = stub(tmp_path, "import time; time.sleep(600)")
    async with serving(site) as (url, policy, _):
        task = asyncio.ensure_future(download(f"{url}/watch/x", inbox, settings, policy=policy, child=hanging))
        while not list(inbox.glob("*/request.json")):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not list(inbox.iterdir())


async def test_full_disk_is_reported_before_anything_is_asked(inbox: Path, settings: Settings) -> None:
    async with serving(site) as (url, policy, seen):
        with pytest.raises(DiskFull):
            await download(f"{url}/media/x.mp3", inbox, settings.model_copy(update={"disk_reserve_mb": 1 << 40}), policy=policy)
    assert not seen


def fake(name: str, key: str, takes: bool) -> SimpleNamespace:
    return SimpleNamespace(IE_NAME=name, ie_key=lambda: key, suitable=lambda url: takes)


def test_generic_extractor_is_never_found_even_where_it_is_named() -> None:
    classes = [fake("Other", "Other", True), fake("generic", "Generic", True)]
    assert find_extractor(classes, ["generic", "youtube"], "http://x") is None


def test_extractor_is_found_by_its_whole_name_in_any_case() -> None:
    classes = [fake("youtube:tab", "YoutubeTab", True), fake("Youtube", "Youtube", True)]
    assert find_extractor(classes, ["youtube"], "http://x") is classes[1]


def test_parameters_hold_what_security_rests_on(tmp_path: Path) -> None:
    request = {"max_bytes": 7, "max_s": 1}
    made = options(request, tmp_path, "archive.org", SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    assert made["allowed_extractors"] == [r"archive\.org", "-generic"]
    assert made["max_filesize"] == 7
    assert not any(made[name] for name in ("cachedir", "usenetrc", "enable_file_urls", "external_downloader", "js_runtimes"))
    assert not {"cookiefile", "cookiesfrombrowser", "netrc_cmd", "postprocessors", "exec_cmd"} & set(made)
    json.dumps({name: made[name] for name in made if name not in ("logger", "match_filter")})
