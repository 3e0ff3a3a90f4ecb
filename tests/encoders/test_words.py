"""`words` against its definition written a second time, and what a sentence encoder must be able to."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amrctl.encoders.base import Rows, TextEncoder, load_text_encoder
from amrctl.encoders.words import STOP_WORDS, split, stem
from amrctl.errors import FeatureError

WORDS = load_text_encoder("words")


def slow_signs(text: str) -> list[int]:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return [1 if byte >> bit & 1 else -1 for byte in digest for bit in range(7, -1, -1)]


def slow_vector(word: str, root: str) -> list[float]:
    marked = "<" + word + ">"
    grams = [marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked)) if i + n <= len(marked)]
    total = [
        float(a + 2 * b) for a, b in zip(slow_signs("word " + word), slow_signs("stem " + root), strict=True)
    ]
    for gram in grams:
        total = [
            t + 1.5 * s / len(grams) ** 0.5 for t, s in zip(total, slow_signs("gram " + gram), strict=True)
        ]
    length = sum(t * t for t in total) ** 0.5
    return [t / length for t in total]


def pooled(*sentences: str) -> Rows:
    vectors = [sentence.pooled for sentence in WORDS.encode(sentences)]
    return np.stack([vector for vector in vectors if vector is not None])


def test_tokens_are_the_definition() -> None:
    assert isinstance(WORDS, TextEncoder)
    (sentence,) = WORDS.encode(["The DOGS bark!"])
    expected = np.array([slow_vector("the", "the"), slow_vector("dogs", "dog"), slow_vector("bark", "bark")])
    expected[0] *= 0.25
    mean = expected.mean(axis=0)
    expected = np.concatenate([[mean / np.linalg.norm(mean)], expected])
    assert sentence.tokens.dtype == np.float32
    np.testing.assert_allclose(sentence.tokens, expected, atol=1e-6)
    assert sentence.pooled is not None
    np.testing.assert_array_equal(sentence.pooled, sentence.tokens[0])


def test_the_same_bytes_in_every_process() -> None:
    program = (
        "import hashlib; from amrctl.encoders.base import load_text_encoder; "
        "s = load_text_encoder('words').encode(['A dog barks, then rain falls', 'Glocken läuten'])[0]; "
        "print(hashlib.sha256(s.tokens.tobytes()).hexdigest())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    here = WORDS.encode(["A dog barks, then rain falls"])[0].tokens.tobytes()
    assert answers == {hashlib.sha256(here).hexdigest() + "\n"}


@pytest.mark.parametrize(
    ("words", "root"),
    [
        ("bark barks barked barking", "bark"),
        ("cry cries crying cried", None),
        ("run runs running", "run"),
        ("noise noises", "nois"),
        ("siren sirens siren's", "siren"),
        ("is as bus", None),
    ],
)
def test_stems(words: str, root: str | None) -> None:
    stems = [stem(word) for word in words.split()]
    if root is not None:
        assert set(stems) == {root}
    assert all(len(found) >= 2 for found in stems)


def test_paraphrases_lie_nearer_than_other_sounds() -> None:
    pairs = [
        ("a dog is barking", "dogs bark loudly"),
        ("rain falls on a roof", "heavy rain is falling"),
        ("a rooster crows", "the crowing of a rooster"),
        ("someone sneezes", "a person is sneezing"),
    ]
    vectors = pooled(*(sentence for pair in pairs for sentence in pair))
    near = vectors @ vectors.T
    for i in range(len(vectors)):
        others = [near[i, j] for j in range(len(vectors)) if j // 2 != i // 2]
        assert near[i, i ^ 1] > max(others) + 0.2


def test_split_and_case() -> None:
    assert split("A dog's bark, twice-heard; 3 times!") == [
        "a",
        "dog's",
        "bark",
        "twice",
        "heard",
        "3",
        "times",
    ]
    assert split("the dog’s") == ["the", "dog's"]
    assert split("...") == [""]
    assert all(split(word) == [word] for word in STOP_WORDS)
    a, b = WORDS.encode(["A Dog Barks", "a dog barks."])
    np.testing.assert_array_equal(a.tokens, b.tokens)


def test_order_is_in_the_tokens_only() -> None:
    a, b = WORDS.encode(["rain then thunder", "thunder then rain"])
    np.testing.assert_allclose(a.tokens[0], b.tokens[0], atol=1e-7)
    np.testing.assert_array_equal(a.tokens[1:], b.tokens[:0:-1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=4))
def test_any_text(sentences: list[str]) -> None:
    for text, sentence in zip(sentences, WORDS.encode(sentences), strict=True):
        assert sentence.tokens.shape == (1 + len(split(text)), WORDS.dim)
        lengths = np.linalg.norm(sentence.tokens, axis=1)
        assert lengths[0] == pytest.approx(1, abs=1e-5)
        assert all(min(abs(n - 1), abs(n - 0.25)) < 1e-5 for n in lengths[1:].tolist())


def test_unrelated_words_are_nearly_orthogonal() -> None:
    vectors = pooled("thunder", "rooster", "siren", "footsteps", "applause", "helicopter", "clock", "waves")
    near = np.abs(np.triu(vectors @ vectors.T, 1))
    assert near.max() < 0.35
    assert near.sum() / 28 < 0.12


def test_wrong_names() -> None:
    for spec, answer in (
        ("wrods", "no text encoder is called 'wrods'; did you mean 'words'?"),
        ("logmel", "no text encoder is called 'logmel'"),
        (
            "words:x.safetensors",
            "--text-encoder words:x.safetensors: words has no weights; write it as words",
        ),
    ):
        with pytest.raises(FeatureError) as caught:
            load_text_encoder(spec)
        assert str(caught.value).startswith(answer)
