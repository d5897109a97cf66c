"""What a data scientist writes: study.toml (settings) and study.py (code), read and checked.

    config.py     study.toml -> frozen `Settings`; rules of single values
    rules.py      rules that join several settings
    code.py       study.py -> `Code`, the user's functions; its hash
    schema.py     one participant's `Examples` -> `Slots`, checked against the declared columns
    lock.py       study.lock: what a plan needs to know of code and data (d, N_i, code hash)
    load.py       a folder -> `Study`
    store.py      studies that a site or a coordinator holds, found by hash

*Trust:* study.py runs with the user's rights; a malicious one can read what the user can, so every
participant approves it by hash before it is loaded.
"""

from hubbub.study.code import Code
from hubbub.study.config import Settings, read_settings
from hubbub.study.load import Study, load_study
from hubbub.study.lock import Lock
from hubbub.study.schema import Examples, Slots, conform, made_up

__all__ = [
    "Code",
    "Examples",
    "Lock",
    "Settings",
    "Slots",
    "Study",
    "conform",
    "load_study",
    "made_up",
    "read_settings",
]
