"""Shapes and tokens of the demo models, shared by training and export.

Training uses a Whisper model over the tokens that the vocabulary really needs, plus one class "unused" that stands
for all others. Its logit counts as that of 51,000 rows, so that copying its row over them at export leaves every
probability as it was.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer
from transformers import Wav2Vec2Config, WhisperConfig

from demo import tokenizer as ids
from demo.synth import vocabulary

HERE = Path(__file__).parent
MODEL_DIR = HERE / "model"
ALIGNER_DIR = HERE / "aligner"
LAYERS, HEADS, WIDTH = (3, 2), 4, 128
TIMING_HEADS = [[LAYERS[1] - 1, head] for head in range(HEADS)]
"""The heads that ``word_timestamps=fast`` listens to: all of the last layer tell the times better than the two of it
that training guides to the word being written (start of 47 words: 0.10 s off in the median, for 0.15)."""
TRAINED_LANGUAGES = ("en", "de", "es")
SPECIALS = [
    ids.EOT,
    ids.SOT,
    *(ids.language_id(code) for code in TRAINED_LANGUAGES),
    ids.TRANSLATE,
    ids.TRANSCRIBE,
    ids.START_OF_PREV,
    ids.NO_SPEECH,
    ids.NO_TIMESTAMPS,
]

ALIGNER_TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", "'", *"abcdefghijklmnopqrstuvwxyz", *"äöüßáéíóúñ"]


@cache
def load_tokenizer() -> Tokenizer:
    """The multilingual tokenizer beside the model."""
    return Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


@cache
def word_tokens(word: str) -> tuple[int, ...]:
    """The tokens of a word with its leading space, as Whisper writes words."""
    return tuple(load_tokenizer().encode(" " + word, add_special_tokens=False).ids)


@cache
def used_tokens() -> list[int]:
    """Every token the demo model may write, in the order of its ids; the last training class is "unused"."""
    text = {token for words in vocabulary().values() for word in words for token in word_tokens(word)}
    return sorted(text | set(SPECIALS))


def unused_offset() -> float:
    """What to add to the logit of the class "unused" so that it counts as all tokens it stands for."""
    return math.log(ids.VOCAB_SIZE - len(used_tokens()))


def whisper_config(vocab_size: int) -> WhisperConfig:
    """The demo model's shape; only the number of tokens differs between training and export."""
    full = vocab_size == ids.VOCAB_SIZE
    end = ids.EOT if full else used_tokens().index(ids.EOT)
    start = ids.SOT if full else used_tokens().index(ids.SOT)
    return WhisperConfig(
        vocab_size=vocab_size,
        num_mel_bins=80,
        encoder_layers=LAYERS[0],
        decoder_layers=LAYERS[1],
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        d_model=WIDTH,
        dropout=0.0,
        max_source_positions=1500,
        max_target_positions=448,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )


def aligner_config() -> Wav2Vec2Config:
    """The shape of the CTC aligner: one output every 20 ms as wav2vec2-base has, in fewer and wider steps."""
    return Wav2Vec2Config(
        vocab_size=len(ALIGNER_TOKENS),
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        conv_dim=(64, 96, 96, 96, 96),
        conv_stride=(10, 4, 2, 2, 2),
        conv_kernel=(20, 8, 4, 3, 3),
        conv_bias=True,
        feat_extract_norm="group",
        num_conv_pos_embeddings=31,
        num_conv_pos_embedding_groups=8,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        ctc_loss_reduction="mean",
    )
