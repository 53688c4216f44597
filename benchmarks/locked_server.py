"""The baseline of :mod:`benchmarks.clients`: a stock WhisperX pipeline behind one lock, in a small FastAPI app.

    python -m benchmarks.locked_server --model DIR --port 8001 [--chunk 30]
    curl --data-binary @a.wav 'http://127.0.0.1:8001/transcribe?language=en'

The usual servers around WhisperX do this: requests for one model run one after the other, those that wait hold their audio
in memory. It is spared what would cost it more: bodies are raw 16 kHz WAV, so nothing is decoded by ffmpeg.
"""

from __future__ import annotations

import argparse
import io
import threading
import wave
from typing import Any

import numpy as np
import uvicorn
import whisperx
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from benchmarks.ratios import cores
from benchmarks.stock import BATCH


def app_for(model: str, chunk_s: int) -> FastAPI:
    """The app, with its pipeline loaded."""
    pipeline = whisperx.load_model(model, "cpu", threads=cores(), local_files_only=True)
    lock = threading.Lock()
    app = FastAPI()

    def recognise(audio: np.ndarray, language: str | None) -> dict[str, Any]:
        with lock:
            found: dict[str, Any] = pipeline.transcribe(audio, batch_size=BATCH, language=language, chunk_size=chunk_s)
        return found

    async def transcribe(request: Request, language: str | None = None) -> dict[str, Any]:
        with wave.open(io.BytesIO(await request.body())) as file:
            audio = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
        return await run_in_threadpool(recognise, audio, language)

    app.add_api_route("/transcribe", transcribe, methods=["POST"])
    app.add_api_route("/ready", lambda: {"ready": True})
    return app


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a CTranslate2 model")
    parser.add_argument("--chunk", type=int, default=30, help="longest window, seconds")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    uvicorn.run(app_for(args.model, args.chunk), host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
