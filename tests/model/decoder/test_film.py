"""FiLM on the content queries: the identity at first, then its definition; learned content."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amrctl.errors import RecipeError
from amrctl.model.decoder.conditional import Queries
from amrctl.model.decoder.film import Film, FilmConfig
from amrctl.model.detector import Detector, build
from amrctl.model.types import Dims, Memory, Output
from tests.small import AUDIO_DIM, TEXT_DIM, batch, recipe

SUMMARISED = ("model.fusion=[sentence-token, text-to-audio]", "model.decoder.content=learned")


def detector(*sets: str) -> Detector:
    torch.manual_seed(0)
    return build(recipe(*sets), (AUDIO_DIM,), (TEXT_DIM,), training=False).eval()


def spans(made: Detector) -> Tensor:
    with torch.inference_mode():
        output: Output = made(batch())
    assert output.spans is not None
    return output.spans


def test_it_starts_as_the_identity_to_the_bit() -> None:
    plain, steered = detector(*SUMMARISED), detector(*SUMMARISED, "model.hooks=[film]")
    steered.load_state_dict({**steered.state_dict(), **plain.state_dict()})
    assert torch.equal(spans(plain), spans(steered))
    with torch.no_grad():
        steered.get_parameter("decoder.hooks.film.film.weight").normal_(std=0.3)
    changed = spans(steered)
    assert float((changed - spans(plain)).abs().max()) > 1e-3


def test_it_scales_and_shifts_each_pairs_content_by_its_own_sentence() -> None:
    torch.manual_seed(1)
    film = Film(FilmConfig(), Dims(4, (4,), (4,)))
    with torch.no_grad():
        film.film.weight.normal_()
        film.film.bias.normal_()
    summary, content = torch.randn(2, 4), torch.randn(2, 3, 4)
    nothing = torch.zeros(2, 4)
    memory = Memory(
        nothing, nothing, nothing, nothing, nothing, nothing, nothing, {"sentence-token": summary}
    )
    queries = film.start(Queries(content, torch.rand(2, 3, 2)), memory, batch((3, 3), (1, 1)))
    weight, bias = film.film.weight.double(), film.film.bias.double()
    for b in range(2):
        both = weight @ summary[b].double() + bias
        for n in range(3):
            wanted = content[b, n].double() * (1 + both[:4]) + both[4:]
            torch.testing.assert_close(queries.content[b, n].double(), wanted, rtol=1e-5, atol=1e-5)


def test_without_a_summary_it_says_what_is_missing() -> None:
    with pytest.raises(RecipeError, match=r"'film' needs a summary .* add 'sentence-token' to model\.fusion"):
        detector("model.hooks=[film]")(batch())


def test_learned_content_is_one_row_per_query_and_replaces_the_zeros() -> None:
    plain, learned = detector(), detector("model.decoder.content=learned")
    assert learned.get_parameter("decoder.content_embed.weight").shape == (7, 32)
    assert set(learned.state_dict()) - set(plain.state_dict()) == {"decoder.content_embed.weight"}
    with torch.no_grad():
        learned.get_parameter("decoder.content_embed.weight").zero_()
    learned.load_state_dict({**learned.state_dict(), **plain.state_dict()})
    assert torch.equal(spans(plain), spans(learned))
