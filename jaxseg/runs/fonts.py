"""Finds fonts for class names in any script."""

import functools
from collections.abc import Sequence

from jaxseg.base.terminal import console


def drawable(names: Sequence[str]) -> list[str]:
    """Returns class names as pictures show them: by number if no installed font has their letters, with a note."""
    shown = [name if families(frozenset(name)) else f"class {number}" for number, name in enumerate(names)]
    _tell(tuple(f"{there} for {name}" for name, there in zip(names, shown) if name != there))
    return shown


@functools.cache
def _tell(replaced: tuple[str, ...]) -> None:
    """Says once which names are replaced."""
    if replaced:
        console.print(
            f"no installed font has the letters of some class names: pictures show {', '.join(replaced)}. "
            "Install one, such as Noto Sans, to see them.",
            style="yellow",
        )


@functools.cache
def families(letters: frozenset[str]) -> tuple[str, ...]:
    """Returns font families that have all letters together, matplotlib's own first; () if none do."""
    from matplotlib import font_manager, ft2font

    own = font_manager.FontProperties()
    missing = {ord(letter) for letter in letters if letter.isprintable() and not letter.isspace()}
    missing -= ft2font.FT2Font(font_manager.findfont(own)).get_charmap().keys()
    found = [own.get_name()]
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: entry.name) if missing else ():
        if entry.name.startswith("Last Resort"):  # has boxes for all letters
            continue
        try:
            has = missing & ft2font.FT2Font(entry.fname).get_charmap().keys()
        except (RuntimeError, OSError):
            continue
        if has:
            found.append(entry.name)
            missing -= has
    return () if missing else tuple(dict.fromkeys(found))


def set_fonts(figure) -> None:
    """Gives each text of a matplotlib figure the fonts that its letters need."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if not text.get_text().isascii() and (names := families(frozenset(text.get_text()))):
            text.set_fontfamily(list(names))
