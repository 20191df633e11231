from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from clients import InvalidInput
from clients._images import ImageLike, as_list, data_url, image_bytes, media_type
from tests.support.wire import decoded, picture


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_files_travel_unchanged(kind: str, tmp_path: Path) -> None:
    content = picture(kind)
    path = tmp_path / "no-suffix"
    path.write_bytes(content)
    for image in (content, path, str(path), data_url(content)):
        url = data_url(image)
        assert url.startswith(f"data:image/{kind.lower()};base64,")
        assert decoded(url) == content
        assert image_bytes(image) == content


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_pictures_travel_as_png(mode: str) -> None:
    image = Image.linear_gradient("L").resize((9, 5)).convert(mode)
    content = decoded(data_url(image))
    assert media_type(content) == "image/png"
    with Image.open(io.BytesIO(content)) as back:
        assert back.tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_travel_white(mode: str) -> None:
    clear = Image.new("RGBA", (9, 5), (0, 0, 0, 0))
    content = decoded(data_url(clear.quantize(4) if mode == "P" else clear.convert(mode)))
    with Image.open(io.BytesIO(content)) as back:
        assert back.convert("RGB").getextrema() == ((255, 255),) * 3


def test_grey_of_16_bits_travels_whole() -> None:
    wide = Image.new("I;16", (9, 5), 40_000)
    with Image.open(io.BytesIO(decoded(data_url(wide)))) as back:
        assert back.mode == "I;16"
        assert back.getpixel((0, 0)) == 40_000


def test_a_profile_of_inks_does_not_travel_with_colours() -> None:
    inks = Image.new("CMYK", (9, 5))
    inks.info["icc_profile"] = b"of inks"
    with Image.open(io.BytesIO(decoded(data_url(inks)))) as back:
        assert "icc_profile" not in back.info


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(InvalidInput, match="PNG, JPEG or WebP"):
        data_url(picture(kind))


@pytest.mark.parametrize("image", ["absent.png", "nul\0byte", Path("absent.png")])
def test_unreadable_paths_are_refused(image: ImageLike) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        data_url(image)


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not int"):
        image_bytes(7)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="data:image/png;base64"):
        image_bytes("data:image/png,raw")
    with pytest.raises(InvalidInput, match="damaged"):
        image_bytes("data:image/png;base64,%%%")


def test_one_several_or_none() -> None:
    image = Image.new("RGB", (4, 4))
    assert as_list(None) == []
    assert as_list("a.png") == ["a.png"]
    assert as_list(image) == [image]
    assert as_list([b"1", Path("b")]) == [b"1", Path("b")]
