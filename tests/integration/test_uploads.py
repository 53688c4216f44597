"""A real tus client, tuspy, against the real server: cut off, gone on with by another client, and transcribed."""

from __future__ import annotations

import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusUploadFailed

from tests.integration.conftest import Sample
from tests.integration.server import KEY, Server


@pytest.fixture
def tus(server: Server, monkeypatch: pytest.MonkeyPatch) -> TusClient:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return TusClient(f"{server.url}/uploads", headers={"X-API-Key": KEY})


def test_upload_that_was_cut_off_is_resumed_by_another_client_and_transcribed(
    server: Server, samples: list[Sample], tus: TusClient
) -> None:
    sample = samples[0]
    size = sample.path.stat().st_size
    chunk = size // 7
    with open(sample.path, "rb") as file:
        first = tus.uploader(file_stream=file, chunk_size=chunk, metadata={"filename": sample.path.name}, upload_checksum=True)
        first.upload(stop_at=3 * chunk)
        second = tus.uploader(file_stream=file, chunk_size=chunk, url=first.url)
        assert second.offset == 3 * chunk
        second.upload()
        with pytest.raises(TusUploadFailed, match="409"):  # the first one comes back and does not know of the second
            first.upload_chunk()
    audio_file = second.request.response_headers["stenopool-audio-file"]
    assert audio_file.endswith(sample.path.suffix)
    assert (server.data / "media" / audio_file).read_bytes() == sample.path.read_bytes()
    answer = server.client.post("/transcribe", params={"audio_file": audio_file, "model_size": "demo"})
    assert answer.json()["text"] == sample.text
