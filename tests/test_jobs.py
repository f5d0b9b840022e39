"""Which images a prediction reads, and where results go."""

from pathlib import Path

from jaxseg.inference.jobs import find_images


def test_files_of_one_name_keep_the_folders_that_tell_them_apart(tmp_path):
    images = [tmp_path / name for name in ("s/a/image.png", "s/b/image.png", "s/c/other.png")]
    for path in images:
        path.parent.mkdir(parents=True)
        path.touch()
    found, problems = find_images(images, tmp_path / "out")
    assert problems == []
    assert [name.as_posix() for _, name in found] == ["a/image.png", "b/image.png", "c/other.png"]
    found, _ = find_images([images[0], images[2], images[0]], tmp_path / "out")
    assert found == [(images[0], Path("image.png")), (images[2], Path("other.png"))]
