"""The wording of alternative texts: one short sentence, and no words of gender or age for people (English)."""

import re

from myllm.apps.alt_people import DANGLING, without_gender_and_age

MAX_LENGTH = 125
LEAD_IN = re.compile(
    r"^(?:(?:this|it|here) is |there is )?(?:an? |the )?(?:image|picture|photo|photograph|pic|snapshot|graphic)s?"
    r" (?:of|showing|that shows|which shows|shows)\s+", re.IGNORECASE,
)


def alternative_text(caption: str, people: bool = False, is_cut: bool = False) -> str:
    """Return a caption as an alternative text.

    people: keep words like "woman" and "young". is_cut: the caption may end in the middle of a sentence.
    """
    text = LEAD_IN.sub("", " ".join(caption.split()))
    text = re.sub(r" +([,.;:!?]|'s\b)", r"\1", text)  # captions of some data have blanks there
    text = _without_dangling_end(text) if is_cut else text
    return sentence(text if people else without_gender_and_age(text))


def sentence(text: str) -> str:
    """Return a text in at most MAX_LENGTH characters, cut after a word, with a capital first letter."""
    text = " ".join(text.split())
    if len(text) > MAX_LENGTH:
        text = _without_dangling_end(text[: MAX_LENGTH + 1].rpartition(" ")[0] or text[:MAX_LENGTH])
    text = text.rstrip(" .,;:-")
    return text[:1].upper() + text[1:]


def _without_dangling_end(text: str) -> str:
    words = text.rstrip(" .,;:-").split(" ")
    while len(words) > 1 and words[-1].lower() in DANGLING:
        words.pop()
    return " ".join(words)
