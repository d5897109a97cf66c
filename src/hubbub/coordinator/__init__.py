"""The coordinator's side of a run: who is asked, what is added up, how the model moves.

    rounds.py    `Coordinator`: a sans-I/O state machine, contributions in, a released sum out
    sums.py      how an attempt adds up: in the clear, or so that only the sum is seen
    step.py      from a released sum to the next model: FedAvg, the dp-sgd step, server momentum

*Trust:* with server noise it sees each contribution un-noised; it can always stall, and can report any sum.
"""

from hubbub.coordinator.rounds import Coordinator, Progress

__all__ = ["Coordinator", "Progress"]
