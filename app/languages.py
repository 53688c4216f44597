"""The languages Whisper knows: code to English name, as its tokenizer lists them. No I/O."""

from __future__ import annotations

from app.errors import InputError

_TABLE = """
en english, zh chinese, de german, es spanish, ru russian, ko korean, fr french, ja japanese, pt portuguese, tr turkish,
pl polish, ca catalan, nl dutch, ar arabic, sv swedish, it italian, id indonesian, hi hindi, fi finnish, vi vietnamese,
he hebrew, uk ukrainian, el greek, ms malay, cs czech, ro romanian, da danish, hu hungarian, ta tamil, no norwegian,
th thai, ur urdu, hr croatian, bg bulgarian, lt lithuanian, la latin, mi maori, ml malayalam, cy welsh, sk slovak,
te telugu, fa persian, lv latvian, bn bengali, sr serbian, az azerbaijani, sl slovenian, kn kannada, et estonian,
mk macedonian, br breton, eu basque, is icelandic, hy armenian, ne nepali, mn mongolian, bs bosnian, kk kazakh,
sq albanian, sw swahili, gl galician, mr marathi, pa punjabi, si sinhala, km khmer, sn shona, yo yoruba, so somali,
af afrikaans, oc occitan, ka georgian, be belarusian, tg tajik, sd sindhi, gu gujarati, am amharic, yi yiddish, lo lao,
uz uzbek, fo faroese, ht haitian creole, ps pashto, tk turkmen, nn nynorsk, mt maltese, sa sanskrit, lb luxembourgish,
my myanmar, bo tibetan, tl tagalog, mg malagasy, as assamese, tt tatar, haw hawaiian, ln lingala, ha hausa, ba bashkir,
jw javanese, su sundanese, yue cantonese
"""

_ALIAS_TABLE = """
burmese my, valencian ca, flemish nl, haitian ht, letzeburgesch lb, pushto ps, panjabi pa, moldavian ro, moldovan ro,
sinhalese si, castilian es, mandarin zh, jv jw, iw he, fil tl, nb no
"""


def _pairs(table: str) -> list[list[str]]:
    return [entry.strip().split(maxsplit=1) for entry in table.split(",")]


LANGUAGES: dict[str, str] = {code: name for code, name in _pairs(_TABLE)}  # noqa: C416 (the unpacking is the check)
"""Code to English name, both lower case, the commonest in Whisper's training data first."""

WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages that are written without spaces between words (the list of Whisper's word timing)."""

_ALIASES = {alias: code for alias, code in _pairs(_ALIAS_TABLE)}  # noqa: C416
_BY_NAME = {name: code for code, name in LANGUAGES.items()} | _ALIASES


def language_name(code: str) -> str:
    """The English name of ``code`` in lower case; an unknown code stands for itself."""
    return LANGUAGES.get(code, code)


def parse_language(value: str) -> str:
    """The code that ``value`` means: a code (``de``, ``pt-BR``) or an English name, in any case.

    Raises:
        InputError: no such language; ``param`` is ``language``.
    """
    wanted = " ".join(value.lower().split())
    for candidate in (wanted, wanted.replace("_", "-").split("-")[0]):
        if candidate in LANGUAGES:
            return candidate
        if candidate in _BY_NAME:
            return _BY_NAME[candidate]
    some = ", ".join(list(LANGUAGES)[:12])
    raise InputError(
        "This language is not known.",
        hint=f"Give one of the {len(LANGUAGES)} Whisper languages as a code ({some}, ...) or an English name (german), "
        "or leave it out to have it detected.",
        param="language",
    )
