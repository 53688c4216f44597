"""The real server against hostile and broken clients and files."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from tests.integration.conftest import Sample
from tests.integration.server import KEY, Server


def connect(server: Server) -> socket.socket:
    port = httpx.URL(server.url).port
    assert port is not None
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def test_unauthenticated_1_gb_chunked_post_gets_401_before_64_kb_are_sent(server: Server) -> None:
    with connect(server) as client:
        client.sendall(b"POST /transcribe HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: audio/wav\r\n\r\n")
        sent, answer = 0, b""
        client.settimeout(0.05)
        while b"\r\n\r\n" not in answer and sent < 1_000_000_000:
            client.sendall(b"400\r\n" + bytes(1024) + b"\r\n")
            sent += 1024
            try:
                answer += client.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer.lower()
    assert sent < 64 * 1024


def test_refused_upload_of_20_mb_still_gets_its_answer(server: Server) -> None:
    answer = server.client.post("/transcribe?model_size=nope&oops=1", content=bytes(20_000_000))
    assert answer.status_code == 422
    with connect(server) as client:
        client.sendall(
            f"POST /transcribe HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 99999999999\r\n\r\n".encode()
        )
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_disguised_playlists_leak_nothing(server: Server, tmp_path: Path) -> None:
    secret = server.data / "media" / "secret.wav"
    subprocess.run(
        [get_ffmpeg_exe(), "-v", "error", "-y", "-f", "lavfi", "-i", "sine=d=3", str(secret)], check=True, timeout=30
    )
    disguises = {
        "hls.mp3": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "ffconcat.wav": f"ffconcat version 1.0\nfile '{secret}'\n",
        "concat.mp3": f"concat:{secret}",
        "subfile.mp3": f"subfile,,start,0,end,9999,,:{secret}",
        "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    }
    for name, text in disguises.items():
        for call in ("/transcribe?model_size=demo&vad_method=none", "/extract-audio"):
            answer = server.client.post(call, files={"file": (name, text.encode())})
            assert answer.status_code == 422, (name, call, answer.text)
            assert answer.json()["error"]["code"] == "not_media"
            assert str(server.data) not in answer.text


def test_ten_hours_of_silence_are_refused_at_the_cap_with_bounded_memory(server: Server, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.flac"
    silence = ["-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono", "-t", "36000"]
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-y", *silence, str(bomb)], check=True, timeout=120)
    before = psutil.Process(server.process.pid).memory_info().rss
    answer = server.client.post("/transcribe?model_size=demo", files={"file": bomb.read_bytes()})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_long"
    assert psutil.Process(server.process.pid).memory_info().rss - before < 100_000_000


def test_broken_files_give_422_or_a_transcript_and_never_a_500(server: Server, samples: list[Sample]) -> None:
    rng = random.Random(5)
    whole = samples[0].path.read_bytes()
    broken = [b"", whole[:10], whole[: len(whole) // 2], whole[len(whole) // 2 :], bytes(5000)]
    for _ in range(10):
        flipped = bytearray(whole)
        for _ in range(rng.randint(1, 50)):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        broken.append(bytes(flipped))
    for data in broken:
        answer = server.client.post("/transcribe?model_size=demo&word_timestamps=true", files={"file": data}, timeout=60)
        assert answer.status_code in (200, 422), answer.text


def test_slow_body_does_not_keep_others_from_being_served(server: Server) -> None:
    with connect(server) as slow:
        slow.sendall(f"POST /transcribe HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 1000000\r\n\r\n".encode())
        for _ in range(5):
            slow.sendall(b"x")
            assert server.client.get("/health").status_code == 200


def test_aborted_uploads_leave_no_folder(server: Server) -> None:
    before = set((server.data / "jobs").iterdir())  # results of async jobs stay
    for _ in range(5):
        with connect(server) as client:
            head = (
                f"POST /transcribe?model_size=demo HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 5000000\r\n\r\n"
            )
            client.sendall(head.encode() + bytes(100_000))
    deadline = time.monotonic() + 10
    while set((server.data / "jobs").iterdir()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_processes_carry_titles_that_ps_shows(server: Server) -> None:
    api = psutil.Process(server.process.pid)
    titles = [" ".join(process.cmdline()).strip() for process in (api, *api.children(recursive=True))]
    assert titles[0] == "stenopool api"
    assert "stenopool worker demo cpu" in titles


def test_public_address_without_keys_does_not_start(tmp_path: Path) -> None:
    import os
    import sys

    from tests.integration.server import ROOT

    env = {name: value for name, value in os.environ.items() if not name.startswith("STENOPOOL_")}
    env |= {"HOST": "0.0.0.0", "PORT": "0", "STENOPOOL_DATA_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "main.py"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "STENOPOOL_API_KEYS" in done.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("a.wav", ["-ar", "8000", "-ac", "1"]),
        ("a.mp3", []),
        ("a.m4a", []),
        ("a.flac", []),
        ("a.ogg", ["-c:a", "libvorbis"]),
        ("a.opus", []),
        ("a.webm", ["-c:a", "libopus"]),
        ("b.wav", ["-ar", "48000", "-ac", "6"]),
    ],
)
def test_common_containers_give_the_same_words(
    server: Server, samples: list[Sample], tmp_path: Path, name: str, arguments: list[str]
) -> None:
    target = tmp_path / name
    source = str(samples[0].path)
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-y", "-i", source, *arguments, str(target)], check=True, timeout=60)
    answer = server.client.post("/transcribe?model_size=demo", files={"file": target.read_bytes()})
    assert answer.status_code == 200
    said, heard = samples[0].text.split(), answer.json()["text"].split()
    assert len(set(said) & set(heard)) >= 0.8 * len(set(said))


def test_mp4_with_video_is_transcribed(server: Server, samples: list[Sample], tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    picture = ["-f", "lavfi", "-i", "testsrc=s=160x120:r=5", "-shortest", "-c:v", "mpeg4", "-c:a", "aac"]
    subprocess.run(
        [get_ffmpeg_exe(), "-v", "error", "-y", "-i", str(samples[0].path), *picture, str(target)], check=True, timeout=60
    )
    answer = server.client.post("/transcribe?model_size=demo", files={"file": ("clip.mp4", target.read_bytes())})
    assert answer.status_code == 200
    assert answer.json()["text"]
