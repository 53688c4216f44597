"""Eight clients at once against the real server, the limit, and WhisperX behind one lock; and a short clip beside a long file.

    python -m benchmarks.random_models tiny small --into DIR --quantization int8 --tokens 40
    python -m benchmarks.clients --models tiny small --models-dir DIR --into OUT

Needs a quiet machine. ``throughput``: every client uploads a recording, all at once; in every round the server
(``python main.py``, its own defaults), the limit (:mod:`benchmarks.limit`, which is handed the same recordings all at once)
and stock WhisperX behind a lock (:mod:`benchmarks.locked_server`) take turns. ``lone``: clips of 5 s, one by one, on the
idle server and beside a file of three hours, in turns; the 95th percentile beside the file over the median of the idle server.
The last line has the ratios; the exit status is 1 where one falls short.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.catalogue import MODELS, local_path
from app.settings import PROJECT_ROOT
from benchmarks.corpus import write_corpus
from benchmarks.openloop import percentile
from benchmarks.ratios import ROUNDS, Found, Target, conditions, finish, per_round, save, show
from benchmarks.serving import READY_S, Server, inherited, serving
from benchmarks.sides import PATIENCE_S, QUIET, Ours, pcm_file
from benchmarks.vs_whisperx import CLIP_S, LIMIT, SAME, agreement, models_folder

LOCKED = Target(4.0)
LONE = Target(2.0, at_most=True)
PARTS = ("throughput", "lone")
LONG = "long.wav"


def client_of(server: Server) -> httpx.Client:
    """Connections to a server of ours, with its key."""
    headers = {"X-API-Key": server.keys[0]}
    return httpx.Client(base_url=server.url, headers=headers, timeout=PATIENCE_S, trust_env=False)


@contextmanager
def locked(model: str, path: Path) -> Iterator[httpx.Client]:
    """The baseline on a free port, loaded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--model", str(path), "--chunk", f"{MODELS[model].chunk_s:.0f}", "--port", str(port)]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.locked_server", *options]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, env=inherited() | QUIET, stdout=sys.stderr)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False)
    try:
        wait_for(lambda: client.get("/ready").is_success, READY_S, "the locked server")
        yield client
    finally:
        client.close()
        process.kill()
        process.wait()


def wait_for(there: Callable[[], bool], limit_s: float, what: str) -> None:
    """Until something is so; an error where that takes too long."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            if there():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{what}: not there after {limit_s:g} s")


def ask(client: httpx.Client, wav: bytes, **params: str) -> list[str]:
    """The window texts of one upload."""
    answer = client.post("/transcribe", params={"language": "en", **params}, content=wav)
    answer.raise_for_status()
    return [segment["text"] for segment in answer.json()["segments"]]


def at_once(client: httpx.Client, wavs: list[bytes], **params: str) -> tuple[float, list[list[str]]]:
    """Seconds until every client has its answer, and the answers."""
    began = time.perf_counter()
    with ThreadPoolExecutor(len(wavs)) as clients:
        texts = list(clients.map(lambda wav: ask(client, wav, **params), wavs))
    return time.perf_counter() - began, texts


def ours_params(model: str) -> dict[str, str]:
    """What the server is asked beside the language."""
    return {"model_size": model, "response_format": "verbose_json"}


def throughput(model: str, folder: Path, models_dir: Path, args: argparse.Namespace) -> tuple[list[Found], dict[str, Any]]:
    """Audio seconds per second of all three in every round, and the ratios."""
    paths = write_corpus(folder / "audio", [args.seconds] * args.clients)
    wavs, pcms = [path.read_bytes() for path in paths], [pcm_file(path) for path in paths]
    ours = Ours(folder / "data", models_dir)
    path = local_path(model, ours.settings)
    assert path is not None
    rates: dict[str, list[float]] = {"server": [], "limit": [], "locked": []}
    texts: dict[str, list[list[str]]] = {}
    audio_s = args.seconds * args.clients
    with ExitStack() as stack:
        stack.callback(ours.close)
        limit = ours.start_limit(model)
        stack.callback(limit.close)
        limit.wait()  # one after the other: who loads a model measures which encoder is the fastest
        limit.ask("choose", files=pcms)
        server = stack.enter_context(serving(folder, **server_settings(model, models_dir)))
        ours_client = stack.enter_context(client_of(server))
        baseline = stack.enter_context(locked(model, path))
        for client, params in ((ours_client, ours_params(model)), (baseline, {})):
            at_once(client, wavs[:2], **params)
        for number in range(args.rounds):
            seconds, texts["server"] = at_once(ours_client, wavs, **ours_params(model))
            rates["server"].append(audio_s / seconds)
            result = limit.ask("run", files=pcms)
            rates["limit"].append(audio_s / result["s"])
            texts["limit"] = result["texts"]
            seconds, texts["locked"] = at_once(baseline, wavs)
            rates["locked"].append(audio_s / seconds)
            last = {side: round(values[-1], 2) for side, values in rates.items()}
            print(f"{model}, round {number + 1}, seconds of audio per second: {last}", flush=True)
    head = f"{model} {args.clients} clients"
    common = {side: agreement(texts["server"], texts[side]) for side in ("limit", "locked")}
    print(f"{model}: words in common with the server's: {common}", flush=True)
    found = [
        Found(f"{head}, of the limit", per_round(rates["server"], rates["limit"]), LIMIT),
        Found(f"{head}, beside one lock", per_round(rates["server"], rates["locked"]), LOCKED),
        Found(f"{head}, words as of the limit", (common["limit"],), SAME),
    ]
    return found, {"audio_s_per_s": rates, "words_in_common": common}


def server_settings(model: str, models_dir: Path) -> dict[str, str]:
    """Where the models are; all else is the server's own choice."""
    return {"STENOPOOL_MODELS_DIR": str(models_dir), "STENOPOOL_WARM_MODELS": model}


def lone(model: str, folder: Path, models_dir: Path, args: argparse.Namespace) -> tuple[list[Found], dict[str, Any]]:
    """Latencies of the clip on the idle server and beside the long file, in turns."""
    folder.mkdir(parents=True, exist_ok=True)
    latencies: dict[str, list[list[float]]] = {"idle": [], "beside": []}
    with serving(folder, **server_settings(model, models_dir)) as server, client_of(server) as client:
        long, clip = write_corpus(server.data / "media", [args.long_s, CLIP_S])
        long.rename(long.with_name(LONG))
        wav = clip.read_bytes()
        right = ask(client, wav, **ours_params(model))
        for number in range(args.rounds):
            latencies["idle"].append([one_clip(client, model, wav, right) for _ in range(args.lone_clips)])
            with running(client, model) as still:
                latencies["beside"].append([one_clip(client, model, wav, right) for _ in range(args.lone_clips)])
                if not still():
                    raise SystemExit("the long file ended before the clips beside it: make it longer (--long-s)")
            last = {side: round(percentile(values[-1], 0.95), 3) for side, values in latencies.items()}
            print(f"{model}, round {number + 1}, p95 of the clip, s: {last}", flush=True)
    idle = [statistics.median(values) for values in latencies["idle"]]
    beside = [percentile(values, 0.95) for values in latencies["beside"]]
    return [Found(f"{model} lone clip, p95 beside a long file", per_round(beside, idle), LONE)], {"latency_s": latencies}


def one_clip(client: httpx.Client, model: str, wav: bytes, right: list[str]) -> float:
    """Seconds until the right answer."""
    began = time.perf_counter()
    said = ask(client, wav, **ours_params(model))
    if said != right:
        raise SystemExit(f"the clip says {said}, and said {right} on the idle server")
    return time.perf_counter() - began


@contextmanager
def running(client: httpx.Client, model: str) -> Iterator[Callable[[], bool]]:
    """The long file at work in the background; gives a function that tells whether it still is."""
    params = {"model_size": model, "language": "en", "audio_file": LONG, "wait": "false"}
    answer = client.post("/transcribe", params=params)
    answer.raise_for_status()
    address = f"/transcribe/{answer.json()['job_id']}"

    def view() -> dict[str, Any]:
        told: dict[str, Any] = client.get(f"{address}/status").raise_for_status().json()
        return told

    def at_work() -> bool:
        return bool(view()["status"] == "running")

    wait_for(lambda: view()["stage"] == "transcribe", READY_S, "the long file's first windows")  # they weigh more than VAD
    try:
        yield at_work
    finally:
        client.delete(address)
        wait_for(lambda: not at_work(), 60, "the long file's end")
        time.sleep(1)  # its last batch may still be at work


def run(args: argparse.Namespace, folder: Path) -> int:
    """All models; the exit status."""
    given = conditions()
    show(given)
    models_dir = models_folder(args.models_dir, args.models, folder / "models")
    found: list[Found] = []
    figures: dict[str, Any] = {}
    for model in args.models:
        for name, part in (("throughput", throughput), ("lone", lone)):
            if name in args.parts:
                (folder / model / name).mkdir(parents=True)
                more, figures[f"{model} {name}"] = part(model, folder / model / name, models_dir, args)
                found += more
                save(args.into, "clients", {**given, "ratios": [one.to_dict() for one in found], **figures})
    return finish(found)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo"], choices=MODELS)
    parser.add_argument("--models-dir", type=Path, help="folder of real or random models, one sub-folder per name")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each client's recording")
    parser.add_argument("--long-s", type=float, default=3 * 3600.0, help="length of the long file")
    parser.add_argument("--lone-clips", type=int, default=20, help="clips on the idle server, and beside the file, per round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--into", type=Path, help="folder for clients.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stenopool-clients-") as folder:
        sys.exit(run(args, Path(folder)))


if __name__ == "__main__":
    main()
