"""Word times out of the decoder's attention: on the bundled model for its times, on made-up paths for its words."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app import catalogue
from app.errors import AlignerUnavailable
from app.formats import Transcript, render
from app.jobs import VadOptions
from app.work import Task
from tests.unit.engine.conftest import decoded, noise, speech

pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLES = catalogue.DEMO_MODEL.parent / "samples"
MakeTask = Callable[..., Task]


def transcribed(pipeline: Any, task: Task) -> list[dict[str, Any]]:
    segments: list[dict[str, Any]] = pipeline.transcribe(task, lambda *_: None, lambda: False)["segments"]
    return segments


def test_fast_times_are_about_where_the_words_are(pipeline: Any, task: MakeTask) -> None:
    apart: dict[str, list[float]] = {"truth": [], "aligned": []}
    for sample in json.loads((SAMPLES / "manifest.json").read_text()):
        pcm, chunk = decoded(SAMPLES / sample["file"]), VadOptions(chunk_s=10.0)
        fast, aligned = (
            [word for segment in transcribed(pipeline, task(pcm, vad=chunk, word_timestamps=kind)) for word in segment["words"]]
            for kind in ("fast", "aligned")
        )
        assert [word["word"] for word in fast] == [word["word"] for word in aligned]
        apart["aligned"] += [abs(a[e] - b[e]) for a, b in zip(fast, aligned, strict=True) for e in ("start", "end")]
        if [word["word"] for word in fast] == [word["word"] for word in sample["words"]]:
            apart["truth"] += [abs(a[e] - b[e]) for a, b in zip(fast, sample["words"], strict=True) for e in ("start", "end")]
    for kind, values in apart.items():
        print(f"\nfast times from {kind}: median {np.median(values):.3f} s, p95 {np.percentile(values, 95):.3f} s")
    assert len(apart["truth"]) > 50
    assert np.median(apart["truth"]) < 0.15
    assert np.percentile(apart["truth"], 95) < 0.6


@pytest.mark.parametrize("language", ["en", "ja"])
def test_fast_words_are_those_of_the_text_inside_their_segment_and_can_be_shown(
    pipeline: Any, task: MakeTask, language: str
) -> None:
    vad = VadOptions(method="none", chunk_s=3.0)
    segments = transcribed(pipeline, task(speech(7)[: 9 * 16_000], vad=vad, word_timestamps="fast", language=language))
    assert segments
    for segment in segments:
        assert "".join(word["word"] for word in segment["words"]) == "".join(segment["text"].split())
        before = segment["start"]
        for word in segment["words"]:
            assert before <= word["start"] <= word["end"] <= segment["end"]
            assert 0 <= word["score"] <= 1
            before = word["start"]
    data = {"task": "transcribe", "language": language, "language_probability": None, "duration": 9.0, "model": "demo"}
    transcript = Transcript.from_dict(data | {"segments": [one | {"id": n} for n, one in enumerate(segments)]})
    for name in ("verbose_json", "srt", "vtt"):
        assert render(transcript, name, words=True).body


def test_only_those_who_ask_get_words_out_of_a_shared_batch(engine: SimpleNamespace, pipeline: Any) -> None:
    from app.jobs import TranscribeOptions

    batch, window = engine.batch, engine.vad.Window(0.0, 3.0)
    pieces = [
        batch.Piece(
            batch.Speech(speech(number), TranscribeOptions("demo", word_timestamps=kind), language), window, lambda: None
        )
        for number, (kind, language) in enumerate(
            [("", "en"), ("fast", "en"), ("aligned", "en"), ("fast", None), ("fast", "de")]
        )
    ]
    together = batch.recognise(pipeline._model, pieces)
    assert [one.words is not None for one in together] == [False, True, False, True, True]
    for piece, one in zip(pieces, together, strict=True):
        alone = batch.recognise(pipeline._model, [piece])[0].words
        assert [word.word for word in alone or ()] == [word.word for word in one.words or ()]
        assert [word.start for word in alone or ()] == pytest.approx([word.start for word in one.words or ()], abs=0.021)


def test_window_without_text_has_no_words(engine: SimpleNamespace, pipeline: Any) -> None:
    tokenizer = pipeline._model.tokenizer_for("en", "transcribe")
    (encoded,) = pipeline._model.encoded([pipeline._model.log_mel(noise(1).astype(np.float32) / 32768)])
    nothing = engine.attention.Text(encoded, 16_000, (), tokenizer)
    assert engine.attention.words_of(pipeline._model.model, [nothing]) == [()]
    assert engine.attention.words_of(pipeline._model.model, []) == []


@pytest.mark.parametrize(
    ("samples", "count"), [(1, 3), (100, 3), (1600, 40), (480_000, 1), (32_000, 443), (32_000, 444), (32_000, 500)]
)
def test_any_length_of_audio_and_text_gives_every_word_its_times_in_order(
    engine: SimpleNamespace, pipeline: Any, samples: int, count: int
) -> None:
    tokenizer = pipeline._model.tokenizer_for("en", "transcribe")
    (encoded,) = pipeline._model.encoded([pipeline._model.log_mel(np.zeros(16_000, np.float32))])
    texts = [engine.attention.Text(encoded, samples, tokenizer.encode(" one") * number, tokenizer) for number in (count, 5)]
    found, other = engine.attention.words_of(pipeline._model.model, texts)
    assert [len(found), len(other)] == [count, 5]
    edges = [edge for word in found for edge in (word.start, word.end)]
    assert edges == sorted(edges)
    assert edges[-1] <= max(samples / 16_000 + 0.02, 0.16)


def words(
    engine: SimpleNamespace, pipeline: Any, text: str, frames: list[int], language: str = "en"
) -> list[tuple[str, float, float]]:
    """The words of ``text`` whose every token takes so many frames; the end of the text takes the last number."""
    tokenizer = pipeline._model.tokenizer_for(language, "transcribe")
    tokens = tokenizer.encode(text)
    assert len(frames) == len(tokens) + 1
    rows = np.repeat(np.arange(len(frames)), frames)
    path = SimpleNamespace(
        alignments=list(zip(rows.tolist(), range(len(rows)), strict=True)), text_token_probs=[0.5] * len(tokens)
    )
    found = engine.attention._words(path, engine.attention.Text(np.zeros(0), 0, tokens, tokenizer))
    assert all(word.score == 0.5 for word in found)
    return [(word.word, round(word.start, 3), round(word.end, 3)) for word in found]


def test_signs_belong_to_the_words_they_touch(engine: SimpleNamespace, pipeline: Any) -> None:
    tokens = pipeline._model.tokenizer_for("en", "transcribe").encode(" Well-known, (yes).")
    found = words(engine, pipeline, " Well-known, (yes).", [10] * (len(tokens) + 1))
    assert [word for word, _, _ in found] == ["Well-known,", "(yes)."]


def test_a_word_begins_where_the_one_before_it_ends(engine: SimpleNamespace, pipeline: Any) -> None:
    assert words(engine, pipeline, " one two three", [10, 20, 30, 40]) == [
        ("one", 0.0, 0.2),
        ("two", 0.2, 0.6),
        ("three", 0.6, 1.2),
    ]


def test_a_pause_behind_a_sentence_belongs_to_neither(engine: SimpleNamespace, pipeline: Any) -> None:
    found = words(engine, pipeline, " one two. three", [10, 10, 5, 100, 5])
    assert found[:2] == [("one", 0.0, 0.2), ("two.", 0.2, 0.4)]
    assert found[2] == ("three", 2.1, 2.5)


def test_words_of_a_language_without_spaces_are_its_characters(engine: SimpleNamespace, pipeline: Any) -> None:
    tokens = pipeline._model.tokenizer_for("ja", "transcribe").encode("私は東京に行く。")
    found = words(engine, pipeline, "私は東京に行く。", [10] * (len(tokens) + 1), "ja")
    assert "".join(word for word, _, _ in found) == "私は東京に行く。"
    assert len(found) >= 2


def test_a_model_without_alignment_heads_refuses_and_names_the_other_way(
    engine: SimpleNamespace, pipeline: Any, tmp_path: Any
) -> None:
    for file in catalogue.DEMO_MODEL.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    config = json.loads((catalogue.DEMO_MODEL / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if name != "alignment_heads"})
    )
    model = engine.asr.WindowModel(str(tmp_path), device="cpu", compute_type="int8", local_files_only=True)
    (encoded,) = model.encoded([model.log_mel(speech(0).astype(np.float32) / 32768)])
    tokenizer = model.tokenizer_for("en", "transcribe")
    with pytest.raises(AlignerUnavailable) as error:
        engine.attention.words_of(model.model, [engine.attention.Text(encoded, 48_000, tokenizer.encode(" one"), tokenizer)])
    assert "word_timestamps=aligned" in (error.value.hint or "")
    assert str(tmp_path) not in error.value.message + (error.value.hint or "")
