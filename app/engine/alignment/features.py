"""wav2vec 2.0 for OpenVINO in two parts: the feature encoder, half a second of audio at a time, and the transformer after it.

Behind the first convolution of wav2vec2-base 27 s of audio are 177 MB, and more than half of the time goes into moving them;
half a second stays in the processor's cache. A convolution becomes matrix products with the frames of its stride, so that
OpenVINO can round what goes into it while it computes, as everywhere else.

The group normalisation behind the first convolution is over all of the audio. What a channel's mean and variance are follows
from the mean and the covariance of the samples that the convolution is given at a time, so they are known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino
import torch
import torchaudio
from torch.nn import functional
from transformers import Wav2Vec2ForCTC

from app.engine.alignment.quantize import quantized

PIECE = 25
"""Frames that are computed at once: half a second."""
EXAMPLE_FRAMES = 24
"""Length at which the transformer is traced; what is made of it takes any."""


@dataclass(frozen=True)
class Geometry:
    """Samples: ``window`` that a frame is made of and ``hop`` to the next one; ``kernel`` and ``stride`` of the first layer."""

    window: int
    hop: int
    kernel: int
    stride: int

    @property
    def piece(self) -> int:
        """Samples of :data:`PIECE` frames."""
        return self.window + self.hop * (PIECE - 1)


@dataclass(frozen=True)
class Converted:
    """``encoder``: samples of a piece, and mean and spread as :func:`statistics` has them if it normalises over all audio, to
    features (1, :data:`PIECE`, channels). ``transformer``: features (1, frames, channels) to logits (1, frames, labels)."""

    encoder: openvino.Model
    transformer: openvino.Model
    geometry: Geometry

    def quantized(self) -> Converted:
        """The same with weights in int8."""
        return Converted(quantized(self.encoder), quantized(self.transformer), self.geometry)


def convert(model: torch.nn.Module) -> Converted:
    """The two parts of an aligner as WhisperX loads it.

    Raises:
        TypeError: the model is of another kind.
        ValueError: its layers are none that this knows.
        Exception: OpenVINO cannot convert it; of many kinds.
    """
    owner, given = _owner(model)
    layers = owner.feature_extractor.conv_layers
    sizes = [(layer.conv.kernel_size[0], layer.conv.stride[0]) for layer in layers]
    window = 1 + sum((kernel - 1) * math.prod(stride for _, stride in sizes[:at]) for at, (kernel, _) in enumerate(sizes))
    geometry = Geometry(window, math.prod(stride for _, stride in sizes), *sizes[0])
    encoder = _converted(
        _FeatureEncoder(layers, geometry.piece),
        (torch.zeros(geometry.piece), torch.zeros(geometry.kernel), torch.eye(geometry.kernel)),
        [[geometry.piece], [geometry.kernel], [geometry.kernel, geometry.kernel]],
    )
    channels = layers[-1].conv.out_channels
    whole, owner.feature_extractor = owner.feature_extractor, given
    try:
        transformer = _converted(Logits(model), torch.zeros(1, EXAMPLE_FRAMES, channels), [[1, -1, channels]])
    finally:
        owner.feature_extractor = whole
    return Converted(encoder, transformer, geometry)


def statistics(audio: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """What the first layer is given over all of ``audio``: its mean (kernel,), and a square matrix whose product with itself,
    transposed, is its covariance."""
    given = np.lib.stride_tricks.sliding_window_view(audio, geometry.kernel)[:: geometry.stride].astype(np.float64)
    mean = given.mean(0)
    values, vectors = np.linalg.eigh(given.T @ given / len(given) - np.outer(mean, mean))
    spread = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    return mean.astype(np.float32), spread.astype(np.float32)


def pieces(audio: np.ndarray, geometry: Geometry) -> Iterator[tuple[np.ndarray, int]]:
    """Samples for the encoder, and how many of the frames that it makes of them are of ``audio``; the last is filled up."""
    frames = (len(audio) - geometry.window) // geometry.hop + 1
    for first in range(0, frames, PIECE):
        piece = audio[first * geometry.hop :][: geometry.piece]
        yield np.pad(piece, (0, geometry.piece - len(piece))), min(PIECE, frames - first)


class Logits(torch.nn.Module):
    """A model of either library as one that gives only its logits, (1, frames, labels)."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Of samples (1, samples)."""
        answer = self.model(audio)
        logits: torch.Tensor = answer[0] if isinstance(answer, tuple) else answer.logits
        return logits


class _Given(torch.nn.Module):
    """In the place of transformers' feature encoder: what the model is given are its features."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.transpose(1, 2)


class _GivenWithLengths(torch.nn.Module):
    """The same for torchaudio, which has lengths beside them."""

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        return features, lengths


class _FeatureEncoder(torch.nn.Module):
    def __init__(self, layers: Any, samples: int) -> None:
        super().__init__()
        made: list[_Layer] = []
        for number, layer in enumerate(layers):
            over_all = not number and isinstance(getattr(layer, "layer_norm", None), torch.nn.GroupNorm)
            made.append((_FirstLayer if over_all else _Layer)(layer, samples))
            samples = made[-1].rows
        self.layers = torch.nn.ModuleList(made)

    def forward(self, samples: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        frames = samples[:, None]
        for layer in self.layers:
            frames = layer(frames, mean, spread)
        return frames[None]


class _Layer(torch.nn.Module):
    """A convolution, the normalisation of each frame, if there is one, and the activation, of (frames, channels)."""

    def __init__(self, layer: Any, frames: int) -> None:
        super().__init__()
        conv: torch.nn.Conv1d = layer.conv
        self.norm: Any = getattr(layer, "layer_norm", None)
        (self.kernel,), (self.stride,), self.channels = conv.kernel_size, conv.stride, conv.in_channels
        self.rows = (frames - self.kernel) // self.stride + 1
        self.weight = conv.weight.detach().permute(0, 2, 1).flatten(1)  # a row is frame after frame
        self.bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.activation = getattr(layer, "activation", functional.gelu)
        self._check(conv)

    def _check(self, conv: torch.nn.Conv1d) -> None:
        plain = (conv.padding, conv.dilation, conv.groups) == ((0,), (1,), 1) and self.kernel >= self.stride
        if not plain or not self._knows_norm():
            raise ValueError(f"a layer of a kind that is not known: {conv}, {self.norm}")

    def _knows_norm(self) -> bool:
        return isinstance(self.norm, torch.nn.LayerNorm | None)

    def given(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """What the rows of ``weight`` are multiplied with, (rows, ...) each: whole strides, then single frames."""
        whole = self.kernel // self.stride * self.stride
        strides = [frames[at : at + self.rows * self.stride] for at in range(0, whole, self.stride)]
        single = [frames[at : at + (self.rows - 1) * self.stride + 1 : self.stride] for at in range(whole, self.kernel)]
        return [part.reshape(self.rows, self.stride * self.channels) for part in strides] + single

    def forward(self, frames: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        parts = self.given(frames)
        weights = torch.split(self.weight, [part.shape[1] for part in parts], 1)
        found = self.bias + sum(functional.linear(part, weight) for part, weight in zip(parts, weights, strict=True))
        if self.norm is not None:
            found = functional.layer_norm(found, (len(self.bias),), self.norm.weight, self.norm.bias, self.norm.eps)
        activated: torch.Tensor = self.activation(found)
        return activated


class _FirstLayer(_Layer):
    """One whose channels are normalised over all of the audio: that becomes a part of its weight and its bias."""

    def _knows_norm(self) -> bool:
        return bool(self.norm.num_groups == len(self.bias))

    def forward(self, frames: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        variance = (self.weight @ spread.T).square().sum(1)
        gain = self.norm.weight / (variance + self.norm.eps).sqrt()
        bias = self.norm.bias - gain * (self.weight @ mean)
        activated: torch.Tensor = self.activation(
            functional.linear(torch.cat(self.given(frames), 1), self.weight * gain[:, None], bias)
        )
        return activated


def _owner(model: torch.nn.Module) -> tuple[Any, torch.nn.Module]:
    """The module that holds the feature encoder, and what may stand in its place."""
    if isinstance(model, Wav2Vec2ForCTC):
        return model.wav2vec2, _Given()
    if isinstance(model, torchaudio.models.Wav2Vec2Model):
        return model, _GivenWithLengths()
    raise TypeError(f"an aligner of a kind that is not known: {type(model).__name__}")


def _converted(
    module: torch.nn.Module, example: torch.Tensor | tuple[torch.Tensor, ...], shapes: list[list[int]]
) -> openvino.Model:
    with torch.no_grad():
        return openvino.convert_model(
            module.eval(), example_input=example, input=[openvino.PartialShape(shape) for shape in shapes]
        )
