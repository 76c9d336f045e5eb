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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, get_args

from hf_vse.data.scene_truth import check_choice
from hf_vse.evaluation.composition.caption_reading import (
    Captions,
    Phrase,
    Sentence,
    article,
    described_nouns,
    governor,
    is_plural,
    lemma,
    noun_phrases,
)
from hf_vse.evaluation.composition.caption_words import (
    ADJECTIVES,
    ANIMALS,
    ANIMATE,
    ARTICLES,
    BOTH_WAYS,
    BOTH_WAYS_VERBS,
    CLASSES,
    DETERMINERS,
    ENDINGS,
    FEMALE,
    FUNCTION,
    MALE,
    MINORS,
    NUMBERS,
    ONE_WAY,
    OPPOSITES,
    OPPOSITES_BEFORE,
    OTHER_SEX,
    PEOPLE,
    RELATIONAL,
    THINGS,
    WEARING,
)
from hf_vse.evaluation.composition.probe import Foil

COMMON = 0.005  # share of the nouns after a word that must be the one that is put there


def matters(one: Phrase, other: Phrase, sentence: Sentence, known: Captions) -> bool:
    """Whether the order of two phrases changes the meaning: the relation between them is not symmetric."""
    between = sentence.words[one.head + 1 : other.first]
    listed = between[-1:] == ["and"] and any(sentence.stops[one.head : other.first])
    if not between or between == ["of"] or between[-1] in BOTH_WAYS - {"and"} or listed:
        return False
    if any(word.startswith(BOTH_WAYS_VERBS) for word in between):
        return False
    return bool(ONE_WAY & set(between) or set(between) - FUNCTION - ADJECTIVES - known.nouns)


def interchangeable(one: Phrase, other: Phrase, sentence: Sentence, known: Captions) -> bool:
    """Whether a sentence still has a meaning, but another one, when two phrases are exchanged."""
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
            meant = matters(one, other, sentence, known) and interchangeable(one, other, sentence, known)
            if once and whole and meant:
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
            repeated = {(words[other], lemma(left)), (words[one], lemma(right))} & said
            if other < head or lemma(left) == lemma(right) or repeated:
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
    """Nouns that occur in the same context elsewhere and exclude this noun; for people only the other sex."""
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
    """A noun becomes another that is not in the image: see `rivals_of`."""
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
    """A random permutation of the places within each group."""
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
    "swap_nouns", "swap_adjectives", "replace_relation", "replace_attribute", "replace_object", "word_order", "order"
]
_EDITORS: dict[str, Callable[[Sentence, int, Captions], Iterator[str]]] = {
    "swap_nouns": swapped_nouns,
    "swap_adjectives": swapped_adjectives,
    "replace_relation": replaced_relations,
    "replace_attribute": replaced_attributes,
    "replace_object": replaced_objects,
}
_ORDERS: dict[str, Callable[[Sentence, set[str], random.Random], list[str]]]
_ORDERS = {"word_order": word_orders, "order": four_orders}


def false_captions(sentence: Sentence, image: int, kind: str, known: Captions, rng: random.Random) -> tuple[str, ...]:
    """Foils of a caption, none equal to a caption of its image: one, up to four for `order`, or none."""
    true = {" ".join(each.words) for each in known.sentences[image]}
    order = kind in _ORDERS
    texts = _ORDERS[kind](sentence, known.nouns, rng) if order else _EDITORS[kind](sentence, image, known)
    foils = [text for text in dict.fromkeys(texts) if " ".join(Sentence(text).words) not in true]
    return tuple(foils) if order or not foils else (rng.choice(foils),)


def foil_of_each(captions: Sequence[Sequence[str]], seed: int = 0) -> list[list[str | None]]:
    """For every caption a foil, by one of the rules at random that find one, None where none does.

    Words are not shuffled: such foils are told by their order alone, and remain to judge by.

    Args:
        captions: of every image all its captions.
        seed: the choice of rules and words.
    """
    known = Captions(captions)
    found = []
    for image, texts in enumerate(captions):
        rng = random.Random(f"foils/{seed}/{image}")
        found.append([foil_by_any_rule(Sentence(text), image, known, rng) for text in texts])
    return found


def foil_by_any_rule(sentence: Sentence, image: int, known: Captions, rng: random.Random) -> str | None:
    of_rules = (false_captions(sentence, image, kind, known, rng) for kind in rng.sample([*_EDITORS], len(_EDITORS)))
    return next((foils[0] for foils in of_rules if foils), None)


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
    for kind in kinds:
        check_choice("kinds", kind, get_args(CaptionFoilKind))
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
