"""Foils of any English captions, by rules and without a parser.

Function words, adjectives and opposites are closed lists. Nouns are found in the captions themselves: words that
mostly stand between a determiner, adjective or preposition and a function word or the end. What a rule puts somewhere
must occur in such a place elsewhere in the set: a colour before its new noun, a noun after its new preposition or
verb. A thing is replaced only by one that is mentioned of fewer images together with it than by accident, because
those that go together may both be there. No caption of the image may mention what is put in. Swaps keep the bag of
words.

What rules cannot see: a foil that is true of the image though no caption says so (somebody else's shirt is green), a
swap that stays true in a way that is not listed, and clumsy sentences. The more captions, the better the rules know
the nouns; of a few hundred images few are learned and little is left but the kinds with closed lists. Of 40 foils of
each kind from COCO's and Flickr30K's test captions, read by eye without the photographs, 36 to 40 were false, and most
of the swaps and replaced objects grammatical but unlikely, which `blind_accuracy` of the probe shows. The generated
scenes (`scene_foils.py`) have exact foils.

The kinds follow SugarCrepe (Hsieh et al., NeurIPS 2023, arXiv 2306.14610), whose foils a language model wrote, and for
the order of words ARO (Yuksekgonul et al., ICLR 2023, arXiv 2210.01936), which used a parser.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from hf_vse.evaluation.composition.probe import Foil

# fmt: off
NUMBERS = set("two three four five six".split())
ARTICLES = {"a", "an", "the", "another"}
DETERMINERS = ARTICLES | NUMBERS | set("his her its their my your our this some each one several many all".split())
PREPOSITIONS = set(
    "in on at of with by near through into over under from for up down off onto behind along across around above as "
    "below beside beneath underneath inside outside between towards toward past against next out like about without "
    "during after before among atop alongside upon".split())
FUNCTION = DETERMINERS | PREPOSITIONS | set(
    "and or but while that who which where when is are was were be being been has have had do does it he she they him "
    "them there not very to also together other others so just himself herself themselves what then than if because "
    "away back outdoors indoors ahead nearby whilst can will would too only still both every no any".split())

# Words of one class exclude each other, but for those between the same bars, which may be said of the same thing. Of
# the first after a bar a foil may be made, if it is not in brackets.
CLASSES = [[group.split() for group in groups.split("|")] for groups in (
    "red orange pink maroon | blue purple teal navy | green | black | white cream | (grey gray silver "
    "| yellow gold golden tan beige brown", "small little tiny mini | large big huge giant enormous", "long | short",
    "tall | short", "young younger teenage | old older elderly", "wooden wood | metal steel iron | plastic | brick "
    "| stone concrete rock cement | (leather", "striped | plaid checkered | (spotted polka", "sunny | cloudy overcast",
    "two | three | four | five", "snowy icy | grassy | sandy | rocky | muddy | (paved dirt", "wet | dry",
    "empty | crowded full busy packed", "open opened | closed shut", "smiling happy laughing | sad crying",
    "clean | dirty messy muddy", "male | female",
)]
ADJECTIVES = {word.strip("(") for groups in CLASSES for group in groups for word in group} - {"rock", "opened", "wood"}
FIXED = set("white-water orange-juice red-wine white-wine green-light red-light green-beans little-league tall-grass "
            "open-mouth full-size open-field open-area wet-suit blue-sky old-fashioned big-ben full-of red-bull "
            "short-sleeved long-haired short-haired long-sleeved dark-haired young-at open-air dry-erase".split())
NEXT_TO = "far away from"
OPPOSITES = {
    "left": "right", "right": "left", "above": "below", "below": "above", "over": "under", "under": "over",
    "underneath": "above", "beneath": "above", "behind": "in front of", "in front of": "behind",
    "on top of": "underneath", "inside": "outside", "outside": "inside", "inside of": "outside of",
    "outside of": "inside of", "onto": "off of", "off of": "onto", "into": "out of", "out of": "into",
    "toward": "away from", "towards": "away from", "away from": "towards", "next to": NEXT_TO, "beside": NEXT_TO,
    "near": NEXT_TO, "close to": "far from", "indoors": "outdoors", "outdoors": "indoors",
}
ENDINGS = {"inside", "outside", "indoors", "outdoors"}  # may stand without an object
_SLOPES = set("hill hills stairs steps slope mountain ladder slide staircase".split())
OPPOSITES_BEFORE = {  # of these only before some nouns
    "up": ("down", _SLOPES), "down": ("up", _SLOPES),
    "on": ("under", set("table bed bench couch sofa chair desk shelf counter bridge stool blanket".split())),
    "in": ("outside", set("room kitchen house building car bathroom bedroom store restaurant box boat train bus tent "
                          "office airport garage pool stadium barn cage suitcase".split())),
}
RELATIONAL = set(  # nouns that say where, when, how many, which part or what in general: no objects
    "front side top back middle edge group couple pair bunch lot lots end part piece slice row line view picture "
    "photo photograph image background foreground left right distance day night way kind type variety number air "
    "one corner center centre bottom set area close time crowd herd pile body inside outside something someone "
    "order it display thing things scene team base style half each lap shot midair mouth face head hand hands arm "
    "arms leg legs feet hair eyes paws vehicle vehicles furniture object objects item items food meal structure "
    "device toy container land stuff appliances".split())

MALE = set("man men boy boys guy guys male males gentleman father dad son he his him himself".split())
FEMALE = set("woman women girl girls lady ladies female females mother mom daughter she her herself bride".split())
OTHER_SEX = {"man": "woman", "men": "women", "boy": "girl", "boys": "girls", "guy": "woman", "guys": "women"}
OTHER_SEX |= {"woman": "man", "women": "men", "girl": "boy", "girls": "boys", "lady": "man", "ladies": "men"}
MINORS = set("child children kid kids baby babies toddler boy boys girl girls".split())
PEOPLE = MALE | FEMALE | MINORS | set(
    "person people player players skier skiers skateboarder skateboarders snowboarder snowboarders surfer surfers "
    "biker bikers cyclist cyclists rider riders adult adults family individual teenager teenagers worker workers "
    "chef officer batter catcher umpire pitcher skater skaters friend friends boarder runner runners performer "
    "climber band climbers swimmer soldier soldiers musician dancer dancers policeman spectators passengers youth "
    "hiker hikers team student students racer audience crowd couple".split())
ANIMALS = [set(group.split()) for group in (
    "dog dogs puppy puppies poodle terrier shepherd greyhound greyhounds retriever", "cat cats kitten kittens",
    "bird birds duck ducks geese goose seagull seagulls pigeon pigeons parrot", "horse horses pony ponies",
    "cow cows bull cattle calf", "sheep lamb lambs goat goats", "elephant elephants", "giraffe giraffes",
    "zebra zebras", "bear bears", "animal animals")]
ANIMATE = PEOPLE.union(*ANIMALS)
THINGS = [set(group.split()) for group in (  # what one may call another, in sets too small for the counts to tell
    "street road sidewalk path track trail pavement highway intersection lot runway way crosswalk city town ground",
    "field grass lawn yard meadow park dirt pasture hill court garden mountain slope forest woods ground trees tree",
    "shirt top jersey sweater jacket coat outfit suit uniform clothes clothing vest dress costume skirt gear swimsuit",
    "pants jeans shorts trousers", "hat cap helmet", "bike bicycle motorcycle scooter motorbike vehicle", "tree bush",
    "water ocean sea lake river pool wave waves surf beach shore sand stream puddle", "car van truck bus vehicle taxi",
    "building house store shop church restaurant structure hotel room station city", "couch sofa chair bench seat bed",
    "boat ship canoe kayak raft", "ball football basketball baseball frisbee toy game racket bat tennis", "desk table",
    "plate bowl dish tray cup glass mug", "food meal sandwich pizza cake dinner", "bag backpack suitcase luggage box",
    "rock rocks cliff mountain hill", "fence wall gate railing rail ramp", "kitchen room bathroom bedroom office",
    "skateboard board snowboard surfboard wave waves", "snow ice slope ski skis", "computer laptop screen television",
    "camera phone cellphone remote", "floor ground carpet rug", "trick stunt jump flip", "stick branch log pole wood")]
PLURALS = {"men": "man", "women": "woman", "people": "person", "children": "child", "geese": "goose", "skis": "ski",
           "leaves": "leaf", "knives": "knife", "feet": "foot", "teeth": "tooth", "cattle": "cow", "mice": "mouse"}
BOTH_WAYS = set("with next to near beside by alongside and or together along around against like".split())
BOTH_WAYS_VERBS = tuple("kiss hug fight wrestl talk danc meet rac fac embrac touch spar shak play match".split())
WEARING = {"in", "wearing", "with"}
ONE_WAY = set("in on under over above below behind into through inside onto off from at up down beneath".split())
# fmt: on
LONGEST_PHRASE = 4  # words between a determiner and its noun
FEWEST = 4  # times that a noun must be seen
NOUN_SHARE = 0.35  # of a noun's occurrences that must look like one
COMMON = 0.005  # share of the nouns after a word that must be the one that is put there
APART = 0.4  # alternatives share fewer images than this part of what independence predicts


class Sentence:
    """A caption, its words in lower case, where they stand, and after which of them there is punctuation."""

    def __init__(self, text: str):
        matches = list(re.finditer(r"[A-Za-z0-9]+(?:['-][A-Za-z0-9]+)*", text))
        self.text = text
        self.words = [match[0].lower() for match in matches]
        self.spans = [match.span() for match in matches]
        ends = [*(start for start, _ in self.spans[1:]), len(text)]
        self.stops = [bool(text[stop:end].strip()) for (_, stop), end in zip(self.spans, ends, strict=False)]

    def word(self, place: int) -> str:
        """The word at a place, "" beyond the ends."""
        return self.words[place] if 0 <= place < len(self.words) else ""

    def piece(self, first: int, last: int) -> str:
        """The text from one word to another, without the capital of the beginning."""
        piece = self.text[self.spans[first][0] : self.spans[last][1]]
        return piece if first or piece[1:2].isupper() else piece[0].lower() + piece[1:]

    def rewritten(self, changes: dict[tuple[int, int], str]) -> str:
        """The caption with other text from one word to another; a capital at the beginning stays."""
        text = self.text
        for (first, last), piece in sorted(changes.items(), reverse=True):
            text = text[: self.spans[first][0]] + piece + text[self.spans[last][1] :]
        start = self.spans[0][0]
        return text[:start] + text[start].upper() + text[start + 1 :] if self.text[start].isupper() else text

    def replaced(self, place: int, word: str) -> str:
        """The caption with another word at a place, and the article before it as that word wants it."""
        changes = {(place, place): word}
        if self.word(place - 1) in ("a", "an"):
            changes[place - 1, place - 1] = article(word)
        return self.rewritten(changes)

    def ends_phrase(self, place: int) -> bool:
        """Whether the noun at a place ends its phrase, as far as the next word tells."""
        following = self.word(place + 1)
        return self.stops[place] or not following or following in FUNCTION or following.endswith(("ing", "s", "ed"))


class Phrase(NamedTuple):
    """A noun with its determiner and adjectives: the places of the first word and of the noun."""

    first: int
    head: int


def article(word: str) -> str:
    vowel = word[:1] in "aeiou" and not word.startswith(("uni", "eu", "one", "use")) or word.startswith("hour")
    return "an" if vowel else "a"


def is_plural(noun: str) -> bool:
    return noun in PLURALS or noun.endswith("s") and not noun.endswith(("ss", "us", "is"))


def lemma(noun: str) -> str:
    """The singular, well enough to compare with."""
    if noun in PLURALS or not is_plural(noun):
        return PLURALS.get(noun, noun)
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    return noun[:-2] if noun.endswith(("ches", "shes", "xes", "sses", "oes")) else noun[:-1]


def find_nouns(sentences: Iterable[Sentence]) -> set[str]:
    """People and animals, and words that mostly stand where a noun ends its phrase."""
    seen: Counter[str] = Counter()
    fitting: Counter[str] = Counter()
    for sentence in sentences:
        for place, word in enumerate(sentence.words):
            previous, following = sentence.word(place - 1), sentence.word(place + 1)
            left = previous in DETERMINERS | ADJECTIVES or previous in PREPOSITIONS and not word.endswith("ing")
            right = sentence.stops[place] or not following or following in FUNCTION or following.endswith("ing")
            seen[word] += 1
            fitting[word] += left and right
    nouns = {word for word, times in seen.items() if times >= FEWEST and fitting[word] >= NOUN_SHARE * times}
    return {word for word in nouns | ANIMATE & seen.keys() if word.isalpha()} - FUNCTION - ADJECTIVES


def noun_phrases(sentence: Sentence, nouns: set[str]) -> list[Phrase]:
    """Determiner, at most `LONGEST_PHRASE` words that are no function words, and as many nouns as follow."""
    phrases = []
    for first, word in enumerate(sentence.words):
        head = None
        for place in range(first + 1, min(first + 2 + LONGEST_PHRASE, len(sentence.words))):
            current = sentence.words[place]
            joins = current == "and" and {sentence.word(place - 1), sentence.word(place + 1)} <= ADJECTIVES
            if word not in DETERMINERS or sentence.stops[place - 1]:
                break
            if current in nouns:
                head = place
            elif head is not None or current in FUNCTION and not joins:
                break
        if head is not None and sentence.ends_phrase(head):
            phrases.append(Phrase(first, head))
    return phrases


def described_nouns(sentence: Sentence, nouns: set[str]) -> list[tuple[int, int]]:
    """Places of the adjectives of the closed lists, and of the nouns they belong to."""
    found = []
    for place, word in enumerate(sentence.words):
        if word not in ADJECTIVES or sentence.stops[place] or f"{word}-{sentence.word(place + 1)}" in FIXED:
            continue
        for head in range(place + 1, min(place + 1 + LONGEST_PHRASE, len(sentence.words))):
            if sentence.words[head] in nouns and (sentence.stops[head] or sentence.word(head + 1) not in nouns):
                found.append((place, head))
                break
            if sentence.words[head] in FUNCTION or sentence.stops[head]:
                break
    return found


def governor(sentence: Sentence, first: int) -> tuple[str, str]:
    """What stands before a phrase: one word, or two where it is "of"."""
    previous = sentence.word(first - 1)
    return (sentence.word(first - 2) if previous == "of" else "", previous)


class Captions:
    """What the rules know of a caption set: its nouns, what stands before them, and what is seen together."""

    def __init__(self, captions: Sequence[Sequence[str]]):
        self.sentences = [[Sentence(text) for text in texts if re.search("[A-Za-z]", text)] for texts in captions]
        self.words = [{word for each in sentences for word in each.words} for sentences in self.sentences]
        self.nouns = find_nouns(sentence for sentences in self.sentences for sentence in sentences)
        self.images: dict[str, set[int]] = defaultdict(set)  # on which a noun is mentioned
        self.governed: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)  # nouns after other words
        self.described: Counter[tuple[str, str]] = Counter()  # adjectives or determiners, and the nouns they go with
        for image, sentences in enumerate(self.sentences):
            for word in self.words[image] & self.nouns:
                self.images[lemma(word)].add(image)
            for sentence in sentences:
                for phrase in noun_phrases(sentence, self.nouns):
                    determiner, noun = sentence.words[phrase.first], sentence.words[phrase.head]
                    self.governed[governor(sentence, phrase.first)][noun] += 1
                    self.described["a" if determiner == "an" else determiner, noun] += 1
                for place, head in described_nouns(sentence, self.nouns):
                    self.described[sentence.words[place], sentence.words[head]] += 1

    def apart(self, one: str, other: str) -> bool:
        """Whether two nouns are mentioned of the same image more rarely than by accident."""
        left, right = self.images[lemma(one)], self.images[lemma(other)]
        expected = len(left) * len(right) / len(self.sentences)
        return expected >= 1 and len(left & right) < APART * expected


def matters(one: Phrase, other: Phrase, sentence: Sentence, known: Captions) -> bool:
    """Whether it makes a difference which of two phrases comes first: what is between does not hold both ways."""
    between = sentence.words[one.head + 1 : other.first]
    listed = between[-1:] == ["and"] and any(sentence.stops[one.head : other.first])
    if not between or between == ["of"] or between[-1] in BOTH_WAYS - {"and"} or listed:
        return False
    if any(word.startswith(BOTH_WAYS_VERBS) for word in between):
        return False
    return bool(ONE_WAY & set(between) or set(between) - FUNCTION - ADJECTIVES - known.nouns)


def interchangeable(one: Phrase, other: Phrase, sentence: Sentence, known: Captions) -> bool:
    """Whether a sentence keeps a meaning when two phrases exchange their places, and gets another one."""
    left, right = sentence.words[one.head], sentence.words[other.head]
    before, after = governor(sentence, one.first), governor(sentence, other.first)
    if (left in ANIMATE) != (right in ANIMATE) or is_plural(left) != is_plural(right):
        return False
    if {left, right} <= PEOPLE:  # a man may be the person or the player, a child the boy
        return {left, right} <= MALE | FEMALE or len({left, right} & MINORS) == 1 == len(
            {left, right} & (MALE | FEMALE)
        )
    if left in ANIMATE:
        return True
    if any({left, right} <= group for group in THINGS):
        return False
    same = before == after or {before[1], after[1]} <= WEARING  # "in a hat in a shop", "wearing a coat with a hat"
    return not same and known.governed[before][right] > 1 and known.governed[after][left] > 1


def swapped_nouns(sentence: Sentence, image: int, known: Captions) -> Iterator[str]:
    """Two noun phrases exchange their places: both people or animals, or both things, of the same number."""
    words = sentence.words
    phrases = [
        phrase
        for phrase in noun_phrases(sentence, known.nouns)
        if words[phrase.first] in ARTICLES | NUMBERS
        and words[phrase.head] not in RELATIONAL
        and sentence.word(phrase.head - 1) != "hot"  # a hot dog
    ]
    times = Counter(lemma(word) for word in words)
    for number, one in enumerate(phrases):
        for other in phrases[number + 1 :]:
            once = times[lemma(words[one.head])] == times[lemma(words[other.head])] == 1
            whole = sentence.word(one.head + 1) != "of" != sentence.word(other.head + 1)
            if (
                once
                and whole
                and matters(one, other, sentence, known)
                and interchangeable(one, other, sentence, known)
            ):
                yield sentence.rewritten({one: sentence.piece(*other), other: sentence.piece(*one)})


def exclusive(word: str) -> Iterator[list[str]]:
    """The groups of words that exclude an adjective."""
    for groups in CLASSES:
        own = [group for group in groups if word in group or f"({word}" in group]
        yield from (group for group in groups if own and group not in own)


def swapped_adjectives(sentence: Sentence, image: int, known: Captions) -> Iterator[str]:
    """Two adjectives that exclude each other exchange their nouns, which are not the same."""
    found = described_nouns(sentence, known.nouns)
    words = sentence.words
    said = {(words[place], lemma(words[head])) for place, head in found}
    for number, (one, head) in enumerate(found):
        for other, other_head in found[number + 1 :]:
            left, right = words[head], words[other_head]
            if (
                other < head
                or lemma(left) == lemma(right)
                or {(words[other], lemma(left)), (words[one], lemma(right))} & said
            ):
                continue
            exclude = any(words[other] in group for group in exclusive(words[one]))
            if exclude and known.described[words[other], left] and known.described[words[one], right]:
                changed = sentence.rewritten({(one, one): words[other], (other, other): words[one]})
                if changed == with_articles(changed) and not re.search(r"\b(\w+) and \1\b", changed.lower()):
                    yield changed


def with_articles(text: str) -> str:
    """The text with each "a" or "an" as the next word wants it."""
    pattern = r"\b([Aa])n?(?= (\w+))"
    return re.sub(pattern, lambda match: match[1] + article(match[2].lower())[1:], text)


def replaced_relations(sentence: Sentence, image: int, known: Captions) -> Iterator[str]:
    """A relation becomes its opposite."""
    heads = {phrase.first: sentence.words[phrase.head] for phrase in noun_phrases(sentence, known.nouns)}
    for place in range(len(sentence.words)):
        opposite, nouns = OPPOSITES_BEFORE.get(sentence.words[place], ("", set()))
        if heads.get(place + 1) in nouns:
            yield sentence.rewritten({(place, place): opposite})
        for last in (place + 2, place + 1, place):
            relation = " ".join(sentence.words[place : last + 1])
            joined = last < len(sentence.words) and not any(sentence.stops[place:last])
            if joined and relation in OPPOSITES and is_relation(sentence, relation, place, last):
                yield sentence.rewritten({(place, last): OPPOSITES[relation]})
                break


def is_relation(sentence: Sentence, relation: str, place: int, last: int) -> bool:
    previous, following = sentence.word(place - 1), sentence.word(last + 1)
    if relation in ("left", "right"):
        return previous in {"the", "far", "his", "her"}
    if relation in ENDINGS and (sentence.stops[last] or not following):
        return previous.endswith("ing") or previous in {"is", "are"}
    idiom = previous in {"all", "from", "made", "up", "down", "out"} or "air" in sentence.words[last + 1 : last + 3]
    return following in DETERMINERS and not idiom


def replaced_attributes(sentence: Sentence, image: int, known: Captions) -> Iterator[str]:
    """An adjective or number becomes one that excludes it, that no caption of the image has and that its noun can."""
    for place, head in described_nouns(sentence, known.nouns):
        before = sentence.word(place - 1)
        if before not in {"and", "light"} | ADJECTIVES:
            for group in exclusive(sentence.words[place]):
                possible = known.described[group[0], sentence.words[head]]
                if possible and not known.words[image] & set(group):
                    yield sentence.replaced(place, group[0])


def rivals_of(noun: str, place: tuple[str, str], image: int, known: Captions) -> list[str]:
    """The nouns that stand in such a place elsewhere and are not what a noun is; of people only the other sex."""
    words, elsewhere = known.words[image], known.governed[place]
    fewest = 1 + COMMON * elsewhere.total()
    if noun in PEOPLE:
        rival = OTHER_SEX.get(noun, "")
        return [rival] if rival and not words & (MALE if rival in MALE else FEMALE) else []
    kin = [group for group in (*ANIMALS, *THINGS) if {noun, lemma(noun)} & group]
    lemmas = {lemma(word) for word in words}
    return [
        rival
        for rival, times in elsewhere.items()
        if times > fewest
        and is_plural(rival) == is_plural(noun)
        and (rival in ANIMATE) == (noun in ANIMATE)
        and rival not in PEOPLE | RELATIONAL
        and lemma(rival) not in lemmas
        and not any({rival, lemma(rival)} & group for group in kin)
        and known.apart(noun, rival)
    ]


def replaced_objects(sentence: Sentence, image: int, known: Captions) -> Iterator[str]:
    """A noun becomes another that is not there: see `rivals_of`."""
    for phrase in noun_phrases(sentence, known.nouns):
        noun, before = sentence.words[phrase.head], sentence.word(phrase.head - 1)
        if noun in RELATIONAL or sentence.word(phrase.head + 1) == "of" or phrase.head > phrase.first + 2:
            continue
        if noun in PEOPLE and {"his", "her", "he", "she"} & set(sentence.words):
            continue
        for rival in rivals_of(noun, governor(sentence, phrase.first), image, known):
            if noun in PEOPLE or known.described["a" if before == "an" else before, rival] > 1:
                yield sentence.replaced(phrase.head, rival)


def permuted(groups: Iterable[Sequence[int]], rng: random.Random) -> dict[int, int]:
    """For each place of the groups another of the same group, at random."""
    pairs = (zip(group, rng.sample(group, len(group)), strict=True) for group in groups)
    return {place: source for pair in pairs for place, source in pair}


def reordered(sentence: Sentence, order: dict[int, int]) -> str:
    """The caption with other words of its own at some places; punctuation stays where it was."""
    return sentence.rewritten({(place, place): sentence.piece(source, source) for place, source in order.items()})


def word_orders(sentence: Sentence, nouns: set[str], rng: random.Random) -> list[str]:
    return [reordered(sentence, permuted([range(len(sentence.words))], rng))]


def four_orders(sentence: Sentence, nouns: set[str], rng: random.Random) -> list[str]:
    """Nouns and adjectives shuffled, each among themselves; all other words; each three words; the threes."""
    places = range(len(sentence.words))
    threes = [places[start : start + 3] for start in range(0, len(places), 3)]
    named = [[place for place in places if sentence.words[place] in words] for words in (nouns, ADJECTIVES)]
    rest = [place for place in places if place not in named[0] + named[1]]
    moved = [place for three in rng.sample(threes, len(threes)) for place in three]
    orders = permuted(named, rng), permuted([rest], rng), permuted(threes, rng), dict(zip(places, moved, strict=True))
    return [reordered(sentence, order) for order in orders]


CaptionFoilKind = Literal[
    "swap_nouns",
    "swap_adjectives",
    "replace_relation",
    "replace_attribute",
    "replace_object",
    "word_order",
    "order",
]
_EDITORS: dict[str, Callable[[Sentence, int, Captions], Iterator[str]]] = {
    "swap_nouns": swapped_nouns,
    "swap_adjectives": swapped_adjectives,
    "replace_relation": replaced_relations,
    "replace_attribute": replaced_attributes,
    "replace_object": replaced_objects,
}
_ORDERS: dict[str, Callable[[Sentence, set[str], random.Random], list[str]]] = {
    "word_order": word_orders,
    "order": four_orders,
}


def false_captions(sentence: Sentence, image: int, kind: str, known: Captions, rng: random.Random) -> tuple[str, ...]:
    """Foils of a caption that are no caption of its image: one, or up to four of `order`, or none."""
    true = {" ".join(each.words) for each in known.sentences[image]}
    order = kind in _ORDERS
    texts = _ORDERS[kind](sentence, known.nouns, rng) if order else _EDITORS[kind](sentence, image, known)
    foils = [text for text in dict.fromkeys(texts) if " ".join(Sentence(text).words) not in true]
    return tuple(foils) if order or not foils else (rng.choice(foils),)


def caption_foils(
    captions: Sequence[Sequence[str]],
    seed: int = 0,
    per_kind: int | None = None,
    kinds: Iterable[CaptionFoilKind] = get_args(CaptionFoilKind),
) -> list[Foil]:
    """At most one foil of each kind for each image, so that the items of a kind are independent.

    Args:
        captions: of every image all its captions; `Foil.image` is the row in this list.
        seed: the choice of captions and words.
        per_kind: at most so many images for each kind, chosen at random; None: all that allow one.
        kinds: `swap_nouns`, `swap_adjectives`, `replace_relation`, `replace_attribute`, `replace_object`;
            `word_order`, all words shuffled; `order`, the four shuffles of ARO at once, so that chance is 20 %.

    Raises:
        ValueError: an unknown kind, or no captions.
    """
    kinds = list(kinds)
    if unknown := next((kind for kind in kinds if kind not in get_args(CaptionFoilKind)), None):
        raise ValueError(f"kinds={unknown!r} is unknown: use one of {', '.join(get_args(CaptionFoilKind))}")
    known = Captions(captions)
    if not any(known.sentences):
        raise ValueError("captions holds no English sentence; give for each image the list of its captions")
    foils = []
    for kind in kinds:
        found: list[Foil] = []
        for image in random.Random(f"foils/{seed}/{kind}").sample(range(len(captions)), len(captions)):
            if per_kind is not None and len(found) >= per_kind:
                break
            rng = random.Random(f"foils/{seed}/{kind}/{image}")
            for sentence in rng.sample(known.sentences[image], len(known.sentences[image])):
                if texts := false_captions(sentence, image, kind, known, rng):
                    found.append(Foil(image, sentence.text, texts, kind))
                    break
        foils += sorted(found)
    return foils
