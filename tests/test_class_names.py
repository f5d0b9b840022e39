"""Class names from files beside the data."""

import pytest

from jaxseg.data.find.class_names import read_class_names

CSV = "name,r,g,b\nroad,128,64,128\nsky,0,0,255\n"
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\nsky:0,0,255::\n"


@pytest.mark.parametrize(
    ("name", "text", "values", "color", "names"),
    [
        ("classes.txt", "soil\nfield\n", (0, 255), False, ("soil", "field")),
        ("classes.txt", "field\n\n", (0, 1), False, ("background", "field")),
        ("classes.txt", "background\n", (0, 1), False, None),
        ("classes.txt", "background\nwheat\nrye\n", (0, 2), False, ("background", "rye")),
        ("classes.txt", "background\nwheat\nrye\n", (0, 3), False, None),
        ("classes.txt", "a\nb\nc\nd\n", (0, 1), False, None),
        ("classes.txt", "a\na\n", (0, 1), False, None),
        ("class_dict.csv", CSV, (0x0000FF, 0x804080), True, ("sky", "road")),
        ("class_dict.csv", CSV, (0x0000FF, 0x804081), True, None),
        ("class_dict.csv", "name,r,g,b\na,0,0,0\nb,7,7,7\n", (0, 7), False, ("a", "b")),
        ("class_dict.csv", "name,r,g,b\na,0,0,255\nb,0,1,256\nc,0,2,0\n", (0x0000FF, 0x000200), True, ("a", "c")),
        ("labelmap.txt", LABELMAP, (0, 0x0000FF, 0x804080), True, ("background", "sky", "road")),
    ],
)
def test_names_are_those_of_the_values(name, text, values, color, names, tmp_path):
    (tmp_path / name).write_text(text)
    found = read_class_names([tmp_path / "nowhere", tmp_path])
    assert found.file == tmp_path / name
    assert found.of(values, color) == names


def test_file_without_names_is_passed_over(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "labelmap.txt").write_text("offset: 0\n")
    assert read_class_names([tmp_path]) is None
