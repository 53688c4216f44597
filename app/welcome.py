"""The first minute: settings that cannot work, a key where there is none, a line to paste."""

from __future__ import annotations

import ipaddress
import os
import shlex
import shutil
from importlib.util import find_spec

from app import catalogue
from app.errors import StenopoolError
from app.keys import KeyRing
from app.lock import claim
from app.media import ffmpeg_cli
from app.media.process import TOOLS_PATH
from app.settings import PROJECT_ROOT, Settings
from app.store import Store

_SAMPLE = PROJECT_ROOT / "demo" / "samples"


def prepare(settings: Settings) -> str | None:
    """Check the settings, make a key if there is none, print how to begin; a text instead where the server must not start."""
    unknown = [name for name in (settings.model_size, *settings.warm_models) if name not in catalogue.MODELS]
    if unknown:
        return f"There is no model {unknown[0]!r}. Allowed: {', '.join(catalogue.MODELS)}."
    if settings.engine == "celery" and find_spec("celery") is None:
        return "Several machines need more packages: scripts/setup requirements.txt requirements-nodes.txt"
    if not _has_ffmpeg(settings):
        return "There is no ffmpeg that can be run: install the imageio-ffmpeg package, or set STENOPOOL_FFMPEG to the binary."
    try:
        os.close(claim(settings.data_dir))
        return _keys(settings)
    except StenopoolError as error:
        return f"{error.message} {error.hint}"
    except OSError as error:
        return f"The data folder {settings.data_dir} cannot be written: {error.strerror}. Set STENOPOOL_DATA_DIR."


def _has_ffmpeg(settings: Settings) -> bool:
    """Looked for now, because that starts a process: the first job may come when there is none left to be had."""
    try:
        return shutil.which(ffmpeg_cli.binary(settings), path=TOOLS_PATH) is not None
    except RuntimeError:
        return False


def _keys(settings: Settings) -> str | None:
    store = Store(settings.store_url)
    try:
        store.create_schema()
        ring = KeyRing(store, settings.configured_keys)
        if ring.count():
            _print(settings, "$STENOPOOL_KEY", "the key you have (a new one: python -m app.keys create NAME)")
        elif not _loopback(settings.host):
            return (
                f"No API key is configured, and {settings.host} can be reached from outside. Set STENOPOOL_API_KEYS, or make "
                "a key with: python -m app.keys create NAME"
            )
        else:
            plain, _ = ring.create("first start")
            _print(settings, plain, "a new key, shown only now: keep it")
    finally:
        store.close()
    return None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _print(settings: Settings, key: str, what: str) -> None:
    sample = next(iter(sorted(_SAMPLE.glob("*.flac")) + sorted(_SAMPLE.glob("*.wav"))), _SAMPLE / "sample.wav")
    shown = shlex.quote(f"file=@{sample}")
    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host  # noqa: S104
    address = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    print(
        f"\nStenopool on {address} (documentation: {address}/docs)\nAPI key: {what}\n\n"
        f"  curl -H \"X-API-Key: {key}\" -F {shown} '{address}/transcribe?model_size=demo'\n",
        flush=True,
    )
