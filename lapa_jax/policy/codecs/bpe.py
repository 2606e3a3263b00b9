"""Byte pair encoding of integers, as GPT-2's byte-level one encodes the text of those code points.

A number is its UTF-8 bytes. Merges do not cross from one run of letters, digits, white space or
other characters to the next, by GPT-2's rule (Radford et al. 2019), so which numbers may share a
token depends on what characters they would be. Fitting, ids, merges and files are those of the
`tokenizers` library; nothing here is a text, so that every number has its bytes, and bytes that
are no number are an error instead of U+FFFD.
"""

import functools
import heapq
import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LIMIT = 0x110000  # of code points
REPLACEMENT = 0xFFFD  # what texts say for bytes that are no character
_SHOWN = {*range(33, 127), *range(161, 173), *range(174, 256)}
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
# The character that files show a byte as.
SHOWN = [chr(b if b in _SHOWN else 256 + _HIDDEN.index(b)) for b in range(256)]
_BYTE = {character: byte for byte, character in enumerate(SHOWN)}

_SPACES = [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)]
_SPACES += [0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
# GPT-2's rule on the classes of characters: L letter, N number, W white space, O other; a blank,
# the apostrophe and the letters of English contractions are themselves, and 0 ends a sequence.
_PIECE = re.compile(
    rb"'(?:[stmd]|re|ve|ll)| ?[Lstmdrevl]+| ?N+| ?[O']+|[ W]+(?![^ W\x00])|[ W]+",
)

# What a file of the `tokenizers` library says beside vocabulary and merges.
_LEVEL = {"type": "ByteLevel", "use_regex": True}
_FILE = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": _LEVEL | {"add_prefix_space": False, "trim_offsets": True},
    "post_processor": _LEVEL | {"add_prefix_space": True, "trim_offsets": False},
    "decoder": _LEVEL | {"add_prefix_space": True, "trim_offsets": True},
}
_MODEL = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


class BytePairs:
    """`names`: of each id the characters that files show it as; `merges`: pairs of ids that become
    one, the earlier first."""

    def __init__(self, names: Sequence[str], merges: Iterable[tuple[int, int]]):
        self.names, self.merges = list(names), list(merges)
        number = {name: i for i, name in enumerate(self.names)}
        if len(number) != len(self.names) or "" in number:
            raise ValueError("a vocabulary must have every token once, and no empty one")
        self.tokens = [_bytes(name) for name in self.names]
        self.base = {byte: number[c] for byte, c in enumerate(SHOWN) if c in number}
        self._ranks: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, (a, b) in enumerate(self.merges):
            made = number.get(self.names[a] + self.names[b])
            if made is None:
                raise ValueError(
                    f"the merge of {self.names[a]!r} and {self.names[b]!r} is not in the vocabulary"
                )
            self._ranks[a, b] = rank, made
        self._known: dict[bytes, list[int]] = {}

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def dead(self) -> np.ndarray:
        """Ids that no number is ever encoded as, int (n,): characters of the first alphabet that
        files show otherwise. They can be decoded."""
        return np.array([i for i, name in enumerate(self.names) if not set(name) <= _BYTE.keys()])

    @functools.cached_property
    def encodable(self) -> np.ndarray:
        """Which numbers have tokens, bool (n,): those whose bytes are all in the vocabulary.
        Numbers from n on have none."""
        known = np.zeros(256, bool)
        known[list(self.base)] = True
        size = next((n for n, lead in ((LIMIT, 0xF0), (2**16, 0xE0)) if known[lead:].any()), 2**11)
        n = np.arange(size)
        high, middle, last = (known[0x80 | n >> bits & 63] for bits in (12, 6, 0))
        two = known[0xC0 | n >> 6 & 31] & last
        three = known[0xE0 | n >> 12 & 15] & middle & last
        four = known[0xF0 | n >> 18 & 7] & high & middle & last
        of_size = [n < 2**7, n < 2**11, n < 2**16]
        found = np.select(of_size, [known[n & 127], two, three], four)
        found[0xD800:0xE000] = False  # of UTF-16, no characters
        found[REPLACEMENT : REPLACEMENT + 1] = False
        return found

    # --- Numbers → ids → numbers ---

    def encode(self, numbers: np.ndarray) -> list[list[int]]:
        """Numbers int (B, n), all of which are `encodable`, → ids, B lists."""
        numbers = np.ascontiguousarray(numbers, np.uint32)
        if not numbers.size:
            return [[] for _ in numbers]
        keys = [
            [row[a:b].tobytes() for a, b in spans]
            for row, spans in zip(numbers, _pieces(numbers), strict=True)
        ]
        # Several threads may be here: what this one uses it holds.
        found = {key: self._known.get(key) for row in keys for key in row}
        new = {key: self._merged(key) for key, ids in found.items() if ids is None}
        if len(self._known) + len(new) > _KEPT:
            self._known = {}
        self._known.update(new)
        found |= new
        return [list(itertools.chain.from_iterable(map(found.get, row))) for row in keys]

    def numbers(self, ids: Iterable[int]) -> np.ndarray:
        """Ids → numbers int64 (n,). ValueError for ids that are not in the vocabulary, and for
        bytes that are no number."""
        data = bytearray()
        for place, i in enumerate(ids):
            if not isinstance(i, int | np.integer) or not 0 <= i < len(self.tokens):
                raise ValueError(f"id {i} at place {place}: ids run from 0 to {len(self) - 1}")
            data += self.tokens[i]
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"byte {data[error.start]:#x} at place {error.start} of the tokens' "
                f"{len(data)} is not part of a whole number"
            ) from None
        found = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64)
        if (found == REPLACEMENT).any():
            raise ValueError("U+FFFD stands for bytes that are no number")
        return found

    def _merged(self, key: bytes) -> list[int]:
        """Always the least merge that is possible, the leftmost of equal ones."""
        ids = [self.base[byte] for byte in key.decode("utf-32-le").encode()]
        n = len(ids)
        before, after = list(range(-1, n - 1)), list(range(1, n + 1))
        ranks, queue = self._ranks, []

        def offer(place: int) -> None:
            found = ranks.get((ids[place], ids[after[place]]))
            if found is not None:
                heapq.heappush(queue, (found[0], place, found[1]))

        for place in range(n - 1):
            offer(place)
        while queue:
            _, place, made = heapq.heappop(queue)
            right = after[place]
            if ids[place] < 0 or right >= n:
                continue
            found = ranks.get((ids[place], ids[right]))
            if found is None or found[1] != made:  # merged with another one since
                continue
            ids[place], ids[right] = made, -1
            after[place] = after[right]
            if after[place] < n:
                before[after[place]] = place
                offer(place)
            if before[place] >= 0:
                offer(before[place])
        return [i for i in ids if i >= 0]

    # --- Fitting ---

    @classmethod
    def fit(
        cls,
        rows: Iterable[np.ndarray],
        size: int,
        alphabet: Iterable[int],
        *,
        more_bytes: Iterable[int] = (),
    ) -> "BytePairs":
        """Of rows of numbers int (n,): the characters of `alphabet` as they are, the bytes of the
        rows (and `more_bytes`), in the order of their code points, then the most frequent pair
        again and again, of equal ones that of the least ids, until there are `size` tokens or no
        pair comes twice."""
        counts: Counter[bytes] = Counter()
        for row in rows:
            if len(row):
                wide = np.ascontiguousarray(row, np.uint32)
                counts.update(wide[a:b].tobytes() for a, b in _pieces(wide[None])[0])
        texts = {key: key.decode("utf-32-le").encode() for key in counts}
        seen = {byte for text in texts.values() for byte in text} | set(more_bytes)
        names = sorted({chr(n) for n in alphabet} | {SHOWN[byte] for byte in seen})
        number = {name: i for i, name in enumerate(names)}
        base = {byte: _character(number[SHOWN[byte]]) for byte in seen}
        words = ["".join(map(base.get, texts[key])) for key in counts]
        merges = _fitted(words, list(counts.values()), names, number, size)
        return cls(names, merges)

    # --- Files ---

    def to_json(self) -> dict[str, Any]:
        """What `tokenizer.json` holds."""
        pairs = [[self.names[a], self.names[b]] for a, b in self.merges]
        vocabulary = {name: i for i, name in enumerate(self.names)}
        return _FILE | {"model": _MODEL | {"vocab": vocabulary, "merges": pairs}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "BytePairs":
        """What `tokenizer.json` holds. ValueError for another kind of tokenizer."""
        model, before, after = (
            _held(values, *path)
            for path in (("model",), ("pre_tokenizer", "type"), ("decoder", "type"))
        )
        vocabulary, merges = _held(model, "vocab"), _held(model, "merges")
        kinds = model.get("type"), before, after
        if kinds != ("BPE", "ByteLevel", "ByteLevel"):
            raise ValueError(f"tokenizer.json: a tokenizer of {kinds}, not of bytes, by BPE")
        given = {**values, **values["pre_tokenizer"], **model}
        for name, wanted in (
            *((n, _FILE[n]) for n in ("truncation", "padding", "added_tokens", "normalizer")),
            *(("add_prefix_space", False), ("use_regex", True)),
            *((n, x) for n, x in _MODEL.items() if n != "type"),
        ):
            # Older files lack the last ones, and said "" for none.
            if (given.get(name, wanted) or None) != (wanted or None):
                raise ValueError(f"tokenizer.json: {name} is {given[name]!r}, it must be {wanted}")
        if not isinstance(vocabulary, Mapping) or not isinstance(merges, list):
            raise ValueError("tokenizer.json: vocab must be a mapping, merges a list")
        ids = list(vocabulary.values())
        names = sorted(vocabulary, key=lambda name: str(vocabulary[name]).zfill(9))
        if not names or {*map(type, ids)} != {int} or sorted(ids) != list(range(len(names))):
            raise ValueError(f"tokenizer.json: the ids of {len(names)} tokens are not 0, 1, 2, ...")
        pairs = [m.split(" ") if isinstance(m, str) else m for m in merges]
        for pair in pairs:
            whole = isinstance(pair, list) and len(pair) == 2
            if not whole or not all(isinstance(x, str) and x in vocabulary for x in pair):
                raise ValueError(f"tokenizer.json: the merge {pair} is not of two of its tokens")
        return cls(names, [(vocabulary[a], vocabulary[b]) for a, b in pairs])


_KEPT = 2**15  # pieces whose ids are remembered


def _bytes(name: str) -> bytes:
    """What a token decodes to: the bytes that its characters show, else itself."""
    if set(name) <= _BYTE.keys():
        return bytes(map(_BYTE.get, name))
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"token {name!r} is no text: {error.reason}") from error


def _held(values: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(values, Mapping) or name not in values:
            raise ValueError(f"this is no tokenizer.json: {name!r} is missing")
        values = values[name]
    return values


def _above(number: int) -> int:
    """Characters of ids leave out UTF-16's surrogates."""
    return number if number < 0xD800 else number + 0x800


@functools.cache
def _character(number: int) -> str:
    return chr(_above(number))


@functools.cache
def _id(character: str) -> int:
    return ord(character) if ord(character) < 0xD800 else ord(character) - 0x800


@functools.cache
def _classes(size: int) -> np.ndarray:
    """Of each number below `size` the class of its character, uint8."""
    table = np.full(size, ord("O"), np.uint8)
    for number in range(size):
        kind = unicodedata.category(chr(number))[0]
        if kind in "LN":
            table[number] = ord(kind)
    for number in (*_SPACES, *map(ord, " 'stmdrevl")):
        if number < size:
            table[number] = ord("W") if number in _SPACES and number != 32 else number
    return table


def _pieces(numbers: np.ndarray) -> list[list[tuple[int, int]]]:
    """Where the runs of each row lie, of numbers uint32 (B, n)."""
    n = numbers.shape[1]
    table = _classes(min(LIMIT, max(256, 1 << int(numbers.max()).bit_length())))
    classes = np.zeros((len(numbers), n + 1), np.uint8)
    classes[:, :n] = table[numbers]
    found: list[list[tuple[int, int]]] = [[] for _ in numbers]
    for match in _PIECE.finditer(classes.tobytes()):
        row, start = divmod(match.start(), n + 1)
        found[row].append((start, start + match.end() - match.start()))
    return found


def _fitted(
    words: list[str], counts: list[int], names: list[str], number: dict[str, int], size: int
) -> list[tuple[int, int]]:
    """The merges of words, whose characters are ids; appends to `names` and `number`.

    The queue, and what of it is out of date when, is that of the `tokenizers` library: that decides
    which merge comes first where a token is made in two ways.
    """
    pair_counts: Counter[str] = Counter()
    where: defaultdict[str, set[int]] = defaultdict(set)
    for w, word in enumerate(words):
        for pair in map("".join, itertools.pairwise(word)):
            pair_counts[pair] += counts[w]
            where[pair].add(w)
    queue: list[tuple[int, int, int, int, set[int]]] = []
    serial = itertools.count()

    def offer() -> None:
        for pair, places in where.items():
            if pair_counts[pair] > 0:
                key = -pair_counts[pair], _id(pair[0]), _id(pair[1])
                heapq.heappush(queue, (*key, next(serial), places))
        where.clear()

    offer()
    merges: dict[tuple[int, int], int] = {}  # and its last place in the order
    while len(names) < size and queue:
        count, a, b, _, places = heapq.heappop(queue)
        pair = _character(a) + _character(b)
        if -count != pair_counts[pair]:
            key = -pair_counts[pair], a, b
            heapq.heappush(queue, (*key, next(serial), places))
            continue
        if -count < 2:
            break
        name = names[a] + names[b]
        if name not in number:
            number[name] = len(names)
            names.append(name)
        merges.pop((a, b), None)
        merges[a, b] = number[name]
        made = _character(number[name])
        for w in places:
            word, of_word = words[w], counts[w]
            start = word.find(pair)
            if start < 0:
                continue
            ended = -1  # where the last one that was merged did
            while start >= 0:
                if start:
                    left = made if ended == start else word[start - 1]
                    pair_counts[left + pair[0]] -= of_word
                    pair_counts[left + made] += of_word
                    where[left + made].add(w)
                ended = start + 2
                if ended < len(word):
                    pair_counts[pair[1] + word[ended]] -= of_word
                    pair_counts[made + word[ended]] += of_word
                    where[made + word[ended]].add(w)
                start = word.find(pair, ended)
            words[w] = word.replace(pair, made)
        offer()
    return list(merges)
