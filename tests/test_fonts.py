"""Class names in any script, or their numbers with a note."""

import numpy as np
from matplotlib import font_manager

from jaxseg.runs import fonts
from jaxseg.runs.pictures import draw_samples

HAN = "\u80cc\u666f"


def without_other_fonts(monkeypatch) -> None:
    own = [f for f in font_manager.fontManager.ttflist if f.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    fonts.families.cache_clear()
    fonts._tell.cache_clear()


def test_names_that_no_font_has_are_numbers_with_a_note(monkeypatch, capsys):
    without_other_fonts(monkeypatch)
    assert fonts.drawable(["soil", HAN, "\u00c4\u03a9\u0416 1"]) == ["soil", "class 1", "\u00c4\u03a9\u0416 1"]
    assert f"pictures show class 1 for {HAN}" in " ".join(capsys.readouterr().out.split())
    fonts.drawable(["soil", HAN, "\u00c4\u03a9\u0416 1"])
    assert capsys.readouterr().out == ""
    image, mask = np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=np.uint8)
    numbered = draw_samples([image], [mask], class_names=["class 0", "class 1"])
    assert (draw_samples([image], [mask], class_names=[HAN, HAN + HAN]) == numbered).all()
    fonts.families.cache_clear()


def test_installed_font_with_the_letters_is_used(monkeypatch):
    class Face:
        def __init__(self, file):
            self.file = file

        def get_charmap(self):
            return dict.fromkeys(map(ord, "ab" if self.file != "han.ttf" else HAN), 1)

    entries = [
        font_manager.FontEntry(fname=f, name=n) for f, n in (("last.ttf", "Last Resort HE"), ("han.ttf", "Han Sans"))
    ]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    monkeypatch.setattr("matplotlib.ft2font.FT2Font", Face)
    fonts.families.cache_clear()
    assert fonts.families(frozenset("ab")) == ("DejaVu Sans",)
    assert fonts.families(frozenset("a" + HAN)) == ("DejaVu Sans", "Han Sans")
    assert fonts.families(frozenset("c")) == ()
    fonts.families.cache_clear()
