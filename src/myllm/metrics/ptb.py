"""Captions to the words that COCO's metrics count: Stanford's Penn Treebank tokenizer 3.4.1 without its punctuation.

The rules were found by running it, and work as a lexer's: of all that match at a place the longest wins, of equally
long ones the first. `tests/parity/test_ptb.py` holds them against it.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from sys import intern

from myllm.metrics.ngrams import Words

# Symbols that are a token each, as the inside of a character class. The rest beyond ASCII is a letter or a blank.
_SYMBOLS = (
    "\x80\x85\x91-\x94\x96\x97\xa1-\xa9\xab\xac\xae-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7\u037e\u0387\u0589\u05be\u05c0\u05c3"
    "\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u061f\u066a\u066d\u06d4\u0700-\u070d\u07f6-\u07f8"
    "\u0964\u0965\u0e3f\u0e4f\u1fbd\u2010\u2011\u2013-\u201a\u201c-\u2023\u2026\u2030-\u203b\u203e-\u2042\u2044\u2070\u2074-\u208e\u20a0\u20a4\u20ac\u2100\u2101"
    "\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u213a\u213b\u2140-\u2144"
    "\u214a-\u214d\u214f\u2153-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40"
    "\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
_IS_SYMBOL = re.compile(f"[{_SYMBOLS}]")


class _Known(dict[int, int | str | None]):
    """A table for str.translate: characters that Stanford's tokenizer drops, emoji among them, part words."""

    def __missing__(self, code: int) -> int | str | None:
        category = unicodedata.category(chr(code))
        in_word = category[0] == "L" or category == "Nd" or (category[0] == "M" and code < 0xED0)
        is_known = code < 0x10000 and (0x20 <= code < 0x7F or in_word or _IS_SYMBOL.match(chr(code)))
        self[code] = code if is_known else " "
        return self[code]


_KNOWN = _Known({0xAD: None})  # a soft hyphen leaves no trace

# What rules are made of.
_LETTER = rf"[^\x00-@\[-`{{-\x7f{_SYMBOLS}]"
_ALNUM = rf"[^\x00-/:-@\[-`{{-\x7f{_SYMBOLS}]"
_APOSTROPHE = "['’\x92]"
_IN_WORD = "['’‘`\x91\x92]"  # "n`t" and "o`clock" are read, "dog`s" is not
_CLITIC = rf"{_APOSTROPHE}(?i:s|d|m|re|ve|ll)"
_NOT = f"(?i:n{_IN_WORD}t)"
_NUMBER = r"(?:[0-9]*(?:[.,:][0-9]+)+|[0-9]+)"
_INITIALS = r"(?:[A-Za-z](?:\.[A-Za-z])*|(?i:ph|ed)\.[Dd])\."
_ELISION = rf"(?:[dDoOlL]{_IN_WORD}{_ALNUM})?"  # d'or, o'clock
_HYPHENS = "(?:-[A-Za-z]+){0,2}"
_COMPOUND = (  # these keep a point before a comma
    rf"{_ELISION}{_ALNUM}+(?:[_‐‑-]{_ELISION}{_ALNUM}+)*",
    rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)+",  # end.Then
    r"[A-Z]+(?:[&+][A-Z]+)+",  # AT&T
)
_WITH_POINTS = (  # 3.5-inch, mid-U.S.
    rf"{_ELISION}[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|{_ELISION}[A-Za-z0-9]+))+"
)
_WITHOUT_POINT = (
    rf"[A-Za-z0-9]+{_HYPHENS}(?:\\?/[A-Za-z0-9]+{_HYPHENS}){{1,2}}",  # and/or
    rf"[A-HJ-Zn]{_IN_WORD}{_LETTER}{{2,}}",  # O'Neil, G'day
    rf"{_LETTER}*{_LETTER}[aeiouyAEIOUY]{_IN_WORD}[aeiouA-Z]{_LETTER}*",  # ma'am
    rf"(?i:c'mon|s'mores|o{_IN_WORD}o|c{_APOSTROPHE}est|e{_APOSTROPHE}er|ev{_APOSTROPHE}ry|li{_APOSTROPHE}l|nat{_APOSTROPHE}l"
    rf"|cap{_APOSTROPHE}n|nor{_APOSTROPHE}easter)",
)
_WORD = f"(?:{'|'.join((*_COMPOUND, *_WITHOUT_POINT, _WITH_POINTS))})"

# Abbreviations that keep their point: those that stand before a name, and those that can end a sentence.
_BEFORE_NAMES = (
    "adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens "
    "ft gen gov govs hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof "
    "pvt rep reps rev sen sens sfc sgt spc st ste supt treas vs wm"
)
_AT_ENDS = (
    "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc "
    "ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov "
    "oct okla penn plc rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo "
    "ph\\.d ed\\.d"
)
_AT_ENDS_CAPITALIZED = "ark az del ill la mass miss ore pa tex wash"  # "la." is not Louisiana
_NOT_IN_CAPITALS = "ppte ppty pte ptes pty ptys"
_BEFORE_NUMBERS = "ca no op p pp art fig figs nos prop"


def _any(words: str, *spellings: Callable[[str], str]) -> str:
    return "|".join(spelling(word) for word in words.split() for spelling in spellings)


_TITLE = rf"(?:(?i:{_any(_BEFORE_NAMES, str)})|{_any('mfg mtg', str, str.title)})\."
_ENDING = (
    rf"(?:(?i:{_any(_AT_ENDS, str)})|{_any(_AT_ENDS_CAPITALIZED, str.title, str.upper)}"
    rf"|{_any(_NOT_IN_CAPITALS, str, str.title)})\."
)

# Addresses end before punctuation.
_IN_ADDRESS = r"[^\s\"<>(){}|]"
_LAST_IN_ADDRESS = r"[^\s\"<>(){}|.,!?-]"
_PATH = rf"(?:/{_IN_ADDRESS}+{_LAST_IN_ADDRESS})?"
_HOST_PART = r"[^\s\"`'<>|.!?(),:;/_\-=^$\\0-9{}\[\]@A-Z]+"

# A rule's groups are its tokens; what it reads after the last one only makes it longer.
_RULES = [
    re.compile(rule)
    for rule in (
        r"</?[A-Za-z][^<>\s='\",!]*(?: +[A-Za-z][\w-]*(?:=(?:\"[^\"]*\"|'[^']*'))?)*\s*/?>|<[!?][A-Za-z-][^>]*>",
        r"(?i:(can)(not)|(gon)(na)|(got)(ta)|(lem)(me)|(gim)(me)|(wan)(na)|('t)(?:is|was))",
        rf"([A-Za-z]+?){_NOT}",
        _NOT,
        rf"((?:{_WORD}|{_NUMBER}|{_INITIALS})){_CLITIC}",
        *_COMPOUND,
        *_WITHOUT_POINT,
        rf"(?:{_LETTER}|&[aeiouAEIOU](?:acute|grave|uml);)+",
        rf"({_ENDING})[\s\S]{{0,2}}",
        _WITH_POINTS,
        rf"({_CLITIC})(?![A-Za-z])[\s\S]?",
        rf"([dDjJlL]{_APOSTROPHE}|[yY]{_APOSTROPHE}(?={_LETTER})){_ALNUM}?",
        rf"{_APOSTROPHE}[nN]{_APOSTROPHE}?|[oO][lL]{_APOSTROPHE}|['’\x92](?i:em|till?|cause)",
        rf"{_APOSTROPHE}[0-9](?:0[sS]|[0-9](?!\S))",
        rf"[+-]?{_NUMBER}",
        r"(?:\+?[0-9]{1,3}[ -])?(?:\([0-9]{2,4}\) ?|[0-9]{2,4}[ -])[0-9]{3,4}[ -][0-9]{3,5}",  # a telephone
        r"(?:[0-9]{1,4}[ -])?[0-9]{1,4}(?:\\?/|⁄)[0-9]{1,4}",  # a fraction
        _INITIALS,
        _TITLE,
        rf"((?i:{_any(_BEFORE_NUMBERS, str)})\.)\s*[0-9]",
        rf"((?:{'|'.join((*_COMPOUND, _WITH_POINTS))})\.)[,;:]",
        r"[A-Z]*\$|#|[cC]\+\+|[cCfF]#",
        rf"#{_LETTER}+|@[A-Za-z_][A-Za-z_0-9]*",
        r"<?(?:mailto:)?[A-Za-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+>?",
        rf"(?i:https?://){_IN_ADDRESS}+\.{_IN_ADDRESS}*{_LAST_IN_ADDRESS}",
        rf"(?i:www\.)(?:{_HOST_PART}\.)+[A-Za-z]{{2,4}}{_PATH}",
        rf"(?:{_HOST_PART}\.)+(?:com|net|org|edu){_PATH}",
        r"([<>]?[:;=][-o*']?[()DPdpO\\{@|[\]])(?![A-Za-z0-9])[\s\S]?",
        r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>']_?[-^x=~<>']\)",
        r"\.{3,5}|\*+|\\\*|@+|#+|_+|[!?]+|<<|>>|-+|''|``|[`‘’“”«»‹›\x91-\x94]{2}",
        rf"(')[A-Za-z]{_ALNUM}",  # a quotation opens
        _CLITIC,
        r"(?i:&(?:amp|lt|gt|quot|apos|nbsp|[mn]dash|#[0-9]+);)",
    )
]

_QUOTES = {"‘": "`", "’": "'", "“": "``", "”": "''", "«": "``", "»": "''", "‹": "`", "›": "'"} | {
    "\x91": "`", "\x92": "'", "\x93": "``", "\x94": "''", "`": "`"
}
_PRINTED = {
    "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#", "€": "$", "¤": "$", "₠": "$", "\x80": "$",
    "¢": "cents", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", '"': "''", "…": "...", "\x85": "...",
    "....": "...", ".....": "...", "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'",
    "&nbsp;": " ", "&mdash;": "--", "&ndash;": "--", "–": "--", "—": "--", "―": "--", "\x96": "--", "\x97": "--",
    "---": "--", "----": "--", "‐": "-", "‑": "-",
}
_PRINTED |= _QUOTES | {first + second: _QUOTES[first] + _QUOTES[second] for first in _QUOTES for second in _QUOTES}
_PRINTED |= {f"{quote}{rest}": f"'{rest}" for quote in "’\x92" for rest in ("s", "d", "m", "re", "ve", "ll")}
_PRINTED |= {f"n{quote}t": f"n{plain}t" for quote, plain in _QUOTES.items() if len(plain) == 1}

# pycocoevalcap's list. Its brackets are missing here: it spells them in capitals, and so never meets them.
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Most of a caption is words between blanks, which no rule changes: to read them at once is 15 times as fast.
_PLAIN = re.compile(r"(?:(?:(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna)\b)[A-Za-z]+|[.,])(?:\s+|\Z))+|\s+")


def ptb_tokenize(caption: str) -> Words:
    """Lower-cased words as pycocoevalcap's PTBTokenizer gives them and its metrics count them.

    "dog's" -> dog 's, "don't" -> do n't, "cannot" -> can not; "t-shirt", "and/or", "3.5" and "U.S." are one word each.
    Quotes, dashes, points and commas are dropped; brackets stay as "-lrb-" and "-rrb-".

    A caption is one line and stands alone: an end of line in it (\\v, \\f, \\r, U+2028, U+2029) is a blank, where there
    it gives every later caption the words of the one before; and no rule reads how the next caption starts.

    No caption of Flickr8k differs. What does: 3 in 1,000 of those made of odd pieces without blanks (emoji in
    addresses, Indian vowel signs beside hyphens), "AT&amp;T", and 1 % of Unicode's first 65,536 characters, most of
    them letters that were added since.
    """
    text = caption.translate(_KNOWN) + " "  # rules look at the end of a line as at a blank
    words: Words = []
    place = 0
    while place < len(text):
        if plain := _PLAIN.match(text, place):
            words += plain[0].lower().split()
            place = plain.end()
        else:
            tokens, place = _longest(text, place)
            for token in tokens:
                words += _printed(token).split()
    # interned: of a million captions' words few differ, and would be as many objects
    return [intern(word) for word in words if word not in _DROPPED]


def _longest(text: str, place: int) -> tuple[Iterable[str], int]:
    """The tokens of the rule that reads most of the text from a place on, and where they end."""
    best, end = None, place
    for rule in _RULES:
        match = rule.match(text, place)
        if match and match.end() > end:
            best, end = match, match.end()
    if best is None:
        return text[place], place + 1
    if best.lastindex is None:
        return [best[0]], end
    return filter(None, best.groups()), best.end(best.lastindex)


def _printed(token: str) -> str:
    token = token.lower()
    return _PRINTED.get(token) or token.replace("(", "-lrb-").replace(")", "-rrb-")
