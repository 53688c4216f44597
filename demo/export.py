"""Write the trained models where WhisperX finds them.

    python -m demo.export --asr CHECKPOINT        # demo/model: CTranslate2, int8
    python -m demo.export --aligner CHECKPOINT    # demo/aligner: Hugging Face, half precision

`--untrained` in place of a checkpoint writes the same files with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from ctranslate2.converters import TransformersConverter
from faster_whisper.tokenizer import Tokenizer as FasterTokenizer
from transformers import (
    GenerationConfig,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    WhisperForConditionalGeneration,
    WhisperTokenizerFast,
)

from demo import tokenizer as ids
from demo.model import (
    ALIGNER_DIR,
    ALIGNER_TOKENS,
    MODEL_DIR,
    TIMING_HEADS,
    aligner_config,
    load_tokenizer,
    used_tokens,
    whisper_config,
)

PREPROCESSOR = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 80,
    "sampling_rate": 16000,
    "hop_length": 160,
    "chunk_length": 30,
    "n_fft": 400,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "padding_value": 0.0,
}


def full_model(trained: dict[str, torch.Tensor] | None) -> WhisperForConditionalGeneration:
    """The model over all 51,865 tokens from the one over the used tokens."""
    model = WhisperForConditionalGeneration(whisper_config(ids.VOCAB_SIZE)).eval()
    if trained is None:
        return model
    state = dict(trained)
    small = state.pop("model.decoder.embed_tokens.weight")
    state.pop("proj_out.weight", None)
    rows = small[-1].repeat(ids.VOCAB_SIZE, 1)
    rows[torch.tensor(used_tokens())] = small[:-1]
    missing, unexpected = model.load_state_dict(
        state | {"model.decoder.embed_tokens.weight": rows, "proj_out.weight": rows}, strict=False
    )
    if missing or unexpected:
        raise ValueError(f"checkpoint does not fit: {missing=} {unexpected=}")
    return model


def replace_files(source: Path, target: Path) -> None:
    """Move every file of a folder into another, each in one step."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        part = target / f".{file.name}.part"
        shutil.copyfile(file, part)
        os.replace(part, target / file.name)


def export_asr(trained: dict[str, torch.Tensor] | None, target: Path = MODEL_DIR) -> None:
    """Write the CTranslate2 model with all that faster-whisper reads beside it."""
    tokenizer = load_tokenizer()
    model = full_model(trained)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=ids.SOT,
        eos_token_id=ids.EOT,
        pad_token_id=ids.EOT,
        bos_token_id=ids.EOT,
    )
    # Real models also forbid the end of text as the first token; this one may answer noise with nothing at all.
    blank = tokenizer.encode(" ", add_special_tokens=False).ids
    speech = FasterTokenizer(tokenizer, True, task="transcribe", language="en")
    suppressed = sorted({*speech.non_speech_tokens, *range(ids.TRANSLATE, ids.NO_SPEECH + 1)})
    languages = {f"<|{code}|>": ids.language_id(code) for code in ids.LANGUAGES}
    generation = {
        "alignment_heads": TIMING_HEADS,
        "lang_to_id": languages,
        "suppress_tokens": suppressed,
        "begin_suppress_tokens": blank,
        "is_multilingual": True,
        "no_timestamps_token_id": ids.NO_TIMESTAMPS,
        "max_length": 448,
    }
    with tempfile.TemporaryDirectory() as scratch:
        source, converted = Path(scratch, "hf"), Path(scratch, "ct2")
        model.save_pretrained(source)
        WhisperTokenizerFast(
            tokenizer_object=tokenizer,
            unk_token="<|endoftext|>",
            bos_token="<|endoftext|>",
            eos_token="<|endoftext|>",
            additional_special_tokens=ids.SPECIAL_TOKENS[1:],
        ).save_pretrained(source)
        saved = json.loads((source / "generation_config.json").read_text())
        (source / "generation_config.json").write_text(json.dumps(saved | generation))
        TransformersConverter(str(source)).convert(str(converted), quantization="int8")
        (converted / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
        config = json.loads((converted / "config.json").read_text())
        if config["lang_ids"] != sorted(languages.values()) or config["suppress_ids"] != suppressed:
            raise AssertionError("the converter did not take the generation settings over")
        replace_files(converted, target)


def export_aligner(trained: dict[str, torch.Tensor] | None, target: Path = ALIGNER_DIR) -> None:
    """Write the aligner with its processor."""
    model = Wav2Vec2ForCTC(aligner_config()).eval()
    if trained is not None:
        model.load_state_dict(trained)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "aligner")
        folder.mkdir()
        (folder / "vocab.json").write_text(json.dumps({char: i for i, char in enumerate(ALIGNER_TOKENS)}))
        tokenizer = Wav2Vec2CTCTokenizer(
            str(folder / "vocab.json"), unk_token="<unk>", pad_token="<pad>", word_delimiter_token="|"
        )
        extractor = Wav2Vec2FeatureExtractor(
            feature_size=1, sampling_rate=16000, padding_value=0.0, do_normalize=False, return_attention_mask=False
        )
        Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
        model.half().save_pretrained(folder)
        # Stored in half precision, used in single: the CPU has no fast half-precision arithmetic.
        config = json.loads((folder / "config.json").read_text())
        config.pop("torch_dtype", None)
        (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
        replace_files(folder, target)


def main() -> None:
    """Write one model or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asr", type=Path, help="checkpoint of demo.train_asr")
    parser.add_argument("--aligner", type=Path, help="checkpoint of demo.train_aligner")
    parser.add_argument("--untrained", action="store_true", help="random weights, to try the way through")
    args = parser.parse_args()
    if args.untrained:
        torch.manual_seed(0)
        export_asr(None)
        export_aligner(None)
    if args.asr:
        export_asr(torch.load(args.asr, map_location="cpu", weights_only=True)["model"])
    if args.aligner:
        export_aligner(torch.load(args.aligner, map_location="cpu", weights_only=True)["model"])


if __name__ == "__main__":
    main()
