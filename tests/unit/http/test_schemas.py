"""Options: every bound, every name, every alias."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from app import catalogue
from app.errors import InputError, UnknownModel
from app.formats import FORMATS
from app.http import schemas
from app.http.schemas import DownloadParams, ExtractParams, TranscribeParams, parse, source_of
from app.jobs import TranscribeOptions, VadOptions


def options(default: str = "demo", **fields: Any) -> TranscribeOptions:
    return parse(TranscribeParams, fields).options(default)


def refused(schema: Any = TranscribeParams, /, **fields: str) -> InputError:
    with pytest.raises(InputError) as error:
        parse(schema, fields).options("demo")
    return error.value


def test_nothing_given_means_the_defaults_of_the_job() -> None:
    assert options() == TranscribeOptions("demo", vad=VadOptions(chunk_s=10.0))


def test_every_option_reaches_the_job() -> None:
    found = options(
        model_size="large-v3",
        language="German",
        word_timestamps="true",
        initial_prompt="p",
        hotwords="h",
        beam_size="3",
        temperature="0.4",
        vad_method="pyannote",
        vad_onset="0.6",
        vad_offset="0.2",
        vad_min_silence="1.5",
        vad_speech_pad="0.1",
        chunk_size="20",
    )
    assert (found.model, found.language, found.word_timestamps) == ("large-v3", "de", "aligned")
    assert (found.initial_prompt, found.hotwords, found.beam_size, found.temperature) == ("p", "h", 3, 0.4)
    assert vars(found.vad) == {
        "method": "pyannote",
        "onset": 0.6,
        "offset": 0.2,
        "min_silence_s": 1.5,
        "speech_pad_s": 0.1,
        "chunk_s": 20.0,
    }


@pytest.mark.parametrize(
    ("said", "meant"),
    [("true", "aligned"), (True, "aligned"), ("aligned", "aligned"), ("fast", "fast"), ("false", ""), ("0", ""), (False, "")],
)
def test_word_times_are_off_on_or_of_a_kind(said: Any, meant: str) -> None:
    assert options(word_timestamps=said).word_timestamps == meant


def test_word_times_of_an_unknown_kind_are_refused_naming_the_kinds() -> None:
    assert "must be false, true, fast or aligned" in refused(word_timestamps="exact").message


@pytest.mark.parametrize("kind", ["fast", "aligned", "true"])
def test_a_translation_has_no_word_times_of_any_kind(kind: str) -> None:
    assert refused(task="translate", word_timestamps=kind).param == "word_timestamps"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("beam_size", ("1", "10"), ("0", "11", "1.5", "x", "")),
        ("temperature", ("0", "1"), ("-0.1", "1.1", "nan", "inf", "hot")),
        ("vad_onset", ("0.01", "0.99"), ("0", "1", "-1", "nan")),
        ("vad_offset", ("0.01", "0.99"), ("0", "1", "nan")),
        ("vad_min_silence", ("0", "10"), ("-1", "10.1", "nan")),
        ("vad_speech_pad", ("0", "2"), ("-0.1", "2.1", "nan")),
        ("chunk_size", ("1", "30"), ("0.9", "30.1", "nan", "-inf")),
        ("word_timestamps", ("true", "1", "no", "fast", "aligned"), ("maybe", "2", "", "FAST")),
        ("initial_prompt", ("", "p" * 2000), ("p" * 2001,)),
        ("hotwords", ("", "h" * 500), ("h" * 501,)),
        ("url", ("http://x",), ("http://" + "x" * 2048,)),
    ],
)
def test_an_option_takes_its_bounds_and_refuses_what_lies_beyond_naming_itself(
    name: str, good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    for value in good:
        options(**{name: value})
    for value in bad:
        error = refused(**{name: value})
        assert error.param == name, value
        assert name in error.message
        assert len(error.message) < 300


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("provider", ("local",)),
        ("task", ("transcribe", "translate")),
        ("response_format", FORMATS),
        ("vad_method", ("silero", "pyannote", "none")),
    ],
)
def test_a_choice_takes_each_allowed_value_and_names_them_all_when_refused(name: str, allowed: tuple[str, ...]) -> None:
    for value in allowed:
        options(**{name: value})
    for wrong in ("", "Nonsense", allowed[0].upper()):
        error = refused(**{name: wrong})
        assert error.param == name
        assert all(f"'{value}'" in error.message for value in allowed)


def test_response_formats_are_those_that_can_be_rendered() -> None:
    assert get_args(schemas.ResponseFormat) == FORMATS


def test_every_known_model_is_taken_under_both_names_and_an_unknown_one_names_them_all() -> None:
    for name in catalogue.MODELS:
        assert options(model_size=name).model == options(model=name).model == name
    for field in ("model", "model_size"):
        error = refused(**{field: "../../etc/passwd"})
        assert isinstance(error, UnknownModel)
        assert error.param == "model_size"
        assert all(name in error.message for name in catalogue.MODELS)


def test_a_long_model_name_is_not_echoed_whole() -> None:
    assert len(refused(model="x" * 10_000).message) < 500


def test_both_names_of_the_model_at_once_are_refused() -> None:
    assert refused(model="tiny", model_size="base").param == "model"


@pytest.mark.parametrize("name", ["language", "model_size", "initial_prompt", "hotwords"])
def test_an_empty_text_counts_as_absent(name: str) -> None:
    assert options(**{name: ""}) == TranscribeOptions("demo", vad=VadOptions(chunk_s=10.0))


@pytest.mark.parametrize("auto", ["auto", ""])
def test_language_is_detected_where_it_is_auto_or_empty(auto: str) -> None:
    assert options(language=auto).language is None


def test_an_unknown_language_is_refused_with_examples() -> None:
    error = refused(language="klingon")
    assert error.param == "language"
    assert "en" in error.hint


@pytest.mark.parametrize("model", ["tiny.en", "medium.en"])
def test_english_models_speak_only_english(model: str) -> None:
    assert options(model=model).language == "en"
    assert options(model=model, language="english").language == "en"
    assert refused(model=model, language="de").param == "language"
    assert refused(model=model, task="translate").param == "task"


def test_an_english_model_refuses_to_translate_blaming_the_task_even_where_english_is_named() -> None:
    assert refused(model="tiny.en", task="translate", language="en").param == "task"


def test_a_translation_has_no_word_times() -> None:
    assert refused(task="translate", word_timestamps="true").param == "word_timestamps"
    assert options(task="translate").task == "translate"


def test_an_unknown_option_is_refused_naming_the_known_ones() -> None:
    for schema in (TranscribeParams, ExtractParams, DownloadParams):
        error = refused(schema, **{"url": "http://x", "nonsense" * 20: "1"})
        assert error.message.count("nonsense") < 10
        assert "url" in error.message


def test_exactly_one_source_is_needed() -> None:
    none = parse(TranscribeParams, {})
    both = parse(TranscribeParams, {"audio_file": "a", "url": "http://x"})
    one = parse(TranscribeParams, {"audio_file": "a"})
    with pytest.raises(InputError, match="no audio"):
        source_of(none, None)
    with pytest.raises(InputError, match="audio_file and url"):
        source_of(both, None)
    with pytest.raises(InputError, match="file and audio_file"):
        source_of(one, Path("upload"))
    assert source_of(one, None).audio_file == "a"
    assert source_of(none, Path("upload")).upload == Path("upload")
    assert source_of(parse(TranscribeParams, {"url": "http://x", "audio_file": ""}), None).url == "http://x"


def test_download_needs_an_address() -> None:
    error = refused(DownloadParams)
    assert error.param == "url"
    assert "missing" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"format": "exe"}, "format"),
        ({"sample_rate": "1"}, "sample_rate"),
        ({"channels": "0"}, "channels"),
        ({"format": "mp3", "channels": "3"}, "channels"),
        ({"start": "-1"}, "start"),
        ({"end": "nan"}, "end"),
        ({"start": "2", "end": "1"}, "end"),
    ],
)
def test_extraction_refuses_what_the_format_cannot_hold_under_the_name_the_caller_used(
    fields: dict[str, str], param: str
) -> None:
    with pytest.raises(InputError) as error:
        parse(ExtractParams, fields).options()
    assert error.value.param == param
    assert "start_s" not in error.value.message
    assert "end_s" not in error.value.message


def test_messages_hold_no_address_of_a_library_and_no_class_name() -> None:
    for fields in ({"beam_size": "x"}, {"task": "x"}, {"nope": "x"}):
        message = refused(**fields).message
        assert "pydantic" not in message
        assert "http" not in message
        assert "TranscribeParams" not in message


def test_openapi_lists_every_option_as_query_and_as_form_field() -> None:
    described = schemas.openapi_body(TranscribeParams, file=True)
    names = {parameter["name"] for parameter in described["parameters"]}
    form = described["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert names == set(TranscribeParams.model_fields)
    assert set(form) == names | {"file"}
    assert (
        "file"
        not in schemas.openapi_body(DownloadParams, file=False)["requestBody"]["content"]["multipart/form-data"]["schema"][
            "properties"
        ]
    )
