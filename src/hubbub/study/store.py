"""Studies that a site or a coordinator holds: whoever runs it has put them there, and they are found by hash."""

from pathlib import Path

from hubbub.errors import CodeError, StudyError
from hubbub.study.load import Study, load_study


def find_study(store: Path, study_hash: str, code_hash: str) -> Study:
    """The study of these hashes.

    Args:
        store: A folder that holds studies as folders.
        study_hash: SHA-256 of its settings.
        code_hash: SHA-256 of its code.

    Raises:
        CodeError: There is none.
    """
    for file in sorted(store.glob("*/study.toml")):
        try:
            study = load_study(file)
            if (study.settings.approved_hash(), study.code_hash) == (study_hash, code_hash):
                return study
        except (StudyError, CodeError):
            continue  # what cannot be read cannot be asked for
    raise CodeError(
        f"study {study_hash[:12]} with code {code_hash[:12]}, must be in the folder {store.name!r} here, found none; "
        "nothing trained, nothing sent",
        hint=f"read the study, then copy its folder into {store}",
    )
