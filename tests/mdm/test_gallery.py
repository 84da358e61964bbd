"""The figures' table against the paper's own words."""

from collections import Counter

from mdm.experiments import EXPERIMENTS
from mdm.gallery import GALLERY, GUIDANCE


def test_the_figures_are_those_that_the_text_gives() -> None:
    counts = Counter(picture.figure for picture in GALLERY)
    assert counts == {
        **{"Fig. 1": 2, "Fig. 5": 1, "Fig. 9": 18, "Fig. 11": 1, "Fig. 13": 6, "Fig. 14": 6, "Fig. 15": 1},
        **{"Fig. 16": 5, "Fig. 17": 3, "Fig. 18": 3, "Fig. 19": 3},
    }
    printed = {picture.figure: picture.guidance for picture in GALLERY if picture.guidance}
    assert printed == {
        **{"Fig. 13": 2.5, "Fig. 14": 2.5, "Fig. 15": 2.0, "Fig. 16": 7.0, "Fig. 17": 7.0, "Fig. 18": 7.0},
        "Fig. 19": 7.0,
    }


def test_the_experiments_ask_at_the_figures_guidance() -> None:
    for name, data in (("imagenet", "ImageNet"), ("256", "CC12M"), ("video", "WebVid-10M")):
        used = {picture.guidance or GUIDANCE[picture.data] for picture in GALLERY if picture.data == data}
        assert used == set(EXPERIMENTS[f"gallery-{name}"].guidance)
