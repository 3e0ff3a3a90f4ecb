"""`chars` against its definition written a second time, and what it shares with `words`: nothing."""

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
from amrctl.encoders.chars import runs
from amrctl.encoders.words import split

CHARS = load_text_encoder("chars")


def slow_signs(text: str) -> list[int]:
    digest = hashlib.sha384(text.encode("utf-8")).digest()
    return [1 if byte >> bit & 1 else -1 for byte in digest for bit in range(7, -1, -1)]


def slow_vector(run: str) -> Rows:
    total = np.zeros(384)
    for start in range(len(run)):
        for end in range(start + 2, min(start + 4, len(run)) + 1):
            total += slow_signs(run[start:end])
    return np.asarray(total / np.sqrt((total**2).sum()), dtype=np.float32)


def pooled(*sentences: str) -> Rows:
    vectors = [sentence.pooled for sentence in CHARS.encode(sentences)]
    return np.stack([vector for vector in vectors if vector is not None])


def test_tokens_are_the_definition() -> None:
    assert isinstance(CHARS, TextEncoder)
    (sentence,) = CHARS.encode(["The DOGS  bark!"])
    expected = np.stack([slow_vector(run) for run in (" the dog", " dogs ba", "s bark ")])
    mean = expected.mean(axis=0)
    expected = np.concatenate([[mean / np.linalg.norm(mean)], expected])
    assert sentence.tokens.dtype == np.float32
    np.testing.assert_allclose(sentence.tokens, expected, atol=1e-6)
    assert sentence.pooled is not None
    np.testing.assert_array_equal(sentence.pooled, sentence.tokens[0])


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=60))
def test_runs_cover_every_character_once_or_twice(text: str) -> None:
    whole = f" {' '.join(split(text))} "
    found = runs(text)
    assert all(len(run) == 8 for run in found[:-1])
    assert 2 <= len(found[-1]) <= 8
    joined = found[0] + "".join(run[4:] for run in found[1:])
    assert joined == whole
    for run, sentence in zip([found], CHARS.encode([text]), strict=True):
        assert sentence.tokens.shape == (1 + len(run), CHARS.dim)
        np.testing.assert_allclose(np.linalg.norm(sentence.tokens, axis=1), 1, atol=1e-5)


def test_the_same_bytes_in_every_process() -> None:
    program = (
        "import hashlib; from amrctl.encoders.base import load_text_encoder; "
        "s = load_text_encoder('chars').encode(['A dog barks, then rain falls'])[0]; "
        "print(hashlib.sha256(s.tokens.tobytes()).hexdigest())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = CHARS.encode(["A dog barks, then rain falls"])[0].tokens.tobytes()
    assert answer == hashlib.sha256(here).hexdigest() + "\n"


def test_paraphrases_lie_nearer_than_other_sounds() -> None:
    pairs = [
        ("a dog is barking", "dogs are barking loudly"),
        ("rain falls on a roof", "heavy rain is falling"),
        ("a rooster crows", "the crowing of a rooster"),
        ("someone sneezes", "a person is sneezing"),
    ]
    vectors = pooled(*(sentence for pair in pairs for sentence in pair))
    near = vectors @ vectors.T
    for i in range(len(vectors)):
        others = [near[i, j] for j in range(len(vectors)) if j // 2 != i // 2]
        assert near[i, i ^ 1] > max(others)


def test_it_cuts_elsewhere_and_hears_order() -> None:
    words = load_text_encoder("words")
    sentence = "footsteps on a gravel path"
    assert len(CHARS.encode([sentence])[0].tokens) != len(words.encode([sentence])[0].tokens)
    assert CHARS.dim == 384 != words.dim
    one, other = pooled("cat dog", "dog cat")
    assert float(one @ other) < 0.9
    same = pooled("A Dog barks", "a dog barks.")
    np.testing.assert_array_equal(same[0], same[1])


def test_wrong_names() -> None:
    with pytest.raises(Exception, match="chars has no weights; write it as chars"):
        load_text_encoder("chars:x")
