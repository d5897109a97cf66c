"""What makes the guarantee: clip, encode, noise, and the event that the accountant sees, on one object.

    clip.py                 the bound on one record's or one participant's part
    encode.py               reals -> integers modulo 2^32
    discrete_gaussian.py    exact noise on integers
    mechanism.py            `Mechanism`: clip + encode + noise + sampler + DpEvent
    design.py               from a study and its public sizes to the one that keeps its promise

*Trust:* a bug here is a false guarantee; nothing else in hubbub may clip, scale, draw noise or name a
noise multiplier.
"""

from hubbub.mechanism.design import design, discrete_cost
from hubbub.mechanism.mechanism import Mechanism

__all__ = ["Mechanism", "design", "discrete_cost"]
