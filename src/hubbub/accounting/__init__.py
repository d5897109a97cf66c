"""What the noise costs: events to epsilon, noise from epsilon, budgets spent.

*Trust:* trusted by every plan, claim and ledger; a number that is too small here is a false promise.
"""
