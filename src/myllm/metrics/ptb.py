"""Split captions into words as COCO's metrics do: Stanford's Penn Treebank tokenizer 3.4.1, then drop punctuation.

A lexer: at each position the rule with the longest match wins; among equally long matches the first rule. The rules
were found by running Stanford's program; `tests/parity/test_ptb.py` compares the two.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from sys import intern

from myllm.metrics.ngrams import Words

# Symbols that are a token each, written as the inside of a character class. Other characters beyond ASCII are letters
# or blanks.
_SYMBOLS = (
    "\x80\x85\x91-\x94\x96\x97\xa1-\xa9\xab\xac\xae-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7\u037e\u0387\u0589\u05be\u05c0\u05c3"
    "\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u061f\u066a\u066d\u06d4\u0700-\u070d\u07f6-\u07f8"
    "\u0964\u0965\u0e3f\u0e4f\u1fbd\u2010\u2011\u2013-\u201a\u201c-\u2023\u2026\u2030-\u203b\u203e-\u2042\u2044\u2070\u2074-\u208e\u20a0\u20a4\u20ac\u2100\u2101"
    "\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u213a\u213b\u2140-\u2144"
    "\u214a-\u214d\u214f\u2153-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40"
    "\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
_IS_SYMBOL = re.compile(f"[{_SYMBOLS}]")


class _KnownCharacters(dict[int, int | str | None]):
    """Table for str.translate: characters that Stanford's tokenizer ignores, such as emoji, become blanks."""

    def __missing__(self, code: int) -> int | str | None:
        category = unicodedata.category(chr(code))
        in_word = category[0] == "L" or category == "Nd" or (category[0] == "M" and code < 0xED0)
        is_known = code < 0x10000 and (0x20 <= code < 0x7F or in_word or _IS_SYMBOL.match(chr(code)))
        self[code] = code if is_known else " "
        return self[code]


_SOFT_HYPHEN = "\xad"  # a letter in the rules, and removed from the words
_KNOWN = _KnownCharacters({0xAD: 0xAD})
_MARKS = "".join(chr(code) for code in range(0x300, 0xED0) if unicodedata.category(chr(code))[0] == "M")

# Building blocks of the rules.
_LETTER = rf"[^\x00-@\[-`{{-\x7f{_SYMBOLS}]"
_ALNUM = rf"[^\x00-/:-@\[-`{{-\x7f{_SYMBOLS}]"
_ENTITY = "&[aeiouAEIOU](?:acute|grave|uml);"
_UNMARKED_LETTER = rf"[^\x00-@\[-`{{-\x7f{_SYMBOLS}{_MARKS}]"
_IN_COMPOUND = rf"[^\x00-/:-@\[-`{{-\x7f{_SYMBOLS}{_MARKS}]"  # a combining accent ends a compound
_APOSTROPHE = "['’\x92]"
_IN_WORD = "['’‘`\x91\x92]"  # "n`t" and "o`clock" count, "dog`s" does not
_CLITIC = rf"{_APOSTROPHE}(?i:s|d|m|re|ve|ll)"
_NOT = f"(?i:n{_IN_WORD}t)"
_NUMBER = r"(?:[0-9]*(?:[.,:][0-9]+)+|[0-9]+)"
_INITIALS = r"(?:[A-Za-z](?:\.[A-Za-z])*|(?i:ph|ed)\.[Dd])\."
_ELISION = rf"(?:[dDoOlL]{_IN_WORD}{_IN_COMPOUND})?"  # d'or, o'clock
_HYPHENS = "(?:-[A-Za-z]+){0,2}"
_COMPOUND = (  # keep a full stop before a comma
    rf"{_ELISION}{_IN_COMPOUND}+(?:[_‐‑-]{_ELISION}{_IN_COMPOUND}+)*",
    rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)+",  # end.Then
    r"[A-Z]+(?:[&+][A-Z]+)+",  # AT&T
)
# Bounded repetition: without it, text without blanks takes quadratic time.
_WITH_POINTS = (  # 3.5-inch, mid-U.S.
    rf"{_ELISION}[A-Za-z0-9][A-Za-z0-9.,]{{0,99}}(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|{_ELISION}[A-Za-z0-9]+))+"
)
_WITHOUT_POINT = (
    rf"[A-Za-z0-9]+{_HYPHENS}(?:\\?/[A-Za-z0-9]+{_HYPHENS}){{1,2}}",  # and/or
    rf"[A-HJ-Zn]{_IN_WORD}{_UNMARKED_LETTER}{{2,}}",  # O'Neil, G'day
    rf"{_UNMARKED_LETTER}+[aeiouyAEIOUY]{_IN_WORD}[aeiouA-Z]{_UNMARKED_LETTER}*",  # ma'am
    rf"(?i:c'mon|s'mores|o{_IN_WORD}o|c{_APOSTROPHE}est|e{_APOSTROPHE}er|ev{_APOSTROPHE}ry|li{_APOSTROPHE}l|nat{_APOSTROPHE}l"
    rf"|cap{_APOSTROPHE}n|nor{_APOSTROPHE}easter)",
)
_WORD = f"(?:{'|'.join((*_COMPOUND, *_WITHOUT_POINT, _WITH_POINTS))})"

# Abbreviations that keep their full stop: before a name, and at the end of a sentence.
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
_HOST_PART = r"[^\s\"`'<>|.!?(),:;/_\-=^$\\0-9{}\[\]@A-Z]{1,99}"

# The groups of a rule are its tokens. Text matched after the last group only makes the match longer.
_RULES = [
    re.compile(rule)
    for rule in (
        r"</?[A-Za-z][^<>\s='\",!]*(?: +[A-Za-z][\w-]*(?:=(?:\"[^\"]*\"|'[^']*'))?)*\s*/?>|<[!?][A-Za-z-][^>]*>",
        r"(?i:(can)(not)|(gon)(na)|(got)(ta)|(lem)(me)|(gim)(me)|(wan)(na)|('t)(?:is|was))",
        rf"([A-Za-z]*[A-MO-Za-mo-z]{_SOFT_HYPHEN}*){_NOT}",  # "isn't", but not "inn't"
        _NOT,
        rf"((?:{_WORD}|{_NUMBER}|{_INITIALS})){_CLITIC}",
        *_COMPOUND,
        *_WITHOUT_POINT,
        rf"(?:{_LETTER}|{_ENTITY})(?:{_ALNUM}|{_ENTITY})*",
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
        rf"((?:{'|'.join((*_COMPOUND, _WITH_POINTS, _LETTER + _ALNUM + '*'))})\.)[,;:]",
        r"[A-Z]*\$|#|[cC]\+\+|[cCfF]#",
        rf"#{_LETTER}+|@[A-Za-z_][A-Za-z_0-9]*",
        r"<?(?:mailto:)?[A-Za-z0-9][^\s\"<>|(){}]{0,99}@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+>?",
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
_NORMALIZED = {
    "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#", "€": "$", "¤": "$", "₠": "$", "\x80": "$",
    "¢": "cents", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", '"': "''", "…": "...", "\x85": "...",
    "....": "...", ".....": "...", "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'",
    "&nbsp;": " ", "&mdash;": "--", "&ndash;": "--", "–": "--", "—": "--", "―": "--", "\x96": "--", "\x97": "--",
    "---": "--", "----": "--", "‐": "-", "‑": "-",
}
_NORMALIZED |= _QUOTES | {first + second: _QUOTES[first] + _QUOTES[second] for first in _QUOTES for second in _QUOTES}
_NORMALIZED |= {f"{quote}{rest}": f"'{rest}" for quote in "’\x92" for rest in ("s", "d", "m", "re", "ve", "ll")}
_NORMALIZED |= {f"n{quote}t": f"n{plain}t" for quote, plain in _QUOTES.items() if len(plain) == 1}

# pycocoevalcap's list, without its brackets: it spells them in capitals, so they never match lower-cased words.
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Fast path: most of a caption is plain words between blanks, which no rule changes; 15 times as fast.
_PLAIN = re.compile(r"(?:(?:(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna)\b)[A-Za-z]+|[.,])(?:\s+|\Z))+|\s+")


def ptb_tokenize(caption: str) -> Words:
    """Return the lower-cased words of a caption, equal to those of pycocoevalcap's PTBTokenizer.

    "dog's" -> dog 's, "don't" -> do n't, "cannot" -> can not; "t-shirt", "and/or", "3.5" and "U.S." are one word each.
    Quotes, dashes, full stops and commas are dropped; brackets become "-lrb-" and "-rrb-".

    Two differences are intended. A line break inside a caption (\\v, \\f, \\r, U+2028, U+2029) is a blank, where
    pycocoevalcap shifts the words of every later caption by one. And no rule reads the beginning of the next caption.

    Known other differences: none on the captions of Flickr8k; 3 in 1,000 captions made of odd pieces without blanks
    (such as emoji in addresses); "AT&amp;T"; compounds with full stops, and addresses before "@", of over 100
    characters; and 1 % of Unicode's first 65,536 characters, most of them letters that are newer than Stanford's
    program.
    """
    text = caption.translate(_KNOWN) + " "  # the rules treat the end of a line as a blank
    words: Words = []
    position = 0
    while position < len(text):
        if plain := _PLAIN.match(text, position):
            words += plain[0].lower().split()
            position = plain.end()
        else:
            tokens, position = _longest_match(text, position)
            for token in tokens:
                words += _normalize_token(token).split()
    # Interned, because a million captions consist of few different words.
    return [intern(word) for word in words if word not in _DROPPED]


def _longest_match(text: str, position: int) -> tuple[Iterable[str], int]:
    """Return the tokens of the longest match at `position`, and the index after the last of them."""
    matches = (match for rule in _RULES if (match := rule.match(text, position)))
    best = max(matches, key=re.Match.end, default=None)  # the first of equally long ones
    if not best or not best[0]:
        return text[position], position + 1
    if best.lastindex is None:
        return [best[0]], best.end()
    return filter(None, best.groups()), best.end(best.lastindex)


def _normalize_token(token: str) -> str:
    token = token.lower().replace(_SOFT_HYPHEN, "")
    return _NORMALIZED.get(token) or token.replace("(", "-lrb-").replace(")", "-rrb-")
