"""vmap keeps rows apart, or says that it does not."""

import pytest
import torch
from torch.func import grad
from torch.nn import functional

from hubbub.errors import CodeError
from hubbub.local.apart import each

TABLES = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
INDICES = torch.arange(30).reshape(5, 6) % 4

MIXING = {
    "embedding": lambda table, at: functional.embedding(at, table),
    "embedding, by name": lambda table, at: functional.embedding(input=at, weight=table),
    "torch.embedding": torch.embedding,
    "of what was made": lambda table, at: functional.embedding(at, table * 2),
    "index_fill": lambda table, at: table[:, 0].index_fill(0, at, 1.0),
    "index_fill_": lambda table, at: (table * 2).index_fill_(0, at[2], 1.0),
    "torch.index_fill": lambda table, at: torch.index_fill(torch.zeros(4), 0, at, 1.0) * table[:, 0],
}
KEEPING = {
    "index": lambda table, at: table[at],
    "select": lambda table, at: table.index_select(0, at),
    "gather": lambda table, at: table[:, 0].gather(0, at),
    "take": lambda table, at: table.take(at),
    "scatter": lambda table, at: (table[:, 0] * 2).scatter(0, at, 1.0),
    "add": lambda table, at: torch.zeros(4, 3).index_add(0, at[:4], table),
    "put": lambda table, at: torch.zeros(4, 3).index_put((at[:4],), table, accumulate=True),
    "one table": lambda table, at: functional.embedding(at, torch.ones(4, 3)) * table[0],
    "bag": lambda table, at: functional.embedding_bag(at[None], table),
    "loss": lambda table, at: functional.nll_loss(table, at[:4], reduction="none"),
}


def squared(function):
    return grad(lambda table, at: function(table, at).square().sum())


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("made", [lambda function: function, squared], ids=["results", "gradients"])
def test_operations_that_reach_into_other_rows_are_refused_at_any_values(name, made):
    with pytest.raises(CodeError) as caught:
        each(made(MIXING[name]))(TABLES, INDICES)
    assert caught.value.message.endswith(
        "must not look beyond one example, found that torch.func.vmap lets it",
    )
    assert caught.value.hint == "index the tensor, tensor[indices], or use scatter(): both check what is in range"


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("made", [lambda function: function, squared], ids=["results", "gradients"])
@pytest.mark.parametrize("value", [4, 7, 99, -1, -4, -5])
def test_an_index_out_of_range_is_that_rows_matter(name, made, value):
    function, wrong, others = each(made(KEEPING[name])), INDICES.clone(), torch.tensor([0, 2, 3, 4])
    wrong[1, 2] = value
    expected, changed = function(TABLES, INDICES % 3), TABLES.clone()
    wrong[others] = (INDICES % 3)[others]
    changed[others] += 1
    try:
        found, again = function(TABLES, wrong), function(changed, wrong)
    except (IndexError, RuntimeError):
        return
    assert torch.equal(found[others], expected[others])
    assert torch.equal(found[1], again[1])
