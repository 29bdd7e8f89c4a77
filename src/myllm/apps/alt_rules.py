"""What is wrong with a picture's alternative text, and what it should be, after W3C's alt decision tree.

https://www.w3.org/WAI/tutorials/images/decision-tree/
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter

from myllm.apps.alt_html import (
    ROUTER_LINKS,
    TEMPLATE_CODE,
    Element,
    Sentences,
    has_alt_of_template,
    has_bound_address,
    words_of,
)
from myllm.apps.alt_pictures import path_of, spacer_by_name, spacer_by_size
from myllm.apps.alt_wording import LEAD_IN
from myllm.data.images import PICTURE_SUFFIXES

MISSING = "no alternative text"
OF_TEMPLATE = "perhaps no alternative text"
PLACEHOLDERS = (
    "image", "picture", "photo", "photograph", "img", "pic", "graphic", "icon", "alt", "alt text", "untitled", "spacer",
)
DECORATION = ("presentation", "none")
"""Roles of pictures that screen readers pass over."""
# a text in one of these belongs to the pictures in it; axe-core's rule image-redundant-alt compares with these, too
TEXT_BLOCKS = ("p", "li", "td", "th", "a", "button", "figure", "dt", "dd", "label")
COMPARED_BLOCKS = ("p", "li", "td", "th", "a", "button")
FILLER_WORDS = frozenset(" ".join((
    "a an the of in on at with by to and or is are it its this that these there here his her their some one",
    "from near next into onto",
)).split())
NAME_PARTS = re.compile(r"[\d_]|-.*-")


@dataclass(frozen=True)
class Finding:
    """What is wrong with a picture, and what can be done."""

    problem: str
    alt: str | None
    """Suggested text, "" for a decorative picture; None if a person has to write it."""
    reason: str
    """Why that is suggested, or why a person has to write it; "" if the picture itself decides."""
    confidence: float | None = None
    """Confidence of the caption, whether it is suggested or not; None without a caption."""

    @property
    def is_missing(self) -> bool:
        """Whether there is no alternative text, rather than a wrong one."""
        return self.problem == MISSING


def judge(element: Element, name_destination: Callable[[Element], tuple[str, str]]) -> Finding | None:
    """Return what is wrong with a picture, as far as its page says; None if nothing is.

    name_destination: returns the name of a link's destination and where the name is from, or "", "".
    """
    if element.tag not in ("img", "input", "area"):
        has_title = any(isinstance(child, Element) and child.tag == "title" for child in element.children)
        kind = "an SVG drawing" if element.tag == "svg" else f"a <{element.tag}> with the role img"
        is_named = has_title or _has_label(element) or _is_hidden(element)
        return None if is_named else Finding(MISSING, None, f"{kind} needs an aria-label, which a person writes")
    link = next((ancestor for ancestor in element.ancestors() if _is_link(ancestor)), None)
    if "alt" in element.attributes:
        return None if _is_hidden(element) else _judge_existing(element, link)
    if _has_label(element):
        return None
    if has_alt_of_template(element):
        return Finding(OF_TEMPLATE, None, "its alt may be made by a template")
    if element.tag == "input":
        return _named_button(element.get("value"))
    if _is_hidden(element) and (link is None or _is_hidden(link)):
        return Finding(MISSING, "", "it is hidden by aria-hidden")
    if element.tag == "area" or link is not None:
        return _judge_linked(element, element if link is None else link, name_destination)
    is_decoration = element.role in DECORATION
    return Finding(MISSING, "", "it is marked as decoration") if is_decoration else Finding(MISSING, None, "")


def judge_unreadable(element: Element, error: Exception) -> Finding:
    """Return the finding for a picture that is not in a link and whose file is missing or cannot be read."""
    spacer = spacer_by_size(element) or (spacer_by_name(element) if isinstance(error, FileNotFoundError) else "")
    return Finding(MISSING, "" if spacer else None, spacer or str(error))


def _judge_linked(
    element: Element, link: Element, name_destination: Callable[[Element], tuple[str, str]]
) -> Finding:
    if element is not link:
        if link.has_conditions:
            return Finding(MISSING, None, "a template decides what else its link or button shows")
        if _is_spoken(link.name) or link.get("aria-labelledby"):
            return Finding(MISSING, "", "its link has a text")
        if _is_shown_in(link, element) and element is not next(_bare_pictures(link), element):
            return Finding(MISSING, "", "another picture of its link names where the link leads")
        if _is_hidden(element) or element.role in DECORATION:
            return Finding(MISSING, None, "it is marked as decoration, but its link has no other text")
    if link.role != "link" and link.tag not in ("a", "area", *ROUTER_LINKS):
        return _named_button(link.get("aria-label") or link.get("title"))
    name, origin = name_destination(link)
    if not name:
        return Finding(MISSING, None, "it is to name where its link leads, which the page does not say")
    return Finding(MISSING, name, f"names where its link leads: {origin}")


def _named_button(label: str) -> Finding:
    if TEMPLATE_CODE.search(label):
        return Finding(MISSING, None, "a template names its button")
    return Finding(MISSING, label or None, "names the button" if label else "it is to name what its button does")


def _judge_existing(element: Element, link: Element | None) -> Finding | None:
    """Return what is wrong with an alternative text that is there. It is never changed."""
    alt = " ".join(element.attributes["alt"].split())
    problem = ""
    if element.attributes["alt"] and not _is_spoken(alt):
        problem = "the alternative text has only blanks"
    elif not alt and link is not None and not (_is_spoken(link.name) or _has_label(link)):
        problem = "the alternative text is empty, but its link has no other text"
    elif not alt and element.tag in ("area", "input") and not _has_label(element):
        problem = "the alternative text is empty, but it names a link or a button"
    elif _is_file_name(alt, element):
        problem = "the alternative text is a file name"
    elif alt.lower() in PLACEHOLDERS:
        problem = "the alternative text says nothing about the picture"
    elif LEAD_IN.match(alt):
        problem = 'the alternative text begins with "image of" or the like'
    elif alt and (block := element.closest(COMPARED_BLOCKS)) and block.line == alt.lower():
        problem = "the alternative text repeats the text next to it"
    return Finding(problem, None, "existing texts are not changed") if problem else None


def _is_file_name(alt: str, element: Element) -> bool:
    name = path_of(element.get("src")).rpartition("/")[2]
    stem = name.rpartition(".")[0]
    has_suffix = " " not in alt and alt.lower().endswith((*PICTURE_SUFFIXES, ".svg"))
    return bool(alt) and (has_suffix or alt == name or (alt == stem and NAME_PARTS.search(alt) is not None))


def _is_link(element: Element) -> bool:
    has_address = element.tag == "a" and ("href" in element.attributes or has_bound_address(element))
    return has_address or element.tag in ("button", *ROUTER_LINKS) or element.role in ("button", "link")


def _is_spoken(text: str) -> bool:
    """Whether a text has more than blanks, invisible characters and the private ones of icon fonts."""
    return any(char.isprintable() and not char.isspace() for char in text)


def _has_label(element: Element) -> bool:
    """Whether it has a name that screen readers read in place of an alternative text."""
    return any(element.get(name) for name in ("aria-label", "aria-labelledby", "title"))


def _is_hidden(element: Element) -> bool:
    """Whether screen readers leave an element out, even when it is shown."""
    return any(ancestor.is_aria_hidden for ancestor in element.ancestors())


def _bare_pictures(link: Element) -> Iterator[Element]:
    """Yield the pictures of a link that could name it and have no alternative text."""
    for element in link.descendants():
        if isinstance(element, Element) and element.tag == "img" and "alt" not in element.attributes:
            is_marked = element.role in DECORATION
            is_spacer = spacer_by_size(element) or spacer_by_name(element)
            is_silent = is_marked or is_spacer or _has_label(element) or _is_hidden(element)
            if _is_shown_in(link, element) and not is_silent:
                yield element


def _is_shown_in(link: Element, element: Element) -> bool:
    """Whether a picture is shown when its link is."""
    return all(ancestor.is_shown for ancestor in takewhile(lambda ancestor: ancestor is not link, element.ancestors()))


def is_repeated(alt: str, element: Element) -> bool:
    """Whether a sentence next to a picture has all words of a text, apart from words like "the"."""
    words = words_of(alt) - FILLER_WORDS
    return bool(words) and any(sentences.has_together(words) for sentences in _nearby_sentences(element))


def _nearby_sentences(element: Element) -> list[Sentences]:
    """Return the sentences of the block around a picture, or of its neighbours if that block is not a paragraph."""
    node = element
    while node.parent is not None and not node.parent.text:
        node = node.parent
    if node.parent is None:
        return []
    block = node.parent.closest(TEXT_BLOCKS)
    if block is not None:
        return [block.sentences]
    siblings = node.parent.sentences_of_children
    before, after = (bisect(siblings, node.index, key=itemgetter(0)) for bisect in (bisect_left, bisect_right))
    return [sentences for _, sentences in siblings[max(before - 1, 0) : before] + siblings[after : after + 1]]
