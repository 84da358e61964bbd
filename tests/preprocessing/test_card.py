"""The data card: what it counts, and that its page shows hostile text as text and nothing that was removed."""

import html
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from made import make_own_set, make_pictures
from preprocessing.cards.card import card_facts, card_lines, is_current, write_card
from preprocessing.cards.page import CAPTION_CHARS, write_page
from preprocessing.catalogue import CATALOGUE, find
from preprocessing.manifest import read_json
from preprocessing.pack.lists import read_items
from preprocessing.remove import find as find_keys
from preprocessing.remove import take_out
from preprocessing.sets import PAGE
from tests.evaluation.chromium import Page, find_chromium
from tests.evaluation.test_report import Elements

HOSTILE = '<script>alert("1")</script>\u202e\x1b[31m ]]> {{ 7 * 7 }}'
SHOWN = HOSTILE.replace("\u202e", "\ufffd").replace("\x1b", "\ufffd")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    captions = {f"p{i:02d}": f"picture number {i}" for i in range(36)} | {"p36": HOSTILE, "p37": "long " * 200}
    pictures = make_pictures(root / "pictures", captions)
    Image.new("RGB", (300, 400)).save(pictures / "p00.png")
    for twin in ("t1", "t2", "t3"):  # a host's "no longer available", under one caption and two others
        shutil.copy(pictures / "p01.png", pictures / f"{twin}.png")
        (pictures / f"{twin}.txt").write_text("picture number 1" if twin == "t1" else twin)
    (pictures / "bad <b>.png").write_text("no picture")
    (pictures / "bad <b>.txt").write_text("of nothing")
    return make_own_set(root, pictures)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / made.name))


def card_of(folder: Path, **changes: Any) -> dict[str, Any]:
    return write_card(folder, {**find("mine").about, **changes})


def test_it_counts_what_is_there(folder: Path) -> None:
    card = card_of(folder, published=100)
    assert sum(card["samples"].values()) == 41 and card["listed"] == 42 and card["samples"]["val"] >= 7
    assert [line["items"] for name, line in card["outcomes"].items() if name != "ok"] == [1]
    assert card["short_side_px"]["16 to 63"] == 40 and card["short_side_px"]["256 to 511"] == 1
    assert card["enlarged"] == {"64": 40, "256": 40, "1024": 41}
    assert card["caption_chars"]["640 and more"] == 1 and sum(card["caption_chars"].values()) == 41
    equal = card["equal_bytes"]
    assert (equal["groups"], equal["beyond_the_first"], equal["under_several_captions"]) == (1, 3, 1)
    assert [(line["samples"], line["captions"]) for line in equal["most_often"]] == [(4, 3)]
    splits = {
        split: {item.key for item in read_items(folder / "lists", Path(), split, 0)} for split in ("train", "val")
    }
    twins = {"p01", "t1", "t2", "t3"}
    assert equal["in_both"] == (len(twins & splits["val"]) if twins & splits["train"] else 0)
    assert card["data"]["train"]["px"] == 256 and card["data"]["train"]["bytes"] > 0
    lines = "\n".join(card_lines(folder))
    assert "97.6% of 42 listed (100 as published)" in lines and "3 beyond the first, 1 under several" in lines
    assert "40 (98%) below 64 px" in card_facts(card)["Smaller than a stage"]


def test_its_page_loads_nothing_and_shows_hostile_text_as_text(folder: Path) -> None:
    card = card_of(folder, summary=HOSTILE, licence=HOSTILE)
    page = write_page(folder, {**card, "notes": [HOSTILE]}).read_text()
    found = Elements(page)
    tags = {tag for tag, _ in found.found}
    assert {"script", "link", "iframe", "object", "base", "form", "b"}.isdisjoint(tags) and "default-src 'none'" in page
    for tag, attributes in found.found:
        assert not any(name.startswith("on") for name in attributes), tag
        assert re.match("data:image/jpeg;base64,", attributes.get("src") or "data:image/jpeg;base64,")
    assert "\u202e" not in page and "\x1b" not in page
    assert found.text.count(SHOWN) >= 3  # summary, licence, note
    assert len([tag for tag, _ in found.found if tag == "img"]) == 24
    assert all((attributes["alt"] or "") != "" for tag, attributes in found.found if tag == "img")
    assert max(map(len, found.text.splitlines())) <= 2 * CAPTION_CHARS


def test_strangers_pictures_are_shown_only_where_asked(folder: Path) -> None:
    assert not CATALOGUE["cc12m"].sheet and CATALOGUE["openmoji"].sheet
    hidden = write_page(folder, card_of(folder, sheet=False)).read_text()
    assert "<img" not in hidden and "picture number" not in hidden and "--sheet" in hidden
    assert "<img" in write_page(folder, card_of(folder, sheet=True)).read_text()


def test_what_was_removed_is_on_it_no_more(folder: Path) -> None:
    before = write_page(folder, card_of(folder)).read_text()
    captions = re.findall(r'alt="(picture number \d\d)"', before)
    items = read_items(folder / "lists", Path(), "train", 0)
    key = next(item.key for item in items if item.caption == captions[1])
    take_out(folder / "train", find_keys(folder / "train", {key}))
    assert not is_current(folder)
    card = card_of(folder)
    assert is_current(folder) and card["outcomes"]["removed since"] == {"items": 1, "some": []}
    assert f'alt="{captions[1]}"' not in write_page(folder, card).read_text()
    assert sum(card["samples"].values()) == 40 and "1 removed since" in "\n".join(card_lines(folder))


def test_a_source_of_nothing_usable_twice_has_a_card(tmp_path: Path) -> None:
    folder = make_own_set(tmp_path, make_pictures(tmp_path / "p", {f"n{i}": f"caption {i}" for i in range(9)}))
    card = card_of(folder)
    assert card["equal_bytes"]["groups"] == 0 and card_facts(card)["Equal pictures"] == "none"
    assert html.unescape(write_page(folder, card).read_text()).count("caption 0") <= 2
    assert read_json(folder / "card.json") == card


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium")
@pytest.mark.parametrize(("width_px", "dark"), [(1200, False), (375, True)])
def test_is_read_on_any_screen(folder: Path, width_px: int, dark: bool) -> None:
    write_page(folder, card_of(folder))
    with Page(find_chromium() or "") as page:
        page.open(folder / PAGE, width_px, dark)
        assert page.evaluate("document.documentElement.scrollWidth") == width_px
        assert page.evaluate("[...document.images].map(image => image.naturalWidth)") == [256] * 24
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(21, 24, 27)" if dark else "rgb(255, 255, 255)")
