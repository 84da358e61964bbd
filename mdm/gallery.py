"""The pictures of the paper's figures: which prompt or label, at which guidance, how large (arXiv 2310.15111).

What its text does not give is not here: the prompts of Figs. 6 and 7, the labels of Figs. 5 and 15 (random ones), how
many pictures a prompt has. It names classes by their words, without numbers: a data set knows which is which.
"""

from dataclasses import dataclass
from typing import Literal

Data = Literal["ImageNet", "CC12M", "WebVid-10M"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One prompt of one figure, as it is printed, slips included."""

    figure: str
    data: Data  # what the model was trained on
    px: tuple[int, ...]  # one side at each resolution that is shown
    prompt: str = ""  # or the words of a class; "": a random label
    guidance: float | None = None  # None: not printed
    frames: int = 1


def _figure(
    figure: str, data: Data, px: tuple[int, ...], guidance: float | None, *prompts: str, frames: int = 1
) -> list[Picture]:
    return [
        Picture(figure=figure, data=data, px=px, prompt=prompt, guidance=guidance, frames=frames) for prompt in prompts
    ]


GALLERY = (
    *_figure(
        "Fig. 1",
        "CC12M",
        (64, 128, 256, 512, 1024),
        None,
        "a Stormtrooper Matryoshka doll, super details, extreme realistic, 8k",
    ),
    *_figure("Fig. 1", "WebVid-10M", (64,), None, "pouring milk into black coffee", frames=16),
    *_figure("Fig. 5", "ImageNet", (256,), None, ""),
    *_figure(  # App. G has the captions and marks these two as 1024 × 1024; the others are taken to be 256 × 256
        "Fig. 9",
        "CC12M",
        (1024,),
        None,
        'a fluffy owl with a knitted hat holding a wooden board with "Thank You" written on it',
        "a blue jay stops on the top of a helmet of Japanese samurai, background with sakura tree",
    ),
    *_figure(
        "Fig. 9",
        "CC12M",
        (256,),
        None,
        "batman and Joker making sushi together",
        "a squirrel wearing a crown on stage",
        "an oil painting of Border Collie",
        "an oil painting of rain at a traditional Chinese town",
        "a broken boat in a peacel lake",  # on one line with the next
        "a lipstick put in front of pumpkins",
        "a frog drinking coffee , fancy digital Art",
        "a lonely dog watching sunset",
        "a painting of a royal girl in a classic castle",
        "a realistic photo of a castle",
        "origami style, paper art, a fat cat drives UFO",
        "a teddy bear wearing blue ribbon taking selfie in a small boat in the center of a lake",
        "paper art, paper cut style, cute bear",
        "crowded subway, neon ambiance, abstract black oil, gear mecha, detailed acrylic, photorealistic",
        "a groundhog wearing a straw hat stands on top of the table",
        "an experienced chief making Frech soup in the style of golden light",
    ),
    *_figure("Fig. 11", "CC12M", (64, 256, 1024), None, "a panda playing guitar in a garden."),
    *_figure(
        "Fig. 13",
        "ImageNet",
        (256,),
        2.5,
        "rhinoceros beetle",
        "Siberian husky",
        "cliff, drop, drop-off",
        "coral reef",
        "space shuttle",
        "hummingbird",
    ),
    *_figure(
        "Fig. 14",
        "ImageNet",
        (256,),
        2.5,
        "sulphur-crested cockatoo, Kakatoe galerita, Cacatua galerita",
        "llama",
        "loggerhead, loggerhead turtle, Caretta caretta",
        "hot pot, hotpot",
        "jack-o'-lantern",
        "espresso",
    ),
    *_figure("Fig. 15", "ImageNet", (256,), 2.0, ""),
    *_figure(
        "Fig. 16",
        "CC12M",
        (256,),
        7.0,
        "cinematic photo of a hand holding a jack-o'-lantern",
        "a toy bulldozer on a small table in a garden",
        "a Chinese ink painting of trees near a peaceful lake",
        "cinematic photo of an old man with long curly hair, blue eyes and wearing a top hat",
        "Vbrant portrait painting of an Egyptian cat with a robotic half face",
    ),
    *_figure(
        "Fig. 17",
        "CC12M",
        (1024,),
        7.0,
        "80mm resin detailed miniature of fluffy black devil rabbit, hell, red eyes, Product Introduction Photos",
        "A glass bottle containing a sailboat floats through the galaxy",
        "The edge of the Russian forest in summer at night",
    ),
    *_figure(
        "Fig. 18",
        "CC12M",
        (1024,),
        7.0,
        "Concept art of a wizard blowing the trumpet on the top of a mountain",
        "a medieval knight in the daylight with intricate armor details, holding a blooming violet bouquet in his "
        "hand. sunshine casts shadows",
        "Old photo of a young girl in 1890s in an apron works at a local bar",
    ),
    *_figure(
        "Fig. 19",
        "WebVid-10M",
        (256,),
        7.0,
        "Busy freeway at night",
        "Pouring milk into black coffee",
        "A teddy bear riding a skateboard by the lake",
        frames=16,
    ),
)

# Our choices: where no guidance is printed, that of other figures of the same kind of model; and how many pictures a
# prompt has, and a figure of random labels.
GUIDANCE: dict[Data, float] = {"ImageNet": 2.0, "CC12M": 7.0, "WebVid-10M": 7.0}
PICTURES, RANDOM_LABELS = 4, 16
