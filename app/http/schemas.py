"""What requests may say. Every option is checked here, and the errors name what is allowed."""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from app import catalogue
from app.errors import InputError, StenopoolError, UnknownModel
from app.http.word_times import WordTimes
from app.intake import Source
from app.jobs import TranscribeOptions, VadOptions
from app.languages import parse_language
from app.media.extract import ExtractOptions

P = TypeVar("P", bound=BaseModel)


ResponseFormat = Literal["json", "verbose_json", "text", "srt", "vtt", "tsv"]


class _Input(BaseModel):
    """Where the audio comes from, beside an uploaded file."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    audio_file: str | None = Field(
        None, description="A path inside the media folder, as /download, /extract-audio and /uploads return it."
    )
    url: str | None = Field(None, max_length=2048, description="An http(s) address, or a page that a yt-dlp extractor knows.")


class _Options(BaseModel):
    """How to transcribe."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    provider: Literal["local"] = Field("local", description="Who transcribes.")
    model_size: str | None = Field(None, description="Name of the model; see GET /models.")
    language: str | None = Field(None, description="Code or English name; detected when absent.")
    task: Literal["transcribe", "translate"] = Field("transcribe", description="translate gives English text.")
    response_format: ResponseFormat = Field("json", description="Form of the answer.")
    word_timestamps: WordTimes = Field(
        False,
        validate_default=True,
        description="Start and end of each word. fast: from Whisper's own attention, costs little. aligned, or true: by forced "
        "alignment, exact.",
    )
    initial_prompt: str | None = Field(None, max_length=2000, description="Text that precedes the audio: names, style.")
    hotwords: str | None = Field(None, max_length=500, description="Words to expect.")
    beam_size: int = Field(5, ge=1, le=10, description="Beams; 1 is greedy.")
    temperature: float = Field(0.0, ge=0.0, le=1.0, description="0: beam search; above: sampling.")
    vad_method: Literal["silero", "pyannote", "none"] = Field("silero", description="Finds the speech.")
    vad_onset: float = Field(0.5, gt=0.0, lt=1.0, description="Probability above which speech begins.")
    vad_offset: float = Field(0.363, gt=0.0, lt=1.0, description="Probability below which speech ends.")
    vad_min_silence: float = Field(
        0.5, ge=0.0, le=10.0, description="Shortest pause, in seconds, that ends a stretch of speech."
    )
    vad_speech_pad: float = Field(0.2, ge=0.0, le=2.0, description="Seconds added on both sides of speech.")
    chunk_size: float | None = Field(
        None, ge=1.0, le=30.0, description="Longest window, in seconds, that is decoded at once. Default: 30; demo 10."
    )

    @model_validator(mode="before")
    @classmethod
    def _aliases(cls, data: Any) -> Any:
        """``model`` means ``model_size``, as in other APIs."""
        if isinstance(data, dict) and "model" in data and "model_size" not in data:
            data = {**data, "model_size": data["model"]}
            del data["model"]
        return data

    @field_validator("language", "model_size", "initial_prompt", "hotwords", mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        return None if value == "" else value

    def options(self, default_model: str) -> TranscribeOptions:
        """What the job is asked for.

        Raises:
            UnknownModel, InputError: options that do not exist or do not go together.
        """
        model = self.model_size or default_model
        spec = catalogue.MODELS.get(model)
        if spec is None:
            known = ", ".join(catalogue.MODELS)
            raise UnknownModel(f"There is no model {model[:64]!r}. Allowed: {known}.", param="model_size")
        language = parse_language(self.language) if self.language and self.language != "auto" else None
        if spec.english_only and (language not in (None, "en") or self.task == "translate"):
            param = "task" if language in (None, "en") else "language"
            raise InputError(f"The model {model!r} knows only English.", param=param)
        if self.task == "translate" and self.word_timestamps:
            raise InputError("A translation has no word times: its words were not spoken.", param="word_timestamps")
        return TranscribeOptions(
            model=model,
            language="en" if spec.english_only else language,
            task=self.task,
            word_timestamps=self.word_timestamps,
            initial_prompt=self.initial_prompt,
            hotwords=self.hotwords,
            beam_size=self.beam_size,
            temperature=self.temperature,
            vad=VadOptions(
                method=self.vad_method,
                onset=self.vad_onset,
                offset=self.vad_offset,
                min_silence_s=self.vad_min_silence,
                speech_pad_s=self.vad_speech_pad,
                chunk_s=self.chunk_size or spec.chunk_s,
            ),
        )


class TranscribeParams(_Input, _Options):
    """Options of ``POST /transcribe``."""

    webhook_url: str | None = Field(
        None, max_length=2048, description="Is sent the status when an async job has ended, signed (Standard Webhooks)."
    )
    wait: bool = Field(True, description="false: answer at once with 202 and a job_id, as with Prefer: respond-async.")


class ResultParams(BaseModel):
    """Options of ``GET /transcribe/{job_id}``."""

    model_config = ConfigDict(extra="forbid")

    response_format: ResponseFormat | None = Field(None, description="Form of the answer; as first asked for when absent.")


class JobsParams(BaseModel):
    """Options of ``GET /jobs``."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] | None = Field(None, description="Only these.")
    limit: int = Field(50, ge=1, le=200, description="Jobs on a page.")
    after: str | None = Field(None, max_length=64, description="The job_id behind which the page begins.")


class BatchParams(_Options):
    """The body of ``POST /batches``: items, and options that hold for all of them."""

    items: list[Any] = Field(min_length=1, description="What is to be transcribed: objects with url or audio_file.")
    webhook_url: str | None = Field(
        None, max_length=2048, description="Is sent the status when the last item has ended, signed (Standard Webhooks)."
    )


class BatchItemParams(_Input, _Options):
    """One item: where its audio is, what its owner calls it, and options of its own."""

    name: str | None = Field(None, max_length=200, description="What you call it; comes back as label.")
    id: str | None = Field(None, max_length=200, description="The same, by another name.")

    @field_validator("name", "id", mode="before")
    @classmethod
    def _label(cls, value: Any) -> Any:
        """Numbers too; nothing that a database could not keep."""
        if isinstance(value, str) and not value.isprintable():
            raise ValueError("must be printable")
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class BatchViewParams(BaseModel):
    """Options of ``GET /batches/{batch_id}``."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] | None = Field(
        None, description="Only such items."
    )
    limit: int = Field(100, ge=0, le=1000, description="Items on a page.")
    after: int = Field(-1, ge=-1, description="The index behind which the page begins.")


class BatchesParams(BaseModel):
    """Options of ``GET /batches``."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100, description="Batches on a page.")
    after: str | None = Field(None, max_length=64, description="The batch_id behind which the page begins.")


class BatchDeleteParams(BaseModel):
    """Options of ``DELETE /batches/{batch_id}``."""

    model_config = ConfigDict(extra="forbid")

    forget: bool = Field(False, description="Delete the batch with all its results, too.")


class EstimateParams(_Options):
    """Options of ``POST /estimate``: those of ``/transcribe``, and a length instead of audio."""

    minutes: float | None = Field(None, gt=0, le=100_000, description="Length of the audio in minutes.")
    seconds: float | None = Field(None, gt=0, le=6_000_000, description="Length of the audio in seconds.")

    @property
    def audio_s(self) -> float:
        """Length of the audio, seconds.

        Raises:
            InputError: not given exactly once.
        """
        given = [value for value in (self.seconds, self.minutes and self.minutes * 60) if value]
        if len(given) != 1:
            raise InputError("Say how long the audio is: minutes= or seconds=.", param="minutes")
        return float(given[0])


class ExtractParams(_Input):
    """Options of ``POST /extract-audio``."""

    format: Literal["wav", "mp3", "m4a", "flac", "opus"] = Field("wav", description="Form of the result.")
    sample_rate: int | None = Field(None, description="Hz; as in the source when absent.")
    channels: int | None = Field(None, description="As in the source when absent.")
    start: float | None = Field(None, description="Seconds from the start of the source.")
    end: float | None = Field(None, description="Seconds from the start of the source.")

    def options(self) -> ExtractOptions:
        """What is to be made.

        Raises:
            InputError: a value that the format does not take.
        """
        try:
            return ExtractOptions(self.format, self.sample_rate, self.channels, self.start, self.end)
        except InputError as error:
            message, param = (re.sub(r"\b(start|end)_s\b", r"\1", text or "") for text in (error.message, error.param))
            raise InputError(message, param=param or None) from None


class DownloadParams(BaseModel):
    """Options of ``POST /download``."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=2048, description="An http(s) address, or a page that a yt-dlp extractor knows.")


def parse(model: type[P], fields: dict[str, str]) -> P:
    """``fields`` as checked options.

    Raises:
        InputError: the first thing that is wrong, with the field's name and the allowed values.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(str(part) for part in first["loc"])[:64]
    if first["type"] == "extra_forbidden":
        known = ", ".join(model.model_fields)
        raise InputError(f"There is no option {name!r}. Allowed: {known}.", param=name)
    if first["type"] == "missing":
        raise InputError(f"The option {name!r} is missing.", param=name)
    raise InputError(f"{name}: {first['msg']}.", param=name)


def source_of(params: _Input, uploaded: Any) -> Source:
    """The one place where the audio comes from.

    Raises:
        InputError: none was given, or more than one.
    """
    given = [name for name, value in (("file", uploaded), ("audio_file", params.audio_file), ("url", params.url)) if value]
    if len(given) != 1:
        problem = "Two sources were given: " + " and ".join(given) if given else "There is no audio in the request"
        raise InputError(f"{problem}. Send one of: a file, audio_file=, url=.", param=given[1] if given else "file")
    return Source(uploaded, params.audio_file, params.url)


def openapi_body(model: type[BaseModel], *, file: bool) -> dict[str, Any]:
    """OpenAPI of a route that takes ``model`` as query or as form, with an optional file."""
    schema = model.model_json_schema()
    properties = schema.get("properties", {})
    form = dict(properties)
    if file:
        form = {"file": {"type": "string", "format": "binary", "description": "The audio or video."}, **form}
    query = [
        {"name": name, "in": "query", "required": False, "description": detail.get("description", ""), "schema": detail}
        for name, detail in properties.items()
    ]
    content = {"multipart/form-data": {"schema": {"type": "object", "properties": form}}}
    return {"parameters": query, "requestBody": {"required": False, "content": content}}


ERROR_SCHEMA: dict[str, Any] = {
    "description": "The one shape of every error.",
    "content": {"application/json": {"example": StenopoolError().to_wire("2f6c0a9d1b7e4c55")}},
}
