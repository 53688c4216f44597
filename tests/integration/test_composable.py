"""download → extract-audio → transcribe, through paths that one call returns and the next one takes."""

from __future__ import annotations

import os
from pathlib import Path

import httpx

from app import cpu
from tests.integration.conftest import Sample
from tests.integration.server import OTHER_KEY, Server


def test_extracted_audio_is_transcribed_by_its_path(server: Server, samples: list[Sample]) -> None:
    sample = samples[0]
    for form in ("wav", "mp3", "m4a", "flac", "opus"):
        made = server.client.post(f"/extract-audio?format={form}", files={"file": sample.path.read_bytes()})
        assert made.status_code == 200, made.text
        path = made.json()["audio_file"]
        assert path.endswith(form)
        answer = server.client.post("/transcribe", params={"audio_file": path, "model_size": "demo", "provider": "local"})
        assert answer.status_code == 200
        assert len(set(answer.json()["text"].split()) & set(sample.text.split())) >= len(set(sample.text.split())) - 1


def test_another_keys_file_looks_as_if_it_were_not_there(server: Server, samples: list[Sample]) -> None:
    made = server.client.post("/extract-audio", files={"file": samples[0].path.read_bytes()}).json()
    theirs = server.client.post(
        "/transcribe", params={"audio_file": made["audio_file"], "model_size": "demo"}, headers={"X-API-Key": OTHER_KEY}
    )
    missing = server.client.post("/transcribe", params={"audio_file": "nothing.wav", "model_size": "demo"})
    assert theirs.status_code == missing.status_code == 404
    assert theirs.json()["error"]["message"] == missing.json()["error"]["message"]


def test_file_that_the_operator_put_into_the_media_folder_is_found(server: Server, samples: list[Sample]) -> None:
    (server.data / "media" / "talk.flac").write_bytes(samples[0].path.read_bytes())
    answer = server.client.post("/transcribe", params={"audio_file": "talk.flac", "model_size": "demo"})
    assert answer.json()["text"] == samples[0].text


def test_paths_outside_the_media_folder_are_not_found(server: Server) -> None:
    for path in ("../stenopool.db", "/etc/passwd", "media/../../x", "by-key", "a\x00b", "C:\\x", ""):
        answer = server.client.post("/transcribe", data={"audio_file": path, "model_size": "demo"})
        assert answer.status_code in (404, 422), path
        assert "/etc" not in answer.text


def test_inward_urls_are_refused_without_a_request(server: Server) -> None:
    port = httpx.URL(server.url).port
    for url in (f"{server.url}/health", f"http://localhost:{port}/", "http://169.254.169.254/latest", "file:///etc/passwd"):
        for call in ("/download", "/transcribe", "/extract-audio"):
            answer = server.client.post(call, data={"url": url})
            assert answer.status_code == 422
            assert answer.json()["error"]["code"] == "url_refused"


def test_text_file_is_not_media(server: Server, tmp_path: Path) -> None:
    answer = server.client.post("/transcribe?model_size=demo", files={"file": b"this is not audio\n" * 100})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "not_media"


def test_model_that_is_not_on_disk_is_named_with_what_to_do(server: Server, samples: list[Sample]) -> None:
    answer = server.client.post("/transcribe?model_size=tiny", files={"file": samples[0].path.read_bytes()})
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["code"] == "model_unavailable"
    assert "tiny" in error["message"]
    assert "STENOPOOL_MODELS_DIR" in error["hint"]


def test_models_lists_the_demo_model_as_on_disk_and_loaded(server: Server) -> None:
    listed = {model["name"]: model for model in server.client.get("/models").json()["models"]}
    encoder = listed["demo"]["encoder"]
    assert encoder["name"] in encoder["seconds_per_window"]
    assert encoder["seconds_per_window"].keys() == encoder["relative_errors"].keys() > {"ctranslate2"}
    assert listed["tiny"]["encoder"] is None
    decoder = listed["demo"]["decoder"]
    if cpu.multiplies_int8():  # without such instructions there is nothing to choose
        assert decoder["name"] in decoder["seconds_per_window"]
        assert decoder["seconds_per_window"].keys() > decoder["log_probability_differences"].keys() > set()
    arrangement = listed["demo"]["arrangement"]
    assert 1 <= arrangement["runners"] * arrangement["threads"] <= max(1, len(os.sched_getaffinity(0)))
    assert listed["tiny"]["arrangement"] is None
    assert listed["demo"]["on_disk"]
    assert listed["demo"]["loaded"]
    assert not listed["large-v3"]["on_disk"]
    assert listed["tiny"]["ram_bytes"] == 500_000_000
