"""Every environment variable, once: name, type, default, bounds and help.

``docs/settings.md`` is written from this file (``python -m app.settings``), and a contract test keeps them equal.
"""

from __future__ import annotations

import base64
import math
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app import cgroups

PROJECT_ROOT = Path(__file__).resolve().parent.parent

Names = Annotated[tuple[str, ...], NoDecode]
Ports = Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], NoDecode]


def _named(env: str, default: Any, help_text: str, **bounds: Any) -> Any:
    return Field(default, validation_alias=env, description=help_text, **bounds)


def _own(name: str, default: Any, help_text: str, **bounds: Any) -> Any:
    return _named(f"STENOPOOL_{name}", default, help_text, **bounds)


class Settings(BaseSettings):
    """What the operator decides. Immutable; built once in ``main.py`` and handed down."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    # -- the server
    host: str = _named("HOST", "127.0.0.1", "Address to listen on. 0.0.0.0 needs API keys.")
    port: int = _named("PORT", 8000, "TCP port to listen on.", ge=0, le=65535)
    api_keys: SecretStr | None = _own("API_KEYS", None, "Comma-separated API keys for simple deployments.")
    log_level: Literal["debug", "info", "warning", "error"] = _own("LOG_LEVEL", "info", "Least level that is logged.")
    shutdown_grace_s: float = _own("SHUTDOWN_GRACE_S", 25.0, "Seconds that running work may take after SIGTERM.", ge=0)

    # -- connections
    max_connections: int = _own(
        "MAX_CONNECTIONS", 0, "Connections at once. 0: half of the open files that the process may have, 8192 at most.", ge=0
    )
    header_timeout_s: float = _own("HEADER_TIMEOUT_S", 20.0, "Seconds that the headers of a request may take before 408.", gt=0)
    send_idle_timeout_s: float = _own(
        "SEND_IDLE_TIMEOUT_S", 60.0, "Seconds without progress of an answer that the client does not read.", gt=0
    )
    send_timeout_s: float = _own("SEND_TIMEOUT_S", 3600.0, "Seconds that the client may take to read one answer.", gt=0)

    # -- places on disk
    data_dir: Path = _own("DATA_DIR", Path("data"), "Folder for everything the server writes.")
    media_path: Path | None = _own("MEDIA_DIR", None, "Folder that audio_file= is relative to. Default: DATA_DIR/media.")
    models_dir: Path | None = _own("MODELS_DIR", None, "Folder of CTranslate2 models, one sub-folder per name.")
    database_url: SecretStr | None = _named("DATABASE_URL", None, "SQLAlchemy URL. Default: SQLite inside DATA_DIR.")
    disk_reserve_mb: int = _own("DISK_RESERVE_MB", 512, "Free disk below which uploads are refused with 507.", ge=0)

    # -- the model
    model_size: str = _own("MODEL_SIZE", "tiny", "Model that is used where a request names none.")
    warm_models: Names = _own("WARM_MODELS", (), "Models to load at start. Default: MODEL_SIZE if on disk, else demo.")
    offline: bool = _own("OFFLINE", False, "Never fetch a model from the hub.")
    device: Literal["auto", "cpu", "cuda"] = _own("DEVICE", "auto", "Device of speech recognition.")
    devices: Names = _own(
        "DEVICES", (), "Devices that models are loaded on, a worker on each: cuda:0, cuda:1, cpu. Instead of STENOPOOL_DEVICE."
    )
    align_device: Literal["auto", "cpu", "cuda", "mps"] = _own("ALIGN_DEVICE", "auto", "Device of word alignment.")
    compute_type: str = _own("COMPUTE_TYPE", "auto", "CTranslate2 compute type. auto: int8 on cpu, float16 on cuda.")
    encoder: Literal["auto", "ctranslate2", "openvino"] = _own(
        "ENCODER", "auto", "Whisper's encoder on a CPU. auto: the fastest on this machine, measured at a model's first load."
    )
    decoder: Literal["auto", "ctranslate2", "openvino"] = _own(
        "DECODER",
        "auto",
        "Whisper's decoder on a CPU, chosen likewise. Sampling, more than 5 beams and fast word times are CTranslate2's.",
    )
    batch_size: int = _own("BATCH_SIZE", 4, "Windows of 30 s that one engine call takes at most.", ge=1, le=64)

    # -- the pool
    max_concurrent_transcriptions: int = _named(
        "MAX_CONCURRENT_TRANSCRIPTIONS", 0, "Transcriptions that run at once. 0: as many as there are streams.", ge=0
    )
    overload_policy: Literal["queue", "reject"] = _named(
        "OVERLOAD_POLICY", "queue", "What happens when every place is taken: wait in line, or 429 at once."
    )
    railway_ram_mb: int | None = _named("RAILWAY_RAM_MB", None, "Memory of the container, in MB of 2^20 bytes.", ge=64)
    memory_limit_mb: int | None = _own("MEMORY_LIMIT_MB", None, "Memory that the server may use, in MB of 2^20 bytes.", ge=64)
    host_reserve_mb: int = _own("HOST_RESERVE_MB", 2000, "Memory that a machine keeps for its system and other programs.", ge=0)
    container_reserve_mb: int = _own("CONTAINER_RESERVE_MB", 500, "The same in a container, or under a stated limit.", ge=0)
    max_queued: int = _own("MAX_QUEUED", 200, "Transcriptions that may wait in line; above it the answer is 429.", ge=0)
    max_queue_s: float = _own("MAX_QUEUE_S", 900.0, "Predicted seconds of waiting above which the answer is 429.", ge=0)
    large_wait_s: float = _own(
        "LARGE_WAIT_S", 30.0, "Seconds that smaller jobs may pass one that memory keeps from starting.", ge=0
    )
    key_jobs: int = _own("KEY_JOBS", 0, "Transcriptions of one key that wait or run. 0: no limit.", ge=0)
    key_audio_s: float = _own("KEY_AUDIO_S", 0.0, "Seconds of audio of one key that wait or run. 0: no limit.", ge=0)
    key_requests_per_minute: int = _own(
        "KEY_REQUESTS_PER_MINUTE", 0, "Transcriptions per minute of one key. 0: no limit.", ge=0
    )
    queue_timeout_s: float = _own("QUEUE_TIMEOUT", 3600.0, "Seconds that a transcription may wait in line before 504.", gt=0)
    streams: int = _own(
        "STREAMS",
        0,
        "Jobs that one worker runs at once. 0: 2 per core, 8 at most, or (runners + 1) x batch size, 16 at most.",
        ge=0,
    )
    runners: int = _own(
        "RUNNERS",
        0,
        "Engine calls that one worker makes at once, for all its jobs. 0: cores, 4 at most, or fewer where that is faster.",
        ge=0,
    )
    threads: int = _own("THREADS", 0, "Threads per engine call. 0: cores divided by runners.", ge=0)
    batch_wait_ms: float = _own(
        "BATCH_WAIT_MS", 0.0, "Milliseconds that a batch waits for windows of other jobs. Pays on GPUs.", ge=0, le=1000
    )
    workers_per_model: int = _own("WORKERS_PER_MODEL", 1, "Worker processes per model and device.", ge=1, le=64)
    max_resident_models: int = _own(
        "MAX_RESIDENT_MODELS", 0, "Models that are loaded at once; idle ones are evicted. 0: as many as fit.", ge=0
    )
    idle_ttl_s: float = _own("IDLE_TTL_S", 900.0, "Seconds after which an idle model is unloaded, if not kept warm.", gt=0)
    ping_interval_s: float = _own("PING_INTERVAL_S", 2.0, "Seconds between two pings of a worker.", gt=0)
    ping_timeout_s: float = _own("PING_TIMEOUT_S", 15.0, "Seconds without an answer after which a worker is killed.", gt=0)
    setup_timeout_s: float = _own("SETUP_TIMEOUT_S", 900.0, "Seconds that starting a worker may take, download included.", gt=0)
    job_timeout_s: float = _own("JOB_TIMEOUT_S", 120.0, "Seconds that any job may run, plus JOB_TIMEOUT_FACTOR.", gt=0)
    job_timeout_factor: float = _own("JOB_TIMEOUT_FACTOR", 30.0, "Seconds of run time allowed per second of audio.", ge=0)
    max_deaths: int = _own("MAX_DEATHS", 3, "Worker deaths that one input may cause before it fails as worker_lost.", ge=1)

    # -- several machines
    engine: Literal["local", "celery"] = _own("ENGINE", "local", "Where transcriptions run: here, or on nodes behind Celery.")
    redis_url: SecretStr | None = _named("REDIS_URL", None, "Redis that carries the ids of jobs to the nodes.")
    media_url: SecretStr | None = _own(
        "MEDIA_URL", None, "Where all machines find inputs and results: file:///folder, s3://bucket/folder, any fsspec URL."
    )
    lease_s: float = _own("LEASE_S", 15.0, "Seconds after which the jobs of a silent node go elsewhere.", ge=1, le=3600)
    node_name: str = _own("NODE_NAME", "", "Name of this node. Default: the host's, and a few random letters.", max_length=48)

    # -- async jobs
    result_ttl_s: float = _own("RESULT_TTL_S", 604800.0, "Seconds that ended jobs and results of async ones are kept.", gt=0)
    webhook_secret: SecretStr | None = _own(
        "WEBHOOK_SECRET", None, "Signs webhooks: whsec_ and base64 of 24 to 64 random bytes."
    )
    webhook_timeout_s: float = _own("WEBHOOK_TIMEOUT_S", 15.0, "Seconds that the receiver of a webhook may take.", gt=0, le=60)
    max_batch_items: int = _own("MAX_BATCH_ITEMS", 1000, "Items that one batch may have.", ge=1, le=10_000)
    batch_places: int = _own(
        "BATCH_PLACES", 0, "Items of batches that are in line or run at once. 0: as many as there are places.", ge=0
    )
    key_batch_items: int = _own(
        "KEY_BATCH_ITEMS", 5000, "Batch items of one key that have not ended; above it the answer is 429. 0: no limit.", ge=0
    )
    results_mb: int = _own("RESULTS_MB", 1024, "Disk for results of async jobs, in MB; beyond it the oldest go.", ge=1)

    # -- caps on input
    max_upload_mb: int = _own("MAX_UPLOAD_MB", 1024, "Largest request body, and largest resumable upload, in MB.", ge=1)
    max_audio_s: float = _own("MAX_AUDIO_S", 14400.0, "Longest audio that is decoded, in seconds.", gt=0)
    body_idle_timeout_s: float = _own("BODY_IDLE_TIMEOUT_S", 30.0, "Seconds without a byte of an upload before 408.", gt=0)
    body_timeout_s: float = _own("BODY_TIMEOUT_S", 3600.0, "Seconds that one upload may take in all.", gt=0)
    decode_timeout_s: float = _own("DECODE_TIMEOUT_S", 600.0, "Seconds that one ffmpeg run may take.", gt=0)
    max_media_jobs: int = _own("MAX_MEDIA_JOBS", 4, "Decodes and extractions that run at once.", ge=1)

    # -- resumable uploads
    upload_ttl_s: float = _own("UPLOAD_TTL_S", 86400.0, "Seconds without a byte after which an upload is deleted.", gt=0)
    key_uploads: int = _own("KEY_UPLOADS", 20, "Unfinished resumable uploads of one key.", ge=1)

    # -- downloads
    max_downloads: int = _own("MAX_DOWNLOADS", 4, "Downloads that run at once.", ge=1)
    max_download_mb: int = _own("MAX_DOWNLOAD_MB", 2048, "Largest download, in MB.", ge=1)
    download_timeout_s: float = _own("DOWNLOAD_TIMEOUT_S", 900.0, "Seconds that one download may take.", gt=0)
    url_ports: Ports = _own("URL_PORTS", (80, 443), "Ports that a URL may name.")
    extractors: Names = _own(
        "EXTRACTORS",
        ("youtube", "vimeo", "soundcloud", "bandcamp", "archive.org", "tedtalk", "twitch:vod", "dailymotion"),
        "yt-dlp extractors that may be used. The generic one never is.",
    )
    ffmpeg: Path | None = _own("FFMPEG", None, "ffmpeg binary. Default: the one of the imageio-ffmpeg wheel.")

    @field_validator("webhook_secret")
    @classmethod
    def _decodable(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            plain = value.get_secret_value().removeprefix("whsec_") if value else ""
            if value and not 24 <= len(base64.b64decode(plain, validate=True)) <= 64:
                raise ValueError
        except ValueError:
            raise ValueError("must be whsec_ and base64 of 24 to 64 bytes") from None
        return value

    @field_validator("devices")
    @classmethod
    def _devices(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for device in value:
            if not re.fullmatch(r"cpu|cuda:(0|[1-9][0-9]{0,2})", device):
                raise ValueError("must name cpu or cuda:N, N from 0 to 999, with commas between them")
        if len(set(value)) < len(value):
            raise ValueError("names a device twice")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Settings:
        if self.engine == "celery" and not (self.redis_url and self.database_url and self.media_url):
            raise ValueError("STENOPOOL_ENGINE=celery needs REDIS_URL, DATABASE_URL and STENOPOOL_MEDIA_URL")
        return self

    @field_validator("warm_models", "extractors", "url_ports", "devices", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @cached_property
    def media_dir(self) -> Path:
        """Folder of media that requests may name, absolute."""
        return (self.media_path or self.data_dir / "media").resolve()

    @cached_property
    def jobs_dir(self) -> Path:
        """Folder that holds one 0700 folder per job, absolute."""
        return (self.data_dir / "jobs").resolve()

    @cached_property
    def uploads_dir(self) -> Path:
        """Folder that holds one 0700 folder per resumable upload, absolute."""
        return (self.data_dir / "uploads").resolve()

    @cached_property
    def store_url(self) -> str:
        """SQLAlchemy URL of the job store."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{(self.data_dir / 'stenopool.db').resolve()}"

    @cached_property
    def cores(self) -> int:
        """Cores this process may use: by affinity, and by the container's quota, rounded down, at least 1."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        quota = cgroups.cpu_quota()
        return cores if quota is None else max(1, min(cores, math.floor(quota + 0.01)))

    @property
    def device_list(self) -> tuple[str, ...]:
        """The devices that every model is loaded on."""
        return self.devices or (self.device,)

    @property
    def worker_count(self) -> int:
        """Workers that a model has at most, on all devices together."""
        return self.workers_per_model * len(self.device_list)

    @cached_property
    def stream_count(self) -> int:
        """Jobs at once per worker: as set, else two per core, 8 at most, or as fill all batches and one more, 16 at most."""
        wanted = self.streams or max(min(2 * self.cores, 8), min((self._runners + 1) * self.batch_size, 16))
        return min(wanted, self.max_concurrent_transcriptions) if self.max_concurrent_transcriptions else wanted

    @cached_property
    def runner_count(self) -> int:
        """Engine calls at once per worker: as set, else as many as cores allow, 4 at most; never more than jobs."""
        return min(self._runners, self.stream_count)

    @property
    def _runners(self) -> int:
        by_cores = self.cores // (max(1, self.threads) * self.worker_count)
        return self.runners or max(1, min(by_cores, 4))

    @cached_property
    def thread_count(self) -> int:
        """Threads per engine call; runners times threads never exceeds the cores unless set so."""
        return self.threads or max(1, self.cores // (self.runner_count * self.worker_count))

    @cached_property
    def configured_keys(self) -> tuple[str, ...]:
        """The keys of STENOPOOL_API_KEYS, in plain text; never log them."""
        plain = self.api_keys.get_secret_value() if self.api_keys else ""
        return tuple(key.strip() for key in plain.split(",") if key.strip())


def as_markdown() -> str:
    """The table of ``docs/settings.md``."""
    lines = ["# Settings", "", "Environment variables. Written by `python -m app.settings`; do not edit by hand.", ""]
    lines += ["| variable | default | meaning |", "|---|---|---|"]
    for field in Settings.model_fields.values():
        default = field.default
        shown = ", ".join(map(str, default)) if isinstance(default, tuple) else "" if default is None else str(default)
        lines.append(f"| `{field.validation_alias}` | {f'`{shown}`' if shown else ''} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
