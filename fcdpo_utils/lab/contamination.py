"""How much of an evaluation set was in the training data, by n-grams of words.

After GPT-3 (Brown et al., arXiv 2005.14165): an evaluation text is suspect when it shares one 13-gram with any training
text, or as a whole where it is shorter than that (section 4; appendix C, which takes n from 8 to 13 by data set and
ignores case, punctuation and white space). Texts of one template share n-grams without sharing a problem, so exact
duplicates are counted apart. Knows only texts: nothing of tasks, files or models.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

Gram = tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """One evaluation set against one training source; a text without words overlaps with nothing."""

    texts: int  # evaluation texts
    duplicates: int  # of them, those whose words are those of a training text
    sharing: int  # those with at least one n-gram of a training text
    mean_share: float  # mean over the texts of the share of their distinct n-grams that occur in training; 0 to 1


def overlap(train: Iterable[str], evaluated: Iterable[str], n: int = 13) -> Overlap:
    """Compare two sets of texts. Only n-grams of `evaluated` are kept, so `train` may be long and lazy.

    Raises ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"contamination: n must be at least 1, got {n}")
    texts = [_words(text) for text in evaluated]
    grams = [_grams(text, min(n, len(text))) for text in texts]
    all_texts, all_grams = set(filter(None, texts)), set().union(*grams)
    sizes = {len(gram) for gram in all_grams}
    copied, seen = set[Gram](), set[Gram]()
    for text in map(_words, train):
        copied |= all_texts & {text}
        seen |= all_grams & set().union(*(_grams(text, size) for size in sizes))
    shares = [len(own & seen) / len(own) if own else 0.0 for own in grams]
    mean = sum(shares) / len(shares) if shares else 0.0
    return Overlap(len(texts), sum(text in copied for text in texts), sum(share > 0 for share in shares), mean)


def _words(text: str) -> Gram:
    return tuple(re.findall(r"[^\W_]+", text.lower()))


def _grams(words: Gram, size: int) -> set[Gram]:
    """The distinct runs of `size` words; none of no words."""
    return {words[start : start + size] for start in range(len(words) - size + 1)} if size else set()
