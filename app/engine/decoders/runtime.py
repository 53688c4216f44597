"""Running the decoder of :mod:`app.engine.decoders.graph` with OpenVINO."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino

from app.engine.decoders.graph import FIXED, PER_LAYER, POSITIONS, Sizes
from app.engine.decoders.past import MASKED, Past
from app.engine.decoders.search import BeamSearch
from app.engine.encoders.int8 import group_size
from app.engine.encoders.runtime import FLOAT32, limits

MOST_BEAMS = 5
SHORT, ROUND = (1, 4), 32
"""Tokens of a prompt that steps are compiled for: so many, or a multiple."""
_KINDS = (np.int8, np.float32, np.int8, np.float32)


@dataclass(frozen=True)
class Found:
    """What a window says. ``logprob``: sum of the natural log-probabilities of ``tokens`` and of the one that ends the text."""

    tokens: tuple[int, ...]
    logprob: float
    no_speech_prob: float


@dataclass(frozen=True)
class Words:
    """Tokens with a meaning of their own: ``start`` of a transcript, ``end`` of a text, ``no_speech``, those of ``languages``.

    ``never`` are not written, nor are those of ``not_first`` at the beginning of a text.
    """

    start: int
    end: int
    no_speech: int
    languages: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    not_first: tuple[int, ...] = ()


class Memory:
    """What the decoder looks at for each window of a batch; filled by :meth:`Decoder.remember`, window by window."""

    def __init__(self, sizes: Sizes, windows: int) -> None:
        values = (sizes.heads, POSITIONS, sizes.head_width)
        shapes = values, (sizes.heads, 1, POSITIONS), values, (sizes.heads, 1, sizes.head_width)
        self.parts = [np.empty((sizes.layers, windows, *shape), kind) for shape, kind in zip(shapes, _KINDS, strict=True)]

    def only(self, windows: Sequence[int]) -> Memory:
        """That of some of the windows: in the same place where they follow each other, otherwise a copy."""
        first, end = windows[0], windows[0] + len(windows)
        if list(windows) != list(range(first, end)):
            return Memory.joined([(self, window) for window in windows])
        chosen = object.__new__(Memory)
        chosen.parts = [part[:, first:end] for part in self.parts]
        return chosen

    @staticmethod
    def joined(windows: Sequence[tuple[Memory, int]]) -> Memory:
        """A copy of some windows of some memories, in this order."""
        made = object.__new__(Memory)
        made.parts = [np.stack([memory.parts[n][:, window] for memory, window in windows], 1) for n in range(len(_KINDS))]
        return made

    def forget(self, window: int, last: int) -> None:
        """The window's place is taken by that of the ``last`` one."""
        for part in self.parts:
            part[:, window] = part[:, last]


class Decoder:
    """A decoder for ``calls`` threads at once and the express, on ``threads`` threads each."""

    def __init__(
        self, sizes: Sizes, bias: np.ndarray, models: Sequence[openvino.Model], words: Words, calls: int, threads: int
    ) -> None:
        self.sizes, self.words, self._bias = sizes, words, bias
        options = limits(calls + 1, threads) | FLOAT32  # one for the express
        options |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group_size(sizes.width))}
        self._memory, self._step = (openvino.Core().compile_model(model, "CPU", options) for model in models)

    def remember(self, encoded: np.ndarray, memory: Memory, window: int) -> None:
        """Fill the place of one window from its encoder output, (1500, width)."""
        request = self._memory.create_infer_request()
        for layer in range(self.sizes.layers):
            for number, part in enumerate(memory.parts):
                place = openvino.Tensor(part[layer, window : window + 1], shared_memory=True)
                request.set_output_tensor(len(memory.parts) * layer + number, place)
        request.infer({0: np.ascontiguousarray(encoded[None])}, share_inputs=True, share_outputs=True)

    def languages(self, memory: Memory) -> list[list[tuple[int, float]]]:
        """Of each window, tokens of all languages and their probabilities, the likeliest first."""
        run = _Run(self._step.create_infer_request(), self.sizes, memory, Past(self.sizes, 1))
        run.prompt([[self.words.start]] * memory.parts[0].shape[1], [0])
        among = np.array(self.words.languages)
        found = []
        for logits in run.logits()[:, 0]:
            chances = _softmax((logits - self._bias)[among])
            order = np.argsort(-chances, kind="stable")
            found.append([(int(among[at]), float(chances[at])) for at in order])
        return found

    def generate(self, memory: Memory, prompts: Sequence[Sequence[int]], beam_size: int, max_length: int) -> list[Found]:
        """The best text of each window. All prompts are equally long and have the start at the same place.

        ``memory`` is used up. ``max_length``: tokens, prompt and text together, that the decoder has positions for; a text
        takes half of them at most, as with CTranslate2.
        """
        past = Past(self.sizes, beam_size)
        run = _Run(self._step.create_infer_request(), self.sizes, memory, past)
        length = len(prompts[0])
        start = length - 1 - list(reversed(prompts[0])).index(self.words.start)  # a caller's words may have one, too
        run.prompt(prompts, [start, length - 1])
        silent = [float(_softmax(logits - self._bias)[self.words.no_speech]) for logits in run.logits()[:, 0]]
        scores, tokens = self._first(run.logits()[:, 1], 2 * beam_size)
        searches = [BeamSearch(beam_size, self.words.end) for _ in prompts]
        active = list(range(len(prompts)))
        most = min(max_length // 2, max_length - (length - 1))
        for step in range(most):
            if step:
                written = np.array([[beam.tokens[-1] for beam in searches[window].beams] for window in active])
                run.beams(written, length - 1 + step)
                scores, tokens = run.best()
            going = []
            for place, window in enumerate(active):
                rows = searches[window].advance(scores[place], tokens[place], last=step + 1 == most)
                if rows is not None:
                    past.follow(place, rows)
                    going.append(place)
            for place in reversed([place for place in range(len(active)) if place not in going]):
                run.forget(place)
                active[place] = active[-1]
                active.pop()
            if not active:
                break
        best = [search.best() for search in searches]
        return [Found(one.tokens, one.logprob, chance) for one, chance in zip(best, silent, strict=True)]

    def logprobs(self, memory: Memory, prompt: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """Natural log-probability of each token of a text, and of its end, after a prompt; for one window."""
        whole, length = [*prompt, *tokens], len(prompt)
        run = _Run(self._step.create_infer_request(), self.sizes, memory, Past(self.sizes, 1))
        run.prompt([whole], range(length - 1, len(whole)))
        logits = run.logits()[0].copy()
        logits[0, list(self.words.not_first)] = MASKED
        each = _log_softmax(logits)
        found: np.ndarray = each[range(len(tokens) + 1), [*tokens, self.words.end]]
        return found

    def _first(self, logits: np.ndarray, candidates: int) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest words at the beginning of each window's text, (windows, 1, candidates)."""
        logits = logits.copy()
        logits[:, list(self.words.not_first)] = MASKED
        tokens = np.argpartition(-logits, candidates)[:, :candidates]
        scores = np.take_along_axis(_log_softmax(logits), tokens, 1)
        order = np.argsort(-scores, kind="stable")
        return tuple(np.take_along_axis(found, order, 1)[:, None] for found in (scores, tokens))  # type: ignore[return-value]


class _Run:
    """One batch on its way through the steps. A request of its own: what it was given goes when it goes."""

    def __init__(self, request: openvino.InferRequest, sizes: Sizes, memory: Memory, past: Past) -> None:
        self._request, self._sizes, self._memory, self._past = request, sizes, memory, past
        self._windows = memory.parts[0].shape[1]
        self._bound: tuple[int, int] | None = None
        past.open(self._windows)

    def prompt(self, tokens: Sequence[Sequence[int]], wanted: Sequence[int]) -> None:
        """What comes first: tokens (windows, length) that follow each other. ``wanted``: which of them to go on from.

        What is compiled is for a number of tokens: so there are a few that nobody sees in front, up to a round number.
        """
        length = len(tokens[0])
        unseen = next(size for size in itertools.chain(SHORT, itertools.count(ROUND, ROUND)) if size >= length) - length
        given, order = np.pad(np.array(tokens), ((0, 0), (unseen, 0))), np.arange(-unseen, length)
        among = (order[:, None] >= order) & (order >= 0)
        self._step(given, order.clip(0), among, [unseen + one for one in wanted])
        self._past.begin(unseen, length)

    def beams(self, tokens: np.ndarray, position: int) -> None:
        """One more token for each beam, (windows, beams): they stand side by side, and none sees the others."""
        new = tokens.shape[1]
        self._step(tokens, np.full(new, position), np.eye(new, dtype=bool), range(new))

    def _step(self, tokens: np.ndarray, positions: np.ndarray, among: np.ndarray, wanted: Sequence[int]) -> None:
        new = tokens.shape[1]
        self._past.make_room(new)
        self._bind()
        given = tokens, positions, self._past.mask(new), np.where(among, 0.0, MASKED)[None, None], wanted
        kinds = np.int32, np.int32, np.float32, np.float32, np.int32
        for number, (value, kind) in enumerate(zip(given, kinds, strict=True)):
            self._request.set_input_tensor(number, openvino.Tensor(np.ascontiguousarray(value, kind)))
        self._request.infer(share_outputs=True)
        self._past.append(self._request.get_output_tensor(3).data)

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and tokens of the likeliest next ones, (windows, wanted, candidates) each."""
        return self._request.get_output_tensor(0).data, self._request.get_output_tensor(1).data

    def logits(self) -> np.ndarray:
        """Of the last step, (windows, wanted, vocabulary)."""
        found: np.ndarray = self._request.get_output_tensor(2).data
        return found

    def forget(self, window: int) -> None:
        """It is finished. The last one takes its place."""
        self._windows -= 1
        if window != self._windows:
            self._memory.forget(window, self._windows)
        self._past.forget(window)

    def _bind(self) -> None:
        shape = self._windows, self._past.capacity
        if shape == self._bound:
            return
        self._bound = shape
        for layer in range(self._sizes.layers):
            parts = [*self._past.of(layer), *(part[layer, : self._windows] for part in self._memory.parts)]
            for number, part in enumerate(parts):
                place = openvino.Tensor(part, shared_memory=True)
                self._request.set_input_tensor(FIXED + PER_LAYER * layer + number, place)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities, over the last axis."""
    centred = logits - logits.max(-1, keepdims=True)
    found: np.ndarray = centred - np.log(np.exp(centred).sum(-1, keepdims=True))
    return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.exp(_log_softmax(logits))
    return found
