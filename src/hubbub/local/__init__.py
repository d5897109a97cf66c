"""What a participant computes on its own records: gradients and updates of one flat parameter vector.

    learner.py      `Learner`: what training asks of a model, whatever its framework
    load.py         a study's model as a learner, after its self-tests
    layout.py       named arrays <-> one flat vector
    seeds.py        the order of local batches
    module.py       what model() returns, and which layers are refused
    torch_model.py  a PyTorch module as a learner: local SGD, evaluation
    stack.py        small models of many participants trained side by side, and how that is tried first
    dense.py        dense networks trained by formula, one participant after the other
    gradients.py    per-example clipped gradient sums in microbatches of one fixed shape, and their self-test
    bookkeeping.py  the fast clipper: one batched pass per microbatch, for models of plain layers
    apart.py        `torch.func.vmap` that keeps rows apart
    parts.py        what that clipper knows of layers: per-record norms and weighted sums
    threads.py      one thread for each matrix library
    arrays.py       the ndarray hook (scikit-learn, JAX, ...) as a learner

*Trust:* sees raw records and returns un-noised vectors; only `participant` may call it, and it sends nothing.
"""
