"""The data cards of the sets: made with them, and again when samples were removed."""

from pathlib import Path
from typing import Any

from flows.datasets.removal import Say, hold_in_turn
from preprocessing.cards.card import ABOUT, is_current, write_card
from preprocessing.cards.page import write_page
from preprocessing.manifest import read_json
from preprocessing.sets import CARD, PAGE


def keep_card(folder: Path, about: dict[str, Any], say: Say, sheet: bool | None = None) -> None:
    """card.json and card.html of a finished set, unless they are there and tell of the set as it is now.

    ``about``: as ``write_card`` has it, for a set without a card. ``sheet``: whether the page shows samples; None: as
    before. No set fails for its card: what goes wrong is said, and the next command that wants the set tries again.
    """
    if not (folder / "lists").exists():
        return  # an earlier version made it: what became of each item is not known
    try:
        card = read_json(folder / CARD) or {}
        wanted = {**about, **{field: card[field] for field in ABOUT if field in card}}
        if sheet is not None:
            wanted["sheet"] = sheet
        if is_current(folder) and (folder / PAGE).exists() and wanted["sheet"] == card["sheet"]:
            return
        with hold_in_turn(folder, say):
            write_page(folder, write_card(folder, wanted))
    except Exception as error:
        say(f"{folder}: its data card could not be made ({type(error).__name__}: {error}); the set itself is whole")
