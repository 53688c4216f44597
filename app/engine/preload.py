"""The heavy imports, made once in the forkserver (Linux) so that workers share their pages and start at once.

Nothing here may load a model or start a thread: CTranslate2 and OpenMP do not survive a fork.
"""

import gc
import logging
import os
import sys
import threading
import warnings

from app import cpu

_threads = threading.active_count()  # where workers are spawned, one has begun to measure memory

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "10")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # 1024 kernels of aligners for any length take 300 MB
cpu.advise(os.environ)
os.environ["PYANNOTE_METRICS_ENABLED"] = "false"  # pyannote.audio reports its use to a remote collector by default
warnings.filterwarnings("ignore")

import opentelemetry.sdk.trace.export as otel_export  # noqa: E402
from opentelemetry.sdk.trace import SpanProcessor  # noqa: E402

# pyannote.audio makes one of these while it is imported, and that starts a thread, metrics or not
otel_export.BatchSpanProcessor = lambda *_, **__: SpanProcessor()  # type: ignore[misc, assignment]

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # reports every import to a remote collector, in a thread

import ctranslate2  # noqa: E402, F401
import faster_whisper.vad  # noqa: E402, F401
import onnxruntime  # noqa: E402, F401
import openvino  # noqa: E402, F401
import whisperx.alignment  # noqa: E402
import whisperx.asr  # noqa: E402, F401

logging.getLogger("whisperx").setLevel(logging.ERROR)

if threading.active_count() > _threads:
    raise RuntimeError(f"an import started a thread: {threading.enumerate()}")

gc.collect()
gc.freeze()  # a collection in a worker would otherwise write to, and so copy, every shared page
