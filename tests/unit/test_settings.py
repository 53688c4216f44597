"""Settings: defaults, lists, bounds, secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.validation_alias), raising=False)


def test_nothing_has_to_be_set() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.model_size) == ("127.0.0.1", 8000, "tiny")
    assert settings.configured_keys == ()
    assert settings.warm_models == ()
    assert settings.url_ports == (80, 443)
    assert settings.streams == 0
    assert settings.stream_count >= 1
    assert settings.thread_count >= 1


def test_lists_are_split_at_commas_and_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STENOPOOL_WARM_MODELS", " demo, tiny.en ,,")
    monkeypatch.setenv("STENOPOOL_URL_PORTS", "80, 8443")
    monkeypatch.setenv("STENOPOOL_API_KEYS", "first-key-of-many, second-key-of-many,")
    settings = Settings()
    assert settings.warm_models == ("demo", "tiny.en")
    assert settings.url_ports == (80, 8443)
    assert settings.configured_keys == ("first-key-of-many", "second-key-of-many")


def test_refused_settings_are_not_quoted_because_they_may_be_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STENOPOOL_ENGINE", "celery")
    monkeypatch.setenv("REDIS_URL", "redis://:secret@host")
    with pytest.raises(ValidationError) as raised:
        Settings()
    assert "secret" not in str(raised.value)
    assert "STENOPOOL_MEDIA_URL" in str(raised.value)


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "")
    monkeypatch.setenv("STENOPOOL_MODELS_DIR", "")
    assert Settings().port == 8000
    assert Settings().models_dir is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "http"),
        ("OVERLOAD_POLICY", "panic"),
        ("MAX_CONCURRENT_TRANSCRIPTIONS", "-1"),
        ("RAILWAY_RAM_MB", "0"),
        ("STENOPOOL_DEVICE", "mps"),
        ("STENOPOOL_DEVICES", "cuda"),
        ("STENOPOOL_DEVICES", "cuda:-1"),
        ("STENOPOOL_DEVICES", "cuda:01"),
        ("STENOPOOL_DEVICES", "cuda:0,gpu"),
        ("STENOPOOL_DEVICES", "cuda:0,cuda:1,cuda:0"),
        ("STENOPOOL_BATCH_SIZE", "0"),
        ("STENOPOOL_BATCH_SIZE", "65"),
        ("STENOPOOL_MAX_AUDIO_S", "0"),
        ("STENOPOOL_MAX_DEATHS", "0"),
        ("STENOPOOL_PING_TIMEOUT_S", "0"),
        ("STENOPOOL_URL_PORTS", "80,https"),
    ],
)
def test_a_value_out_of_bounds_is_refused_and_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name):
        Settings()


def test_list_of_devices_takes_the_place_of_the_one_device_and_streams_and_threads_count_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STENOPOOL_DEVICE", "cpu")
    assert Settings().device_list == ("cpu",)
    monkeypatch.setenv("STENOPOOL_DEVICES", "cuda:0, cuda:12,cpu")
    monkeypatch.setenv("STENOPOOL_WORKERS_PER_MODEL", "2")
    settings = Settings()
    assert settings.device_list == ("cuda:0", "cuda:12", "cpu")
    assert settings.worker_count == 6
    assert settings.runner_count * settings.thread_count * settings.worker_count <= max(6, settings.cores)


def test_every_number_has_a_lower_bound() -> None:
    numbers = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]
    unbounded = [name for name in numbers if not Settings.model_fields[name].metadata]
    assert len(numbers) > 10
    assert unbounded == []


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_the_keys_are_not_in_the_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STENOPOOL_API_KEYS", "a-key-that-nobody-may-see")
    settings = Settings()
    assert settings.configured_keys == ("a-key-that-nobody-may-see",)
    assert "nobody" not in repr(settings)
    assert "nobody" not in str(settings.model_dump())


def test_places_lie_in_the_data_folder_and_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert settings.media_dir == tmp_path / "data" / "media"
    assert settings.jobs_dir == tmp_path / "data" / "jobs"
    assert settings.store_url == f"sqlite:///{tmp_path}/data/stenopool.db"


def test_the_usual_names_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/steno")
    monkeypatch.setenv("STENOPOOL_MEDIA_DIR", str(tmp_path / "elsewhere"))
    assert Settings().store_url == "postgresql://db/steno"
    assert Settings().media_dir == tmp_path / "elsewhere"


def test_streams_and_threads_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STENOPOOL_STREAMS", "3")
    monkeypatch.setenv("STENOPOOL_THREADS", "5")
    assert (Settings().stream_count, Settings().thread_count) == (3, 5)
    monkeypatch.setenv("MAX_CONCURRENT_TRANSCRIPTIONS", "2")
    assert Settings().stream_count == 2
    monkeypatch.delenv("STENOPOOL_THREADS")
    settings = Settings()
    assert settings.thread_count == max(1, settings.cores // 2)


@pytest.mark.parametrize(("cores", "batch", "streams"), [(1, 4, 8), (2, 4, 12), (2, 1, 4), (4, 4, 16), (16, 8, 16)])
def test_jobs_at_once_fill_the_batches_and_one_more(
    monkeypatch: pytest.MonkeyPatch, cores: int, batch: int, streams: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr("app.cgroups.cpu_quota", lambda: None)
    assert Settings(batch_size=batch).stream_count == streams
    assert Settings(batch_size=batch, streams=3).stream_count == 3
