"""The audio of a file as a new file, in every format and part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.errors import InputError, NotMedia, TooLarge, TooLong
from app.media.extract import FORMATS, ExtractOptions, extract
from app.media.probe import probe
from app.settings import Settings

VIDEO = ("-f", "lavfi", "-i", "testsrc=size=160x120:rate=5:duration=3", "-f", "lavfi", "-i", "sine=frequency=440:duration=3")
SURROUND = ("-f", "lavfi", "-i", "aevalsrc=0|0|0|0|0|0:s=48000:d=3:c=5.1(side)")
CODECS = {"wav": "pcm_s16le", "mp3": "mp3", "m4a": "aac", "flac": "flac", "opus": "opus"}


@pytest.fixture
def video(media: Callable[..., Path]) -> Path:
    return media("video.mp4", "-c:v", "libx264", "-c:a", "aac", "-ar", "44100", "-metadata", "title=secret", source=VIDEO)


@pytest.mark.parametrize("name", FORMATS)
async def test_format_is_made_from_a_video(name: Any, video: Path, tmp_path: Path, settings: Settings) -> None:
    made = await extract(video, tmp_path / "out", ExtractOptions(name), settings)
    info = await probe(made.path, settings)
    assert info.codec == CODECS[name]
    assert not info.has_video
    assert made.duration_s == pytest.approx(3.0, abs=0.12)
    assert (made.sample_rate, made.channels, made.format) == (48_000 if name == "opus" else 44_100, 1, name)
    assert made.size_bytes == made.path.stat().st_size
    assert b"secret" not in made.path.read_bytes()


@pytest.mark.parametrize("name", FORMATS)
async def test_rate_and_channels_are_as_asked(name: Any, video: Path, tmp_path: Path, settings: Settings) -> None:
    made = await extract(video, tmp_path / "out", ExtractOptions(name, sample_rate=16_000, channels=2), settings)
    # An opus file always plays at 48 kHz; its rate is that of its input.
    assert (made.sample_rate, made.channels) == (48_000 if name == "opus" else 16_000, 2)


@pytest.mark.parametrize("name", FORMATS)
async def test_surround_is_kept_where_the_format_has_it_and_else_mixed_down(
    name: Any, media: Callable[..., Path], tmp_path: Path, settings: Settings
) -> None:
    made = await extract(media("side.flac", source=SURROUND), tmp_path / "out", ExtractOptions(name), settings)
    assert made.channels == (2 if name in ("mp3", "opus") else 6)


@pytest.mark.parametrize(
    ("start", "end", "length"), [(1.0, 2.5, 1.5), (None, 0.75, 0.75), (2.0, None, 1.0), (1.0, 99.0, 2.0), (0.0, None, 3.0)]
)
async def test_part_is_cut_to_the_sample(
    start: float | None, end: float | None, length: float, media: Callable[..., Path], tmp_path: Path, settings: Settings
) -> None:
    options = ExtractOptions("wav", start_s=start, end_s=end)
    made = await extract(media("tone.flac"), tmp_path / "out", options, settings)
    assert made.duration_s == pytest.approx(length, abs=0.011)


@pytest.mark.parametrize("name", FORMATS)
async def test_part_behind_the_end_is_not_media(
    name: Any, media: Callable[..., Path], tmp_path: Path, settings: Settings
) -> None:
    with pytest.raises(NotMedia):
        await extract(media("tone.flac"), tmp_path / "out", ExtractOptions(name, start_s=10), settings)
    assert not (tmp_path / "out").exists()


async def test_text_is_not_media(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "in").write_text("hello")
    with pytest.raises(NotMedia):
        await extract(tmp_path / "in", tmp_path / "out", ExtractOptions(), settings)


async def test_source_over_the_cap_is_too_long(media: Callable[..., Path], tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(TooLong):
        await extract(media("tone.flac"), tmp_path / "out", ExtractOptions(), settings.model_copy(update={"max_audio_s": 2.0}))


async def test_source_that_hides_its_length_is_too_long_too(
    media: Callable[..., Path], tmp_path: Path, settings: Settings
) -> None:
    hidden = media("hidden.webm", "-c:a", "libopus", "-f", "webm", "-live", "1")
    with pytest.raises(TooLong):
        await extract(hidden, tmp_path / "out", ExtractOptions("flac"), settings.model_copy(update={"max_audio_s": 2.0}))
    assert not (tmp_path / "out").exists()


async def test_result_over_the_size_cap_is_too_large(media: Callable[..., Path], tmp_path: Path, settings: Settings) -> None:
    options = ExtractOptions("wav", sample_rate=192_000, channels=8)
    with pytest.raises(TooLarge):
        await extract(media("tone.flac"), tmp_path / "out", options, settings.model_copy(update={"max_download_mb": 1}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"format": "exe"}, "format"),
        ({"format": "mp3", "sample_rate": 96_000}, "sample_rate"),
        ({"format": "opus", "sample_rate": 44_100}, "sample_rate"),
        ({"format": "wav", "sample_rate": 1_000_000}, "sample_rate"),
        ({"format": "wav", "sample_rate": 1}, "sample_rate"),
        ({"format": "mp3", "channels": 3}, "channels"),
        ({"channels": 0}, "channels"),
        ({"start_s": -1}, "start_s"),
        ({"start_s": float("nan")}, "start_s"),
        ({"end_s": float("inf")}, "end_s"),
        ({"start_s": 2, "end_s": 2}, "end_s"),
        ({"end_s": 0}, "end_s"),
    ],
)
def test_impossible_options_name_the_parameter(values: dict[str, Any], param: str) -> None:
    with pytest.raises(InputError) as caught:
        ExtractOptions(**values)
    assert caught.value.param == param
