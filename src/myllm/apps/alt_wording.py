"""The wording of alternative texts: one short sentence, and no words of gender or age for people (English)."""

import re

from myllm.metrics.lexicon import things

MAX_LENGTH = 125
LEAD_IN = re.compile(
    r"^(?:(?:this|it|here) is |there is )?(?:an? |the )?(?:image|picture|photo|photograph|pic|snapshot|graphic)s?"
    r" (?:of|showing|that shows|which shows|shows)\s+", re.IGNORECASE,
)
# a text does not end with these, unless it was cut
DANGLING = frozenset(" ".join((
    "a an the and or of in on at with by from to into onto over under near next for while as is are that who its",
    "his their beside behind between",
)).split())
TOKEN = re.compile(r"[\w-]+(?:'s|(?<=s)')?|[^\w\s]|\s+")
AGE_IN_YEARS = re.compile(r"\b(\w+)[- ]years?[- ]olds?\b")

_NEUTRAL_NOUNS = {
    "person": "man woman guy gentleman lady male female adult teenager teen youngster youth adolescent senior",
    "people": "men women guys gentlemen ladies males females adults teenagers teens youngsters youths adolescents"
              " seniors",
    "child": "boy girl baby toddler infant kid newborn preschooler son daughter",
    "children": "boys girls babies toddlers infants kids newborns preschoolers sons daughters",
    "parent": "mother father mom dad mum mommy daddy", "parents": "mothers fathers moms dads mums",
    "sibling": "brother sister", "siblings": "brothers sisters",
    "grandparent": "grandmother grandfather grandma grandpa",
    "grandparents": "grandmothers grandfathers grandmas grandpas", "partner": "husband wife boyfriend girlfriend",
    "partners": "husbands wives boyfriends girlfriends", "police officer": "policeman policewoman",
    "police officers": "policemen policewomen", "firefighter": "fireman", "firefighters": "firemen",
    "angler": "fisherman", "anglers": "fishermen", "businessperson": "businessman businesswoman",
    "businesspeople": "businessmen businesswomen", "server": "waiter waitress", "servers": "waiters waitresses",
    "rider": "cowboy cowgirl", "riders": "cowboys cowgirls", "student": "schoolboy schoolgirl",
    "students": "schoolboys schoolgirls", "newlywed": "bride groom", "newlyweds": "brides grooms",
    "performer": "actress", "performers": "actresses",
}
NEUTRAL = {word: neutral for neutral, words in _NEUTRAL_NOUNS.items() for word in words.split()}
# left out before a noun for people
AGE_AND_GENDER = frozenset(" ".join((
    "young younger old older elderly aged middle-aged teenage teenaged adult male female little baby teen pre-teen",
    "adolescent juvenile youthful senior",
)).split())
MAX_WORDS_BETWEEN = 3
PLURALS = {"person": "people", "child": "children", "student": "students", "police officer": "police officers"}
PRONOUNS = {"he": "they", "she": "they", "his": "their", "him": "them", "hers": "theirs", "himself": "themselves",
            "herself": "themselves"}
IRREGULAR_VERBS = {"is": "are", "was": "were", "has": "have", "does": "do", "goes": "go"}
# after "her", these show that it does not belong to the next word
NOT_OWNED = frozenset(" ".join((
    "in on at with by from to into onto over under",
    "near and or as while for , . ; is are",
)).split())


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


def without_gender_and_age(text: str) -> str:
    """Replace "a young woman" by "a person", "boys" by "children" and so on, with articles and verbs that fit."""
    tokens = TOKEN.findall(AGE_IN_YEARS.sub(r"\1-year-old", text))
    words = [token.lower() for token in tokens]
    output, is_changed = list[str](), False
    for index, token in enumerate(tokens):
        following = [word for word in words[index + 1 :] if not word.isspace()]
        neutral = _neutral_word(words[index], following)
        if neutral == "":
            is_changed = True
            continue
        word = token if neutral is None else neutral
        if (is_changed or neutral is not None) and not word.isspace():
            _fit_article(output, word)
            is_changed = False
        output.append(word)
    return _merged(_with_fitting_verbs(" ".join("".join(output).split())))


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
    if not ending and word in AGE_AND_GENDER and _describes_person(following):
        return ""
    if stem in PRONOUNS:
        return PRONOUNS[stem] + ending.replace("s", "re")  # "he's": "they're"
    if word == "her":
        return "them" if not following or following[0] in NOT_OWNED else "their"
    if stem not in NEUTRAL or _is_attribute(stem, following):
        return None
    neutral = NEUTRAL[stem]
    return neutral + ("'" if ending and neutral.endswith("s") else ending)


def _describes_person(following: list[str]) -> bool:
    """Whether a noun for people follows, after at most a few words of the same phrase: "young soccer player"."""
    forms = things().forms
    for index, word in enumerate(following[: MAX_WORDS_BETWEEN + 1]):
        stem = re.sub(r"'s$|'$", "", word)
        if "person" in getattr(forms.get(stem), "classes", ()) or stem in NEUTRAL:
            return True
        if "person" in getattr(forms.get("".join(following[index + 1 : index + 2])), "classes", ()):
            return True  # "rock climber"
        if word in DANGLING or not word.replace("-", "").isalpha() or (stem in forms and forms[stem].classes):
            return False
    return False


def _is_attribute(word: str, following: list[str]) -> bool:
    """Whether the word belongs to another noun: "baby elephant", "male lion"."""
    if not following or word not in ("baby", "male", "female", "lady", "adult", "senior"):
        return False
    form = things().forms.get(following[0])
    return form is not None and bool(form.classes) and "person" not in form.classes and not form.is_verb_too


def _merged(text: str) -> str:
    """Return the text with "a person and a person" as "two people", and "people and people" as "people"."""
    for singular, plural in PLURALS.items():
        text = re.sub(rf"\b(?:an?|the|one) {singular} and (?:an? |the |one )?{singular}\b(?!')", f"two {plural}", text)
        text = re.sub(rf"\b{plural} and (?:the )?{plural}\b(?!')", plural, text)
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

