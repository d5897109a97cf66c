"""What a participant computes on its own records: gradients and updates of one flat parameter vector.

    learner.py      `Learner`: what training asks of a model, whatever its framework
    layout.py       named arrays <-> one flat vector
    torch_model.py  a PyTorch module as a learner: local SGD, evaluation, layers that are refused
    gradients.py    per-example clipped gradient sums in microbatches of one fixed shape, and their self-test
    arrays.py       the ndarray hook (scikit-learn, JAX, ...) as a learner

*Trust:* sees raw records and returns un-noised vectors; only `participant` may call it, and it sends nothing.
"""
