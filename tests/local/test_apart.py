"""vmap keeps rows apart, or says that it does not."""

import pytest
import torch
from torch.func import grad
from torch.nn import functional

from hubbub.errors import CodeError
from hubbub.local.apart import each

TABLES = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
INDICES = torch.arange(30).reshape(5, 6) % 4
INDEXED = "index the tensor, tensor[indices], or use scatter(): both check what is in range"
WRITTEN = {
    "a function's own rule": "generate_vmap_rule = True, in place of a vmap() of its own",
    "an operator's own rule": "write it as a function, of torch's own operations",
    "an operator's own rule, by name": "write it as a function, of torch's own operations",
}


class WithARule(torch.autograd.Function):
    """Has a batching rule of its own, which gets all rows."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(_ctx, gradient):
        return gradient

    @staticmethod
    def vmap(_info, _in_dims, x):
        return torch.where(x.max() > 1e3, x.sum(0).expand_as(x), x), 0


class WithNone(torch.autograd.Function):
    """Is batched by vmap."""

    generate_vmap_rule = True
    forward, setup_context, backward = WithARule.forward, WithARule.setup_context, WithARule.backward


@torch.library.custom_op("hubbub_tests::with_a_rule", mutates_args=())
def with_a_rule(x: torch.Tensor) -> torch.Tensor:
    """Be an operator with a batching rule of its own."""
    return x.clone()


with_a_rule.register_vmap(lambda _info, _in_dims, x: (torch.where(x.max() > 1e3, x.sum(0).expand_as(x), x), 0))


MIXING = {
    "embedding": lambda table, at: functional.embedding(at, table),
    "embedding, by name": lambda table, at: functional.embedding(input=at, weight=table),
    "torch.embedding": torch.embedding,
    "of what was made": lambda table, at: functional.embedding(at, table * 2),
    "index_fill": lambda table, at: table[:, 0].index_fill(0, at, 1.0),
    "index_fill_": lambda table, at: (table * 2).index_fill_(0, at[2], 1.0),
    "torch.index_fill": lambda table, at: torch.index_fill(torch.zeros(4), 0, at, 1.0) * table[:, 0],
    "a function's own rule": lambda table, _: WithARule.apply(table),
    "an operator's own rule": lambda table, _: with_a_rule(table),
    "an operator's own rule, by name": lambda table, _: torch.ops.hubbub_tests.with_a_rule(table),
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
    "function": lambda table, at: WithNone.apply(table[at]),
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
    assert caught.value.hint == WRITTEN.get(name, INDEXED)


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
