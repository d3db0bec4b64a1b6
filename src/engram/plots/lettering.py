"""Text in figures that models and users wrote: never a formula, never too long, never an empty box for a letter."""

from collections.abc import Iterable, Iterator
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from engram.showing import cut

_LONGEST = 24
_WIDE = (
    "Noto Sans",
    "Source Han Sans",
    "Hiragino",
    "PingFang",
    "Yu Gothic",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Nirmala UI",
    "WenQuanYi",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "Unifont",
)
"""How the names of fonts begin that have many scripts, wherever they come from."""


def lettered(artists: Iterable[Text]) -> None:
    """Make text that stands in a figure fit to be drawn: literal, in fonts that have its letters, escapes elsewhere."""
    for artist in artists:
        text = artist.get_text()
        artist.set_parse_math(False)
        if not text.isascii():
            artist.set_fontfamily([FontProperties().get_name(), *dict.fromkeys(_families(text))])


def drawable(text: str, most: int = _LONGEST) -> str:
    """Return a label as it can be drawn: letters that no font here has as escapes, the middle of long ones left out."""
    missing = _missing(text)
    return cut("".join(c.encode("unicode_escape").decode() if c in missing else c for c in text), most)


def _missing(text: str) -> set[str]:
    """Return the letters that neither the usual font nor a wide one has."""
    left = {c for c in text if c.isprintable() and ord(c) not in _letters(findfont(FontProperties()))}
    return {c for c in left if _family(c) is None}


def _families(text: str) -> Iterator[str]:
    usual = _letters(findfont(FontProperties()))
    for letter in text:
        if ord(letter) not in usual and (family := _family(letter)) is not None:
            yield family


@cache
def _family(letter: str) -> str | None:
    """Return an installed font that has a letter."""
    names = sorted({font.name for font in fontManager.ttflist if font.name.startswith(_WIDE)})
    return next((name for name in names if ord(letter) in _letters(findfont(FontProperties(name)))), None)


@cache
def _letters(path: str) -> frozenset[int]:
    return frozenset(get_font(path).get_charmap())
