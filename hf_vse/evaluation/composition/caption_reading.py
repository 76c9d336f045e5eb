"""Captions as the rules of `caption_foils.py` read them: words, nouns learned from the set, noun phrases, contexts."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hf_vse.evaluation.composition.caption_words import (
    ADJECTIVES,
    ANIMATE,
    DETERMINERS,
    FIXED,
    FUNCTION,
    PLURALS,
    PREPOSITIONS,
)

LONGEST_PHRASE = 4  # words between a determiner and its noun
FEWEST = 4  # times that a noun must be seen
NOUN_SHARE = 0.35  # of a noun's occurrences that must look like one
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
