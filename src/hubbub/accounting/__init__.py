"""What the noise costs: events to epsilon, noise from epsilon, budgets spent.

    codec.py          DpEvents as JSON
    epsilon.py        events -> epsilon, by the tightest accountant that covers them
    gaussian.py       that of plain Gaussians, in closed form
    discrete.py       integer noise accounted as Gaussian noise
    calibration.py    the smallest noise within an epsilon
    grants.py         what an owner allows, and whether a run still fits
    accounts.py       the fold of everything granted, reserved, charged, settled
    ledger.py         the only way to spend it
    shown.py          epsilons as people read them: costs rounded up, what is left down

*Trust:* trusted by every plan, claim and ledger; a number that is too small here is a false promise.
"""
