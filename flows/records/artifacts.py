"""Prefect artifacts: what the Prefect UI shows of a stage. Text from data and servers is escaped."""

import contextlib
import time
from pathlib import Path
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from preprocessing.cards.card import card_facts
from preprocessing.manifest import read_json
from preprocessing.sets import CARD, PAGE

EVERY_S = 5


class StageProgress:
    """A progress bar in the UI, refreshed at most every few seconds; the flow never fails for it."""

    def __init__(self, name: str, total: float) -> None:
        self.total, self.sent = total, 0.0
        created = create_progress_artifact(0.0, key=slug(f"progress-{name}"), description=name)
        self.id = created if isinstance(created, UUID) else None

    def update(self, done: float) -> None:
        if self.id is None or time.monotonic() - self.sent < EVERY_S:
            return
        self.sent = time.monotonic()
        # A server that is away must not stop what it shows, nor be waited for.
        with contextlib.suppress(Exception), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            update_progress_artifact(self.id, 100 * min(1.0, done / self.total))

    def done(self) -> None:
        self.sent = 0.0
        self.update(self.total)


def show_metrics(key: str, rows: list[dict[str, str]], description: str) -> None:
    create_table_artifact(
        [{k: plain(v) for k, v in row.items()} for row in rows], key=slug(key), description=description
    )


def show_card(folder: Path) -> None:
    """A data set's card, and where its page lies; nothing where it has none."""
    card = read_json(folder / CARD)
    if card is None or not (folder / PAGE).exists():
        return
    rows = [{"what": what, "it is": text} for what, text in card_facts(card).items()]
    show_metrics(f"data-{card['name']}", rows, f"Data card of {folder.name}")
    show_link(f"data-page-{card['name']}", (folder / PAGE).as_uri(), f"The data card's page, {folder.name}")


def show_link(key: str, link: str, text: str) -> None:
    create_link_artifact(link, link_text=text, key=slug(key))


def plain(text: str) -> str:
    """Without characters that Markdown or HTML would act on."""
    return "".join(c if c not in "<>[]`|*_\\" else " " for c in text)


def slug(text: str) -> str:
    """Artifact keys admit lower-case letters, digits and dashes."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower().replace("²", "")).strip("-")
