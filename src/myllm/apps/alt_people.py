"""Neutral words for people in English captions: "a young woman" becomes "a person", "a man and a woman" two people."""

import re
from collections import defaultdict
from itertools import chain, dropwhile

from myllm.metrics.lexicon import colours, things

# these do not end a phrase
DANGLING = frozenset(" ".join((
    "a an the and or of in on at with by from to into onto over under near next for while as is are that who its",
    "his their beside behind between",
)).split())
# phrases that the rules for single words would spoil
PHRASES = (
    "drag queen|prom queen|lion king|burger king|guy fawkes|blues brother|best man|flower girl|little league|"
    "granny pantie"
)
TOKEN = re.compile(rf"\b(?:{PHRASES})s?\b|[\w-]+(?:'s|(?<=s)')?|[^\w\s]|\s+", re.IGNORECASE)
AGE_IN_YEARS = re.compile(r"\b(\w+)[- ]years?[- ]olds?\b")
AGE_IN_TWO_WORDS = re.compile(
    r"\b(?:(?:middle|old|older|young|younger|elderly|college|(?:(?:high|grade|middle)[- ])?school)"
    r"[- ]?(?:aged?|looking)|grown[- ]ups?)\b", re.IGNORECASE,
)
DECADE = re.compile(
    r" in (?:his|her|their) (?:(?:early|mid|late)[- ])?(?:\d0s|(?:twen|thir|for|fif|six|seven|eigh)ties)\b",
    re.IGNORECASE,
)

_NEUTRAL_NOUNS = {
    "person": "man woman guy dude bloke lad lass gal fellow gentleman lady male female adult grownup grown-up teenager"
              " teen youngster youth adolescent senior",
    "child": "boy girl baby toddler infant kid newborn preschooler tot son daughter preteen pre-teen tween",
    "parent": "mother father mom dad mum mommy daddy momma mama papa", "sibling": "brother sister",
    "grandparent": "grandmother grandfather grandma grandpa granny", "grandchild": "grandson granddaughter",
    "relative": "uncle aunt auntie nephew niece", "partner": "husband wife", "friend": "boyfriend girlfriend",
    "police officer": "policeman policewoman", "firefighter": "fireman", "angler": "fisherman",
    "businessperson": "businessman businesswoman", "salesperson": "salesman saleswoman",
    "worker": "workman repairman handyman", "mail carrier": "mailman postman", "camera operator": "cameraman",
    "crew member": "crewman", "guard": "guardsman", "server": "waiter waitress", "host": "hostess",
    "flight attendant": "stewardess",
    "rider": "cowboy cowgirl horseman horsewoman", "athlete": "sportsman sportswoman", "batter": "batsman",
    "base player": "baseman", "sword fighter": "swordsman", "stunt performer": "stuntman",
    "student": "schoolboy schoolgirl", "newlywed": "bride groom", "wedding attendant": "bridesmaid groomsman",
    "performer": "actress showgirl", "ballet dancer": "ballerina", "monarch": "king queen", "royal": "prince princess",
}


def _plural(noun: str) -> str:
    endings = {"person": "people", "child": "children", "man": "men", "wife": "wives", "ss": "sses", "": "s"}
    endings |= {consonant + "y": consonant + "ies" for consonant in "bdmn"}
    ending = max(filter(noun.endswith, endings), key=len)
    return noun.removesuffix(ending) + endings[ending]


PLURALS = {neutral: _plural(neutral) for neutral in _NEUTRAL_NOUNS}
NEUTRAL = {word: neutral for neutral, words in _NEUTRAL_NOUNS.items() for word in words.split()}
NEUTRAL |= {_plural(word): PLURALS[neutral] for word, neutral in NEUTRAL.items()}
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DETERMINER = rf"(?:(?:the )?(?:{'|'.join(NUMBERS)}|\d+) |(?:an?|the|the other|another) )?"
_NOUN = rf"(?:{'|'.join(chain(PLURALS, PLURALS.values()))})\b(?!['-])"
PEOPLE = re.compile(rf"\b({_DETERMINER})({_NOUN})")
LIST_OF_PEOPLE = re.compile(
    rf"\b({_DETERMINER}){_NOUN}(?:(?:,? and |, ){_DETERMINER}{_NOUN})+((?:,(?= and\b))?)", re.IGNORECASE
)
ADJECTIVE = rf"(?!(?:{'|'.join((*DANGLING, *NUMBERS))})\b)[\w-]+(?<![^s]s)"
# left out before another noun for people: "a toddler boy", "a woman skier"
GENERAL = ("person", "people", "child", "children")
# left out before a noun for people
AGE_AND_GENDER = frozenset(" ".join((
    "young younger old older elder elderly aged teenage teenaged adult male female little youthful grown mature",
    "juvenile newborn",
)).split())
MAX_WORDS_BETWEEN = 3
VERB = re.compile("(?:ing|[^is]s)$")
# may stand between words like "woman", which can be followed by a verb, and a noun for people
BETWEEN = frozenset(" ".join((
    "tennis soccer football basketball baseball softball volleyball lacrosse hockey rugby cricket golf beach field ice",
    "lawn rock bike ballet professional college school black white asian african american indian",
)).split())
TEAMS = ("team", "teams", "game", "match", "race")
# nouns for people that the list of things lacks
_MORE_PEOPLE = [
    "archer", "ballplayer", "bartender", "citizen", "couple", "entertainer", "guide", "leaguer", "ninja", "scout",
    "spotter", "team",
]
PEOPLE_NOUNS = {*NEUTRAL, *NEUTRAL.values(), *_MORE_PEOPLE, *map(_plural, _MORE_PEOPLE)}
# these belong to a thing that follows: "cowboy hat", "baby elephant", "male lion"
ATTRIBUTES = frozenset(" ".join((
    "baby male female adult senior cowboy cowgirl prince princess king queen mother father momma granny",
    "newborn bridesmaid",
)).split())
PRONOUNS = {"he": "they", "she": "they", "his": "their", "him": "them", "hers": "theirs", "himself": "themselves",
            "herself": "themselves"}
IRREGULAR_VERBS = {"is": "are", "was": "were", "has": "have", "does": "do", "goes": "go"}
# after "her", these show that it does not belong to the next word
NOT_OWNED = frozenset(" ".join((
    "in on at with by from to into onto over under",
    "near and or as while for , . ; is are",
    "a an the that off up down out away through around along after during when but too to behind before inside",
    "outside across against all both about",
)).split())


def without_gender_and_age(text: str) -> str:
    """Replace "a young woman" by "a person", "boys" by "children" and so on, with articles and verbs that fit."""
    text = AGE_IN_YEARS.sub(r"\1-year-old", DECADE.sub("", text))
    tokens = TOKEN.findall(AGE_IN_TWO_WORDS.sub(lambda match: match[0].replace(" ", "-"), text))
    words = [token.lower() for token in tokens]
    output, is_left_out, is_changed = list[str](), False, False
    words_for = defaultdict[str, set[str]](set)
    for index, token in enumerate(tokens):
        following = [word for word in words[index + 1 :] if not word.isspace()]
        neutral = "" if is_left_out and token == "," else _neutral_word(words[index], following)
        is_left_out = neutral == "" or (is_left_out and token.isspace())
        if neutral == "":
            is_changed = True
            continue
        word = token if neutral is None else neutral
        if word in PLURALS:
            is_another = bool(words_for[word]) and words[index] not in words_for[word]
            words_for[word].add(words[index])
            if is_another and "".join(output[-6:]).lower().split()[-1:] == ["the"]:
                word = f"other {word}"
        if (is_changed or neutral is not None) and not word.isspace():
            _fit_article(output, word)
            is_changed = False
        output.append(word)
    return _with_another(_merged(_with_fitting_verbs(" ".join("".join(output).split()))))


def _fit_article(output: list[str], word: str) -> None:
    """Make "a" or "an" at the end of a text fit the next word, by its sound in the usual cases."""
    index = next((index for index in reversed(range(len(output))) if not output[index].isspace()), None)
    if index is not None and output[index].lower() in ("a", "an"):
        has_vowel = re.match(r"(?!uni[^mn]|use|eu|one|ut)[aeiou]|hour|hon|heir", word.lower()) is not None
        output[index] = output[index][0] + "n" * has_vowel


def _neutral_word(word: str, following: list[str]) -> str | None:
    """Return what replaces a word, "" to leave it out, None to keep it."""
    stem, ending = (word[:-2], "'s") if word.endswith("'s") else (word, "")
    if word.endswith("'"):
        stem, ending = word[:-1], "'s"
    if word.endswith("-year-old"):
        return "" if _describes_person(following) else "child"
    is_adjective = word in AGE_AND_GENDER or AGE_IN_TWO_WORDS.fullmatch(word) is not None
    if word in NEUTRAL and following and VERB.search(following[0]) and not _is_person(following[0]):
        is_adjective = False  # "a male holding children"
    if is_adjective and _describes_person(following):
        return ""
    if stem in PRONOUNS:
        return PRONOUNS[stem] + ending.replace("s", "re")  # "he's": "they're"
    if word == "her":
        return "them" if not following or following[0] in NOT_OWNED else "their"
    if stem not in NEUTRAL:
        return None
    neutral = NEUTRAL[stem]
    if stem != "fellow" and neutral in GENERAL and _is_beside_person(following, is_owner=bool(ending)):
        return ""
    if _is_attribute(word, following):
        return None
    return neutral + ("'" if ending and neutral.endswith("s") else ending)


def _is_person(word: str) -> bool:
    stem = re.sub(r"^.*-|'s?$", "", word)
    return "person" in getattr(things().forms.get(stem), "classes", ()) or stem in PEOPLE_NOUNS


def _describes_person(following: list[str]) -> bool:
    """Whether a noun for people follows, after at most a few words of the same phrase: "young soccer player"."""
    following = following[1:] if following[:1] == [","] else following
    for index, word in enumerate(following[: MAX_WORDS_BETWEEN + 1]):
        if _is_person(word):
            return True
        if word in DANGLING or not word.replace("-", "").replace(" ", "").isalpha():
            return False
        if any(map(_is_person, following[index + 1 : index + 2])):
            return True  # "rock climber"
        form = things().forms.get(word)
        if form is not None and form.classes:
            return False
    return False


def _is_beside_person(following: list[str], is_owner: bool) -> bool:
    """Whether a noun for people belongs to another: "toddler boy", "woman tennis player", "men's soccer team"."""
    rest = [*dropwhile(BETWEEN.__contains__, following), ""]
    is_sport = len(rest) <= len(following)
    return (_is_person(rest[0]) and (is_sport or not is_owner)) or (is_sport and rest[0] in TEAMS)


def _is_attribute(word: str, following: list[str]) -> bool:
    """Whether the word belongs to a thing: "baby elephant", "cowboy hat"; or says nothing of gender: "fellow rider"."""
    if not following or word not in ATTRIBUTES:
        return word == "fellow" and any(map(_is_person, following[:1]))
    rest = [*dropwhile(colours().forms.__contains__, following), ""]
    forms = [things().forms.get(name) for name in (rest[0], " ".join(rest[:2]))]
    is_thing = any(form and form.classes - {"person"} and not form.is_verb_too for form in forms)
    return is_thing or rest[0] in ("size", "sized", "gear", "style", "litter")


def _merged(text: str) -> str:
    """Return the text with "a person and a person" as "two people", "people, people and dogs" as "people and dogs"."""
    text = re.sub(rf"\b({_NOUN}) or (?:an? |the )?\1", r"\1", text, flags=re.IGNORECASE)
    for singular, plural in PLURALS.items():  # "an Asian person and person"
        pair = rf"{singular}(?:,? and |, ){singular}\b(?!['-])(?:,(?= and ))?"
        described = rf"\b(?:an?|the|one) ((?:{ADJECTIVE} ){{1,2}}){pair}"
        text = re.sub(described, rf"two \1{plural}", text, flags=re.IGNORECASE)
    return LIST_OF_PEOPLE.sub(_merged_list, text)


def _merged_list(match: re.Match[str]) -> str:
    groups = defaultdict[str, list[tuple[str, str]]](list)
    for determiner, noun in PEOPLE.findall(match[0].lower()):
        if not determiner and noun in PLURALS and match[1].lower() in ("a ", "an "):  # "a man, woman and child"
            determiner = "an " if noun[0] in "aeiou" else "a "
        groups[PLURALS.get(noun, noun)].append((determiner, noun))
    has_and = " and " in match[0]
    is_list = has_and or match.string.startswith(" and ", match.end())
    before = re.search(r"([\w-]+) $", match.string[: match.start()])
    # "two tall people and ..."
    is_described = not match[1] and before is not None and before[1].lower() not in {*DANGLING, "my", "our"}
    is_uncounted = all(noun in groups and not determiner for group in groups.values() for determiner, noun in group)
    if not is_list or max(map(len, groups.values())) == 1 or (is_described and not is_uncounted):
        return match[0]
    parts = [_sum(plural, group) for plural, group in groups.items()]
    end = f" and {parts.pop()}" if has_and and len(parts) > 1 else match[2] * (len(parts) > 1)
    result = ", ".join(parts) + end
    return result.capitalize() if match[0][0].isupper() else result


def _sum(plural: str, people: list[tuple[str, str]]) -> str:
    """Return "three people" for "two people" and "a person"; "people" if the number is not known."""
    numbers = [_number(determiner) if noun == plural else 1 for determiner, noun in people]
    if len(people) == 1 or (numbers[0] > 1 and not any(numbers[1:])):  # "five people and people" are five
        return "".join(people[0])
    if 0 in numbers:
        return "the " * people[0][0].startswith("the") + plural
    total = sum(numbers)
    if (plural, total) == ("partners", 2):
        return "a couple"
    return f"{NUMBERS[total] if total < len(NUMBERS) else total} {plural}"


def _number(determiner: str) -> int:
    """Return the number in words like "the two "; 0 if there is none."""
    word = determiner.removeprefix("the ").strip()
    return NUMBERS.index(word) if word in NUMBERS else int(word) if word.isdecimal() else 0


def _with_another(text: str) -> str:
    """Return the text with the second "a person" as "another person"."""
    for singular in PLURALS:
        first = re.search(rf"\b{singular}\b", text)
        if first is not None:
            text = text[: first.end()] + re.sub(rf"\ban? (?={singular}\b)", "another ", text[first.end() :])
    return text


def _with_fitting_verbs(text: str) -> str:
    """Return the text with the verb after "they" in the plural."""

    def plural(match: re.Match[str]) -> str:
        verb = match[2]
        if verb in IRREGULAR_VERBS:
            return match[1] + IRREGULAR_VERBS[verb]
        if re.search(r"(?:[^aeiou]ies)$", verb):
            return match[1] + verb[:-3] + "y"
        return match[1] + re.sub(r"(?<=sh|ch|ss|zz)es$|(?<=x)es$|(?<!s)s$", "", verb)

    return re.sub(r"\b(they (?:\w+ly )?)(\w+)", plural, text)

