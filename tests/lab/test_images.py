"""Patches of two photographs, and folders of images, good and bad."""

import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from lipbook.lab import images
from lipbook.lab.data import LabelledData
from lipbook.lab.images import photo_patches

image_folder = partial(images.image_folder, progress=False)
PHOTOS = np.stack(load_sample_images().images)
WIDE = (6, 4)  # width and height, as Pillow has them


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def save(file: Path, color="white", *, size=WIDE, mode="RGB") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(file)
    return file


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Write three black cats, two white dogs and one black eel."""
    for i in range(3):
        save(tmp_path / "cats" / f"{i}.png", "black")
    for i in range(2):
        save(tmp_path / "dogs" / f"{i}.bmp", "white", size=(9, 9))
    save(tmp_path / "eels" / "0.png", "black")
    return tmp_path


@settings(max_examples=15)
@given(n=st.integers(1, 5), size=st.integers(1, 427), seed=st.integers(0, 10_000))
def test_patches_are_pieces_of_the_photographs(n, size, seed):
    patches = photo_patches(n, size=size, generator=seeded(seed))
    assert (patches.shape, patches.dtype) == ((n, 3, size, size), torch.float32)
    assert torch.equal(patches, photo_patches(n, size=size, generator=seeded(seed)))
    pixels = ((patches + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for patch in pixels:
        candidates = np.argwhere((patch[0, 0] == PHOTOS).all(axis=-1))
        assert any(
            np.array_equal(PHOTOS[i, y : y + size, x : x + size], patch) for i, y, x in candidates
        )


def test_patches_come_from_both_photographs_and_differ():
    patches = photo_patches(50, generator=seeded(0))
    assert len(patches.unique(dim=0)) > 45
    sky, leaf = (torch.as_tensor(PHOTOS[i, 10, 10] / 127.5 - 1) for i in (0, 1))
    colours = patches.mean(dim=(2, 3))
    assert (colours - sky).norm(dim=1).min() < 0.2
    assert (colours - leaf).norm(dim=1).min() < 0.2


def test_min_contrast_leaves_the_background_out():
    patches = photo_patches(100, min_contrast=0.1, generator=seeded(0))
    contrasts = patches.double().mean(dim=1).flatten(1).std(dim=1, correction=0)
    assert contrasts.min() >= 0.1 - 1e-6
    anywhere = photo_patches(100, generator=seeded(0)).mean(dim=1).flatten(1).std(dim=1)
    assert 25 < (anywhere < 0.1).sum() < 75


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"n": 2.0}, TypeError, "n must be an integer"),
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"size": 428}, ValueError, "size must be at most 427, .* got 428"),
        ({"min_contrast": 2.0}, ValueError, "min_contrast must be at most 0.7., .* got 2.0"),
        ({"min_contrast": float("nan")}, ValueError, "min_contrast must be at most .* got nan"),
    ],
)
def test_photo_patches_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        photo_patches(**{"n": 1} | arguments, generator=seeded(0))


def test_a_flat_folder_in_the_order_of_names(tmp_path):
    greys = {"b.png": 0, "a.PNG": 51, "10.jpeg": 255, "9.webp": 204}
    for name, grey in greys.items():
        save(tmp_path / name, (grey,) * 3)
    pixels = image_folder(tmp_path)
    assert (pixels.shape, pixels.dtype) == ((4, 3, 4, 6), torch.float32)
    expected = torch.tensor([greys[name] / 127.5 - 1 for name in sorted(greys)])
    torch.testing.assert_close(pixels.mean(dim=(1, 2, 3)), expected, atol=0.02, rtol=0)
    assert torch.equal(pixels, image_folder(str(tmp_path)))


def test_what_is_no_image_of_the_folder_is_left_alone(tmp_path):
    save(tmp_path / "shown.png")
    save(tmp_path / ".hidden.png")
    save(tmp_path / "deeper" / "image.png")
    (tmp_path / ".#lock.png").symlink_to("nowhere")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    assert len(image_folder(tmp_path)) == 1


def test_links_are_followed(classes, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked")
    for name in ("dogs", "cats"):
        (linked / name).symlink_to(classes / name)
    assert image_folder(linked, size=4, labelled=True).labels.tolist() == [0, 0, 0, 1, 1]
    (linked / "a.png").symlink_to(classes / "eels" / "0.png")
    assert len(image_folder(linked)) == 1
    link = tmp_path_factory.mktemp("other") / "all"
    link.symlink_to(classes)
    assert len(image_folder(link, size=4, labelled=True).labels) == 6
    (linked / "b.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"'.*b\.png' is a link to nothing; mend it or take"):
        image_folder(linked)


def test_subfolders_are_classes(classes):
    save(classes / "stray.png")
    save(classes / ".cache" / "0.png")
    data = image_folder(classes, size=4, labelled=True)
    assert isinstance(data, LabelledData)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert data.labels.dtype == torch.int64
    assert data.inputs.mean(dim=(1, 2, 3)).tolist() == [-1, -1, -1, 1, 1, -1]


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("edge", [2, 4, 16])
def test_the_centred_square_is_kept(tmp_path, wide, edge):
    pixels = np.zeros((4, 10, 3), dtype=np.uint8)
    pixels[:, 3:7] = 255  # the centred square; all around it is black
    Image.fromarray(pixels if wide else pixels.swapaxes(0, 1)).save(tmp_path / "a.png")
    square = image_folder(tmp_path, size=edge)
    assert square.shape == (1, 3, edge, edge)
    assert bool((square == 1).all())


def test_an_image_of_the_size_asked_for_keeps_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = image_folder(tmp_path, size=8)
    assert torch.equal(read, image_folder(tmp_path))
    torch.testing.assert_close(
        read[0], torch.as_tensor(pixels / 127.5 - 1).permute(2, 0, 1).float()
    )


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "expected"),
    [
        ("1", 1, "png", (1, 1, 1)),
        ("L", 255, "png", (1, 1, 1)),
        ("LA", (255, 0), "png", (1, 1, 1)),
        ("P", 0, "png", (-1, -1, -1)),
        ("RGB", (255, 0, 0), "ppm", (1, -1, -1)),
        ("RGBA", (0, 255, 0, 10), "png", (-1, 1, -1)),
        ("CMYK", (0, 0, 0, 0), "tif", (1, 1, 1)),
    ],
)
def test_every_colour_mode_becomes_rgb(tmp_path, mode, color, suffix, expected):
    save(tmp_path / f"a.{suffix}", color, mode=mode)
    assert tuple(image_folder(tmp_path)[0, :, 0, 0].tolist()) == expected


def test_a_photograph_held_sideways_is_turned(tmp_path):
    image = Image.new("RGB", WIDE)
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turn right by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert image_folder(tmp_path).shape == (1, 3, 6, 4)


def test_max_images_counts_in_each_class(classes):
    data = image_folder(classes, size=4, labelled=True, max_images=1)
    assert data.labels.tolist() == [0, 1, 2]
    assert len(image_folder(classes / "cats", max_images=2)) == 2
    assert len(image_folder(classes / "cats", max_images=9, min_images=3)) == 3


def test_the_home_directory_may_be_named(classes, monkeypatch):
    monkeypatch.setenv("HOME", str(classes))
    assert len(image_folder("~/cats")) == 3


def test_progress_is_shown_unless_declined(classes, capsys):
    images.image_folder(classes / "cats")
    assert "images: 100%" in capsys.readouterr().err
    image_folder(classes / "cats")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("path", ["", "no/such", Path("no/such")])
def test_a_missing_folder_is_named(path):
    with pytest.raises(FileNotFoundError, match=f"found none at '{path}'"):
        image_folder(path)


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(NotADirectoryError, match=r"'.*a\.png' is a file"):
        image_folder(save(tmp_path / "a.png"))


def test_mixed_sizes_need_a_size(classes):
    message = r"images must be of one size, got 6×4 in '.*0\.png' and 9×9 in '.*0\.bmp'; size=64"
    with pytest.raises(ValueError, match=message):
        image_folder(classes, labelled=True)


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "header"])
def test_an_unreadable_image_is_named(tmp_path, damage):
    save(tmp_path / "good.png")
    bad = save(tmp_path / "bad.png", size=(64, 64))
    whole = bad.read_bytes()
    bad.write_bytes(
        {
            "text": b"<html>404</html>",
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "header": whole[:20] + b"\x00" * 8 + whole[28:],
        }[damage]
    )
    with pytest.raises(ValueError, match=r"'.*bad\.png' is no image that Pillow can read \(.+\)"):
        image_folder(tmp_path, size=4)


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow writes in grey only."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_of_sixteen_bits_the_upper_eight_are_kept(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 2**16, (4, 6, channels))
    (tmp_path / "a.png").write_bytes(png16(pixels))
    colours = pixels[..., :3] if channels > 2 else pixels[..., [0, 0, 0]]
    expected = torch.as_tensor((colours >> 8) / 127.5 - 1).permute(2, 0, 1).float()
    torch.testing.assert_close(image_folder(tmp_path)[0], expected)


@pytest.mark.parametrize("suffix", ["tif", "ppm"])
def test_grey_levels_of_sixteen_bits_in_other_formats(tmp_path, suffix):
    pixels = np.array([[0, 255, 256, 40_000], [65_535, 4000, 512, 1]], dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    expected = torch.as_tensor((pixels >> 8) / 127.5 - 1).float().expand(3, 2, 4)
    torch.testing.assert_close(image_folder(tmp_path)[0], expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_refused(tmp_path, dtype):
    Image.fromarray(np.full((4, 4), 4000, dtype=dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"'.*a\.tif' .* more than 16 bits a channel or no"):
        image_folder(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize(
    "exif", [b"junk", b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"]
)
def test_damaged_exif_is_no_damage_of_the_picture(tmp_path, suffix, exif, recwarn):
    Image.new("RGB", WIDE, "white").save(tmp_path / f"a.{suffix}", exif=exif)
    assert bool((image_folder(tmp_path) == 1).all())
    assert not recwarn.list


def test_a_sound_orientation_among_damaged_tags_counts(tmp_path):
    """To turn a picture Pillow writes all tags anew, and stumbles over one that is none of it."""
    tags = [(0x010F, 2, 4000, 9999), (0x0112, 3, 1, 6)]  # a maker's name beyond the end
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    Image.new("RGB", WIDE).save(tmp_path / "a.png", exif=exif)
    assert image_folder(tmp_path).shape == (1, 3, 6, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_would(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=image.getexif())
    upright = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    expected = torch.as_tensor(upright / 127.5 - 1).permute(2, 0, 1).float()
    torch.testing.assert_close(image_folder(tmp_path)[0], expected)


def test_a_home_that_nobody_has_is_named():
    with pytest.raises(FileNotFoundError, match="'~nobody-of-this-name/faces' names nobody's"):
        image_folder("~nobody-of-this-name/faces")


@pytest.mark.parametrize("limit", [23, 11])  # Pillow warns above its limit, raises above twice it
def test_a_huge_image_is_named_with_the_limit(tmp_path, monkeypatch, limit):
    save(tmp_path / "huge.png")  # 24 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24)
    assert len(image_folder(tmp_path)) == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=rf"'.*huge\.png' has too many pixels, .* = {limit};"):
        image_folder(tmp_path)


@pytest.mark.parametrize(
    ("part", "arguments", "error", "message"),
    [
        ("", {}, ValueError, r"at least 1 images \(\.bmp, .*\), got 0; labelled=True reads"),
        ("cats", {"min_images": 4}, ValueError, r"'.*cats' .* at least 4 images .* got 3$"),
        ("", {"labelled": True, "min_images": 3}, ValueError, r"'.*dogs' .* got 2$"),
        ("cats", {"labelled": True}, ValueError, "at least two subfolders, one a class, got 0 in"),
        ("", {"size": 0}, ValueError, "size must be at least 1, got 0"),
        ("", {"size": 4.0}, TypeError, "size must be an integer"),
        ("", {"min_images": 0}, ValueError, "min_images must be at least 1"),
        ("", {"max_images": 0}, ValueError, "max_images must be at least 1"),
        ("", {"min_images": 5, "max_images": 2}, ValueError, "max_images must be at least 5"),
    ],
)
def test_image_folder_refuses(classes, part, arguments, error, message):
    with pytest.raises(error, match=message):
        image_folder(classes / part, **arguments)


def test_one_class_is_none(tmp_path):
    save(tmp_path / "cats" / "0.png")
    with pytest.raises(ValueError, match="at least two subfolders, one a class, got 1 in"):
        image_folder(tmp_path, labelled=True)
