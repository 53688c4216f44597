"""Whisper models of the real architectures with random weights: speed and memory do not depend on what weights say.

    python -m benchmarks.random_models tiny small --into DIR [--quantization int8] [--tokens 32]
    STENOPOOL_MODELS_DIR=DIR scripts/serve

Each lies in ``DIR/<name>`` as the hub's models do (float16 unless told otherwise), with Whisper's real tokenizer. Every
window says the same ``--tokens`` tokens, whatever the audio: the decoder's position embeddings drown everything else,
and point at one token each, then at the end of text. A prompt longer than Whisper's own four tokens ends the text sooner.
The largest takes 5.5 GB of RAM, 6.5 GB of disk and 90 s to make. ``aligner`` is a wav2vec2-base with the demo aligner's
letters, in ``DIR/align-en``, where servers look for it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from ctranslate2.converters import TransformersConverter
from faster_whisper.tokenizer import Tokenizer as FasterTokenizer
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperTokenizerFast,
)

from app.catalogue import DEMO_ALIGNER
from demo.export import PREPROCESSOR, replace_files
from demo.model import load_tokenizer

SENTENCE = " The quick brown fox jumps over the lazy dog, and then it sleeps until the evening comes."
TIMESTAMPS = 1501
MOST_TOKENS = 224
"""CTranslate2 keeps half of the decoder's 448 positions for the prompt."""
PROMPT = 4
"""Tokens before the text: start of transcript, language, task, no timestamps."""
CERTAIN = 30.0
"""Logit of the token that a position points at; all others are near 0."""
LOUD = 50.0
"""Magnitude of the decoder's position embeddings per dimension; all else together stays below a tenth of it."""


@dataclass(frozen=True)
class Shape:
    """Layers of encoder and decoder, width, attention heads, mel bands, languages, as OpenAI published them."""

    encoder_layers: int
    decoder_layers: int
    width: int
    heads: int
    mels: int = 80
    cantonese: bool = False


SHAPES = {
    "tiny": Shape(4, 4, 384, 6),
    "base": Shape(6, 6, 512, 8),
    "small": Shape(12, 12, 768, 12),
    "medium": Shape(24, 24, 1024, 16),
    "large-v2": Shape(32, 32, 1280, 20),
    "turbo": Shape(32, 4, 1280, 20, mels=128, cantonese=True),
}


def tokenizer_for(shape: Shape) -> Tokenizer:
    """Whisper's multilingual tokenizer; large-v3's has one language more, before the tasks."""
    data = json.loads(load_tokenizer().to_str())
    if shape.cantonese:
        added = data["added_tokens"]
        place = next(index for index, token in enumerate(added) if token["content"] == "<|translate|>")
        added.insert(place, {**added[place], "content": "<|yue|>"})
        for index, token in enumerate(added):
            token["id"] = added[0]["id"] + index
    return Tokenizer.from_str(json.dumps(data))


def languages(tokenizer: Tokenizer) -> dict[str, int]:
    """Language tokens and their ids: all that stands between the start of the transcript and the tasks."""
    first, end = tokenizer.token_to_id("<|startoftranscript|>") + 1, tokenizer.token_to_id("<|translate|>")
    return {tokenizer.id_to_token(number): number for number in range(first, end)}


def config_for(shape: Shape, tokenizer: Tokenizer) -> WhisperConfig:
    """The architecture in transformers' words."""
    end = tokenizer.token_to_id("<|endoftext|>")
    return WhisperConfig(
        vocab_size=tokenizer.get_vocab_size() + TIMESTAMPS,
        num_mel_bins=shape.mels,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.width,
        decoder_ffn_dim=4 * shape.width,
        d_model=shape.width,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=tokenizer.token_to_id("<|startoftranscript|>"),
        suppress_tokens=None,
        begin_suppress_tokens=None,
        dtype="float16",
    )


@torch.no_grad()
def random_model(shape: Shape, tokenizer: Tokenizer, tokens: int, seed: int = 0) -> WhisperForConditionalGeneration:
    """A model with random weights in half precision that says ``tokens`` tokens per window."""
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config_for(shape, tokenizer)).half().eval()
    model.to_empty(device="cpu").tie_weights()
    source = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.normal_(0.0, 0.02, generator=source)
        else:
            weight.fill_(1.0 if "layer_norm.weight" in name else 0.0)
    decoder = model.model.decoder
    words = tokenizer.encode(SENTENCE, add_special_tokens=False).ids
    end = tokenizer.token_to_id("<|endoftext|>")
    said = [words[index % len(words)] for index in range(tokens)]
    at = [tokenizer.token_to_id("<|en|>"), *[words[0]] * (PROMPT - 2), *said]
    at += [end] * (decoder.embed_positions.weight.shape[0] - len(at))
    # the last layer norm makes every position sqrt(width) long, so a row this long has the logit CERTAIN there
    directions = torch.nn.functional.normalize(decoder.embed_tokens.weight[at].float(), dim=1)
    decoder.embed_tokens.weight[at] = (directions * CERTAIN / shape.width**0.5).half()
    # away from the end, or five improbable early ends would finish a beam search before its time
    directions[: PROMPT - 1 + tokens] -= 0.5 * directions[-1]
    decoder.embed_positions.weight.copy_(directions * LOUD * shape.width**0.5)
    return model


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer as the converter reads it."""
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    end = special[0]
    WhisperTokenizerFast(
        tokenizer_object=tokenizer, unk_token=end, bos_token=end, eos_token=end, additional_special_tokens=special[1:]
    ).save_pretrained(folder)


def save_generation(shape: Shape, tokenizer: Tokenizer, folder: Path) -> None:
    """Write what the converter takes over into CTranslate2's ``config.json``."""
    end, no_speech = (tokenizer.token_to_id(f"<|{name}|>") for name in ("endoftext", "nospeech"))
    speech = FasterTokenizer(tokenizer, True, task="transcribe", language="en")
    GenerationConfig(eos_token_id=end, pad_token_id=end, bos_token_id=end).save_pretrained(folder)
    path = folder / "generation_config.json"
    generation = {
        "alignment_heads": [[shape.decoder_layers - 1, head] for head in range(shape.heads)],
        "lang_to_id": languages(tokenizer),
        "suppress_tokens": sorted({*speech.non_speech_tokens, *range(speech.translate, no_speech + 1)}),
        "begin_suppress_tokens": [*tokenizer.encode(" ", add_special_tokens=False).ids, end],
        "is_multilingual": True,
        "no_timestamps_token_id": speech.no_timestamps,
        "max_length": 448,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | generation))


def write(name: str, into: Path, quantization: str = "float16", tokens: int = 32) -> Path:
    """Make one model; returns its folder. ``tokens`` is how many every window says."""
    if not 1 <= tokens <= MOST_TOKENS:
        raise ValueError(f"tokens: 1 to {MOST_TOKENS}")
    shape = SHAPES[name]
    tokenizer = tokenizer_for(shape)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into) as scratch:
        source, converted = Path(scratch, "hf"), Path(scratch, "ct2")
        model = random_model(shape, tokenizer, tokens)
        model.save_pretrained(source)
        del model  # the converter loads it again: one copy at a time
        save_tokenizer(tokenizer, source)
        save_generation(shape, tokenizer, source)
        TransformersConverter(str(source), load_as_float16=True, low_cpu_mem_usage=True).convert(
            str(converted), quantization=quantization
        )
        tokenizer.save(str(converted / "tokenizer.json"), pretty=False)
        features = PREPROCESSOR | {"feature_size": shape.mels}
        (converted / "preprocessor_config.json").write_text(json.dumps(features, indent=2) + "\n")
        replace_files(converted, into / name)
    return into / name


def write_aligner(into: Path, seed: int = 0) -> Path:
    """Make a wav2vec2-base for English with random weights; returns its folder."""
    folder = into / "align-en"
    vocabulary = json.loads((DEMO_ALIGNER / "vocab.json").read_text())
    torch.manual_seed(seed)
    Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(vocabulary), pad_token_id=vocabulary["<pad>"])).save_pretrained(folder)
    for name in ("vocab.json", "preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(DEMO_ALIGNER / name, folder / name)
    return folder


def main() -> None:
    """Write the models that were named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=[*SHAPES, "aligner"])
    parser.add_argument("--into", type=Path, required=True, help="folder for STENOPOOL_MODELS_DIR")
    parser.add_argument("--quantization", default="float16", choices=["float32", "float16", "bfloat16", "int8", "int8_float16"])
    parser.add_argument("--tokens", type=int, default=32, help="tokens that every window says")
    args = parser.parse_args()
    for name in args.models:
        if name == "aligner":
            print(write_aligner(args.into))
            continue
        folder = write(name, args.into, args.quantization, args.tokens)
        print(f"{folder}: {(folder / 'model.bin').stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
