"""The overnight hundred in small: a list in the evening, files in the morning, with the script that the documentation names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.conftest import Sample
from tests.integration.server import KEY, ROOT, Server


def overnight(server: Server, folder: Path) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "examples" / "overnight.py")
    options = ["--out", str(folder / "out"), "--model", "demo", "--every", "0.2"]
    env = {**os.environ, "STENOPOOL_URL": server.url, "STENOPOOL_KEY": KEY, "no_proxy": "*"}
    command = [sys.executable, script, str(folder / "list.txt"), *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_four_right_transcripts_and_two_failures_apart(server: Server, samples: list[Sample], tmp_path: Path) -> None:
    media = server.data / "media"
    made = server.client.post("/extract-audio?format=flac", files={"file": samples[0].path.read_bytes()}).json()
    for sample in samples[1:4]:
        (media / sample.path.name).write_bytes(sample.path.read_bytes())
    (media / "broken.flac").write_bytes(samples[0].path.read_bytes()[:20] + bytes(1000))
    lines = [
        "# the overnight hundred",
        f"{made['audio_file']}\tmade by extract-audio",
        *(sample.path.name for sample in samples[1:4]),
        "",
        "broken.flac",
        "http://localhost/inward.mp3\tinward",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    done = overnight(server, tmp_path)
    assert done.returncode == 1, done.stderr
    failed = [line.split("\t")[:3] for line in done.stdout.splitlines()]
    assert failed == [["4", "broken", "not_media"], ["5", "inward", "url_refused"]]
    written = sorted((tmp_path / "out").iterdir())
    assert [path.name[:5] for path in written] == ["0001-", "0002-", "0003-", "0004-"]
    assert written[0].name == "0001-made-by-extract-audio.srt"
    for path, sample in zip(written, samples[:4], strict=True):
        cues = path.read_text("utf-8")
        assert " --> " in cues
        heard = " ".join(line for line in cues.splitlines() if line and not line.isdigit() and " --> " not in line)
        assert heard.split() == sample.text.split(), path.name
    written[2].unlink()
    again = overnight(server, tmp_path)
    assert (again.returncode, again.stdout) == (1, done.stdout)
    assert sorted((tmp_path / "out").iterdir()) == written
    assert len(server.client.get("/batches").json()["batches"]) == 1


def test_list_that_is_refused_ends_the_script_with_the_reason(server: Server, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("http://127.0.0.1/a.mp3\n")
    done = overnight(server, tmp_path)
    assert (done.returncode, "items[0].url" in done.stderr) == (2, True)
