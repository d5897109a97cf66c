"""An entry of the deployments registry is valid, complete, and says only what the claim and its plan say."""

import json
import re
from datetime import date

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import hubbub
from hubbub.accounting.shown import at_least
from hubbub.errors import InputError, RefusedError, VerificationError
from hubbub.release import Publication, ReleaseClaim, registry_entry, registry_text
from hubbub.release.registry import read_publication

PUBLICATION = Publication(
    curators=("Hospital A", "Hospital B"),
    authors=("A. Privacy Officer",),
    intended_use="Triage of referrals.",
    region="Iceland",
    published=date(2026, 3, 1),
)
TOLD = []


def released(study, folder):
    hubbub.run(study, home=folder / "home", out=folder / "run")
    content = (folder / "run" / "claim.json").read_bytes()
    return msgspec.json.decode(content, type=ReleaseClaim), hubbub.plan(study)


@pytest.fixture
def told(make_study, settings, tmp_path):
    """Give the claim of a finished run, and its plan; both are frozen, so one run does for all tests."""
    if not TOLD:
        TOLD.append(released(make_study(settings()), tmp_path))
    return TOLD[0]


@pytest.fixture
def schema(vectors):
    """Give a function that says what the registry's own check would say."""
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed; it is part of the dev extra")
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed; it is part of the dev extra")
    rules = yaml.safe_load((vectors / "registry" / "deployments-schema.yaml").read_text(encoding="utf-8"))
    validator = jsonschema.Draft7Validator(rules, format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER)
    return lambda document: [error.message for error in validator.iter_errors(document)]


def leaves(document, path=()):
    if isinstance(document, dict):
        for key, value in document.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, document


def text_of(entry):
    return " ".join(str(value) for _, value in leaves(entry))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"privacy": {"noise": "distributed"}},
        {"privacy": {"noise": "local"}, "training": {"algorithm": "local-dp-sgd"}},
    ],
    ids=["server", "distributed", "local"],
)
def test_entries_of_record_level_studies_are_valid(schema, make_study, settings, tmp_path, changes):
    claim, plan = released(make_study(settings(**changes)), tmp_path)
    entry = registry_entry(claim, plan, PUBLICATION)
    assert schema(entry) == []
    assert entry["deployment"]["privacy_loss"]["privacy_unit"] == "Record-level"


def test_entries_of_client_level_studies_are_valid(schema, make_study, client_settings, tmp_path):
    claim, plan = released(make_study(client_settings()), tmp_path)
    entry = registry_entry(claim, plan, PUBLICATION)
    assert schema(entry) == []
    assert entry["deployment"]["privacy_loss"]["privacy_unit"] == "Participant-level"


def test_the_schema_accepts_the_registrys_own_example_and_refuses_less(schema, vectors, told):
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed; it is part of the dev extra")
    example = yaml.safe_load((vectors / "registry" / "example-google_mobility.yaml").read_text(encoding="utf-8"))
    assert schema(example) == []
    entry = registry_entry(*told, PUBLICATION)
    for name in list(entry["deployment"]["basic"]):
        short = msgspec.json.decode(msgspec.json.encode(entry))
        del short["deployment"]["basic"][name]
        assert schema(short) == [f"'{name}' is a required property"]


def test_the_text_reads_the_same_as_json_and_as_yaml(told):
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed; it is part of the dev extra")
    claim, plan = told
    entry = registry_entry(claim, plan, PUBLICATION)
    assert json.loads(registry_text(entry)) == entry == yaml.safe_load(registry_text(entry))
    tiny = registry_entry(msgspec.structs.replace(claim, delta=1e-12), plan, PUBLICATION)
    assert yaml.safe_load(registry_text(tiny)) == tiny
    assert tiny["deployment"]["privacy_loss"]["privacy_parameters"]["delta"] == "1e-12"


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(min_size=1, max_size=40))
def test_any_text_of_a_publication_is_kept_or_refused(told, text):
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed; it is part of the dev extra")
    publication = msgspec.structs.replace(PUBLICATION, region=text, sources=text)
    try:
        entry = registry_entry(*told, publication)
    except InputError as error:
        assert error.message == f"publication.region, must be one line of text, found {text!r}"  # noqa: PT017
    else:
        read = yaml.safe_load(registry_text(entry))["deployment"]
        assert read["basic"]["data_product_region"] == read["administrative"]["sources"] == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curators": ()}, "publication.curators, must name somebody, found nobody"),
        ({"authors": ()}, "publication.authors, must name somebody, found nobody"),
        ({"authors": ("A", " ")}, "publication.authors, must be one line of text, found ' '"),
        ({"intended_use": ""}, "publication.intended_use, must be one line of text, found ''"),
        ({"sources": "two\nlines"}, "publication.sources, must be one line of text, found 'two\\nlines'"),
    ],
)
def test_a_publication_without_its_texts_is_refused(told, change, message):
    with pytest.raises(InputError, match=re.escape(message)):
        registry_entry(*told, msgspec.structs.replace(PUBLICATION, **change))


def test_what_was_spent_is_what_the_entry_states(told):
    claim, plan = told
    loss = registry_entry(claim, plan, PUBLICATION)["deployment"]["privacy_loss"]
    assert loss["privacy_parameters"] == {"epsilon": claim.epsilon_spent, "delta": "1e-05"}
    assert loss["privacy_parameters_details"] == (
        f"- For the 4 round attempts that were charged, retries included: ({at_least(claim.epsilon_spent)}, 1e-05) by "
        f"{claim.accountant}.\n"
        f"- The same by Renyi accounting: ({at_least(claim.epsilon_spent_rdp)}, 1e-05).\n"
        f"- Planned: ({at_least(claim.epsilon_planned)}, 1e-05)."
    )


def test_everything_the_claim_admits_is_admitted(told):
    claim, plan = told
    entry = registry_entry(claim, plan, PUBLICATION)
    told_words = (
        claim.federation,
        claim.sentence,
        claim.attacked,
        claim.secagg,
        *claim.unprotected,
        *claim.not_covered,
    )
    for words in (*told_words, *claim.hashes.values(), *(line.reason for line in claim.claims)):
        assert words in text_of(entry)
    assert entry["deployment"]["deployment_model"]["actors"].splitlines()[1] == (
        "- coordinator: no bound; it receives each contribution before noise is added."
    )


def test_no_unprotected_quantity_is_said_in_words(told):
    claim, plan = told
    entry = registry_entry(msgspec.structs.replace(claim, unprotected=()), plan, PUBLICATION)
    assert entry["deployment"]["dp_variant"]["unprotected_quantities"] == "None."


def test_a_lifetime_without_a_bound_is_said_in_words(told):
    claim, plan = told
    lifetime = msgspec.structs.replace(claim.lifetime, epsilon_spent=None)
    entry = registry_entry(msgspec.structs.replace(claim, lifetime=lifetime), plan, PUBLICATION)
    assert "1 runs, this one included: no bound of (" in entry["deployment"]["accounting"]["composition"]


def test_what_nobody_said_is_left_out(told):
    entry = registry_entry(*told, PUBLICATION)
    paths = {path[-1] for path, _ in leaves(entry)}
    assert not {"data_product_sector", "sources", "justification", "preprocessing_and_hyperparameter_tuning"} & paths
    assert all(value not in {None, ""} for _, value in leaves(entry) if not isinstance(value, list))
    said = msgspec.structs.replace(PUBLICATION, sector="Healthcare", sources="https://example.org/model")
    more = registry_entry(*told, said)["deployment"]
    assert more["basic"]["data_product_sector"] == "Healthcare"
    assert more["administrative"]["sources"] == "https://example.org/model"


def test_a_claim_of_another_plan_is_refused(told):
    claim, plan = told
    other = msgspec.structs.replace(plan, rounds=plan.rounds + 1)
    message = f"claim of {claim.run}, must be of plan {other.hash[:16]}, found {plan.hash[:16]}"
    with pytest.raises(VerificationError, match=message):
        registry_entry(claim, other, PUBLICATION)


@pytest.mark.parametrize(
    ("change", "found"), [({"epsilon_spent": None}, "True and None"), ({"certifiable": False}, "False and 3.29")]
)
def test_a_claim_that_bounds_nothing_is_not_exported(told, change, found):
    claim, plan = told
    message = f"claim of {claim.run}, must be certifiable and of a finite epsilon, found {found}"
    with pytest.raises(RefusedError, match=message):
        registry_entry(msgspec.structs.replace(claim, **change), plan, PUBLICATION)


SAID = """
curators = ["Hospital A", "Hospital B"]
authors = ["A. Privacy Officer"]
intended_use = "Triage of referrals."
region = "Iceland"
published = 2026-03-01
"""


def test_a_publication_is_read_from_a_file(tmp_path):
    (tmp_path / "publication.toml").write_text(SAID)
    assert read_publication(tmp_path / "publication.toml") == PUBLICATION


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (SAID.replace("region", "regoin"), "unknown field `regoin`"),
        (SAID.replace("2026-03-01", '"soon"'), "Invalid RFC3339 encoded date"),
        (SAID + 'sector = "Farming"', "Invalid enum value 'Farming'"),
        ("curators = [", "Unclosed array|Invalid value"),
        ("\ud800", "can't decode"),
        (None, "No such file"),
    ],
    ids=["key", "date", "sector", "toml", "bytes", "nothing"],
)
def test_a_file_that_says_something_else_is_one_error(tmp_path, text, found):
    file = tmp_path / "publication.toml"
    if text is not None:
        file.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(InputError, match=f"publication.toml, must say who publishes what for, .*({found})") as caught:
        read_publication(file)
    assert caught.value.hint.startswith("it knows curators, authors, intended_use, region, published")
