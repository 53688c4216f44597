"""Build Whisper's multilingual tokenizer in Hugging Face's format from OpenAI's own rank file.

The rank file (`whisper/assets/multilingual.tiktoken`) ships in the PyPI package `openai-whisper` (MIT):

    pip download --no-deps --no-binary :all: openai-whisper && tar xf openai*whisper*.tar.gz
    python -m demo.tokenizer --tiktoken openai_whisper-*/whisper/assets/multilingual.tiktoken --out demo/model

The file holds tokens in the order in which byte-pair merging made them, not the merges themselves: each merge is
recovered by splitting a token with the merges of lower rank only, which leaves exactly its two parts.
"""

from __future__ import annotations

import argparse
import base64
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

# The order is Whisper's: a language's token id is 50259 plus its place in this list.
_CODES = """en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml
cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am
yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su"""
LANGUAGES = _CODES.split()

EOT = 50257
SOT = 50258
FIRST_LANGUAGE = 50259
TRANSLATE = 50358
TRANSCRIBE = 50359
START_OF_LM = 50360
START_OF_PREV = 50361
NO_SPEECH = 50362
NO_TIMESTAMPS = 50363
FIRST_TIMESTAMP = 50364
VOCAB_SIZE = 51865

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{code}|>" for code in LANGUAGES),
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]


def language_id(code: str) -> int:
    """The token id of a language code."""
    return FIRST_LANGUAGE + LANGUAGES.index(code)


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, as the ByteLevel pre-tokenizer uses it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    rest = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + index) for index, byte in enumerate(rest)}


def split_by_rank(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """Merge the bytes of a token with the merges of a rank lower than `below` only."""
    parts = [bytes([byte]) for byte in token]
    while True:
        pairs = [(ranks.get(a + b, below), i) for i, (a, b) in enumerate(pairwise(parts))]
        rank, place = min(pairs, default=(below, -1))
        if rank >= below:
            return parts
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def read_ranks(path: Path) -> dict[bytes, int]:
    """The rank (and id) of every token in a tiktoken file."""
    lines = (line.split() for line in path.read_text().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def build(path: Path) -> Tokenizer:
    """The tokenizer of Whisper's multilingual models."""
    ranks = read_ranks(path)
    if len(ranks) != EOT:
        raise ValueError(f"{path}: {len(ranks)} tokens, {EOT} expected: this is not the multilingual rank file")
    letters = byte_alphabet()

    def printed(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocab = {printed(token): rank for token, rank in ranks.items()}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            left, right = split_by_rank(token, ranks, rank)
            merges.append((printed(left), printed(right)))
    tokenizer = Tokenizer(BPE(vocab, merges, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    if tokenizer.token_to_id("<|notimestamps|>") != NO_TIMESTAMPS:
        raise AssertionError("special tokens did not get their ids")
    return tokenizer


def main() -> None:
    """Write tokenizer.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--tiktoken", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    build(args.tiktoken).save(str(args.out / "tokenizer.json"), pretty=False)


if __name__ == "__main__":
    main()
