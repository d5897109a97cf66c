"""A claim as an entry of the OpenDP registry of differential privacy deployments, tier 3.

Whoever publishes says who they are and what for; everything else follows from the claim and its plan. What
neither says is left out.
"""

import tomllib
from datetime import date
from pathlib import Path
from typing import Any, Literal

import msgspec

from hubbub.accounting.shown import at_least
from hubbub.errors import InputError, RefusedError, VerificationError
from hubbub.planning import Plan
from hubbub.release.claim import ReleaseClaim

Entry = dict[str, Any]
"""A document of the registry's schema."""

NOISE = {
    "server": "The coordinator adds the noise to every sum.",
    "distributed": "Every participant adds a share of the noise; a sum of the fewest survivors holds enough.",
    "local": "Every participant adds the full noise before anything leaves it.",
}


class Publication(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a claim cannot know about a release; one line of text each.

    Args:
        curators: Who publishes the model.
        authors: Who answers for the entry.
        intended_use: What the model is for.
        region: Which region the data describe, or whose laws apply.
        published: Day of the release.
        sector: Industry or domain, of the registry's list.
        sources: Where to read more.
    """

    curators: tuple[str, ...]
    authors: tuple[str, ...]
    intended_use: str
    region: str
    published: date
    sector: Literal["Technology", "Healthcare", "Education", "Government", "Energy", "Finance"] | None = None
    sources: str | None = None


def read_publication(path: Path) -> Publication:
    """Read a publication from a TOML file.

    Raises:
        InputError: The file cannot be read, or a key or value is missing, wrong or unknown.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_bytes().decode()), Publication)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}, must say who publishes what for, {error}; nothing exported",
            hint=f"it knows {', '.join(Publication.__struct_fields__)}",
        ) from None


def registry_entry(claim: ReleaseClaim, plan: Plan, publication: Publication) -> Entry:
    """Make the registry's entry for a released model, as a draft.

    Raises:
        VerificationError: The claim is of another plan.
        RefusedError: The claim bounds nothing that an entry could state.
        InputError: The publication has an empty text or one of several lines.

    Source:
        opendp/deployments-registry-data, schemas/deployments-schema.yaml.
    """
    if claim.hashes["plan"] != plan.hash:
        raise VerificationError(
            f"claim of {claim.run}, must be of plan {plan.hash[:16]}, found {claim.hashes['plan'][:16]}",
            hint="give the plan.json that lies beside claim.json",
        )
    if not claim.certifiable or claim.epsilon_spent is None:
        raise RefusedError(
            f"claim of {claim.run}, must be certifiable and of a finite epsilon, found {claim.certifiable} and "
            f"{claim.epsilon_spent}; nothing exported",
            hint='train with noise, with noise_source = "os" and without [speed] secagg = "elide"',
        )
    _check(publication)
    administrative: Entry = {"registry_authors": list(publication.authors), "notes": _notes(claim)}
    if publication.sources is not None:
        administrative["sources"] = publication.sources
    return {
        "url_slug": claim.run,
        "status": "Draft",
        "tier": 3,
        "deployment": {
            "basic": _basic(claim, plan, publication),
            "dp_variant": {
                "variant_name": "Approximate DP",
                "data_domain": _data_domain(plan),
                "unprotected_quantities": _lines(claim.unprotected) if claim.unprotected else "None.",
            },
            "privacy_loss": _privacy_loss(claim),
            "deployment_model": _deployment_model(claim, plan),
            "accounting": _accounting(claim, plan),
            "implementation": {"mechanisms": _mechanisms(claim, plan)},
            "administrative": administrative,
        },
    }


def registry_text(entry: Entry) -> str:
    """Write an entry as JSON that reads the same as YAML, which is what the registry stores."""
    return msgspec.json.format(msgspec.json.encode(entry), indent=2).decode() + "\n"


def _check(publication: Publication) -> None:
    for field, value in msgspec.structs.asdict(publication).items():
        texts = value if isinstance(value, tuple) else (value,)
        if not texts:
            raise InputError(f"publication.{field}, must name somebody, found nobody", hint=f'{field} = ["Example"]')
        for text in texts:
            # YAML cannot hold most characters that are not printable, not even in quotes.
            if isinstance(text, str) and not (text.strip() and text.isprintable()):
                raise InputError(
                    f"publication.{field}, must be one line of text, found {text!r}", hint=f'{field} = "Example"'
                )


def _lines(texts: tuple[str, ...] | list[str]) -> str:
    """A list in the registry's markdown."""
    return "\n".join(f"- {text}" for text in texts)


def _bound(epsilon: float | None, delta: float | None) -> str:
    return "no bound" if epsilon is None or delta is None else f"({at_least(epsilon)}, {delta!r})"


def _basic(claim: ReleaseClaim, plan: Plan, publication: Publication) -> Entry:
    basic: Entry = {
        "name": claim.study,
        "data_curators": list(publication.curators),
        "intended_use": publication.intended_use,
        "data_product_type": "Machine learning model",
        "data_product_region": publication.region,
        "description": (
            f"A model of {plan.mechanism.dimension} parameters, trained in {claim.rounds} federated rounds with "
            f"{len(plan.slots)} participants. {claim.sentence}"
        ),
        "publication_date": publication.published.isoformat(),
    }
    if publication.sector is not None:
        basic["data_product_sector"] = publication.sector
    return basic


def _data_domain(plan: Plan) -> str:
    return (
        f"Tables of {len(plan.slots)} participants, of {min(plan.slots.values())} to {max(plan.slots.values())} slots "
        f"each and {sum(plan.slots.values())} in all; a slot holds one record or none. Numbers of slots are public."
    )


def _privacy_loss(claim: ReleaseClaim) -> Entry:
    unit = "record of one participant" if claim.unit == "example" else "participant with all its records"
    spent = f"{_bound(claim.epsilon_spent, claim.delta)} by {claim.accountant}"
    return {
        "privacy_unit": "Record-level" if claim.unit == "example" else "Participant-level",
        "privacy_unit_details": (
            f"Relation: {claim.relation}. Adjacent datasets differ in one {unit}, whose contribution becomes the zero "
            f"vector while its slots stay. Not covered:\n{_lines(claim.not_covered)}"
        ),
        # As text: YAML reads 1e-06 as text anyway, and the schema allows it for delta.
        "privacy_parameters": {"epsilon": claim.epsilon, "delta": repr(claim.delta)},
        "privacy_parameters_details": _lines(
            [
                f"For the {claim.attempts_charged} round attempts that were charged, retries included: {spent}.",
                f"The same by Renyi accounting: {_bound(claim.epsilon_spent_rdp, claim.delta)}.",
                f"Planned: {_bound(claim.epsilon_planned, claim.delta)}.",
            ]
        ),
    }


def _deployment_model(claim: ReleaseClaim, plan: Plan) -> Entry:
    planned = [f"{line.adversary}: {_bound(line.epsilon, line.delta)}; {line.reason}." for line in claim.claims]
    return {
        "model_name": "Federated",
        "model_name_details": f"{NOISE[plan.mechanism.noise]} Secure aggregation: {claim.secagg}.",
        "actors": "What holds against whom, for the whole plan; no bound means that the actor must be trusted.\n"
        + _lines(planned),
        "release_type": "One release",
        "release_type_details": (
            f"One model; the models after each of the {claim.rounds} rounds are covered by the same bound. "
            f"{_lifetime(claim)}"
        ),
        "data_source_type": "Static",
        "data_source_type_details": (
            f"Each of {len(claim.data_commitments)} participants committed to its data before the first round."
        ),
        "access_type": "Non-interactive",
    }


def _lifetime(claim: ReleaseClaim) -> str:
    line = claim.lifetime
    return (
        f"The dataset that has spent most was used by {line.runs} runs, this one included: "
        f"{_bound(line.epsilon_spent, line.delta)} of {_bound(line.epsilon_budget, line.delta)} ever allowed."
    )


def _accounting(claim: ReleaseClaim, plan: Plan) -> Entry:
    event = msgspec.json.encode(claim.dp_event).decode()
    return {
        "post_processing": f"Released sums are divided by the public number {plan.expected_batch:g}.",
        "composition": (
            f"{claim.accountant}: {claim.attempts_charged} times `{event}`, with an allowance for integer noise. "
            f"{_lifetime(claim)}"
        ),
    }


def _mechanisms(claim: ReleaseClaim, plan: Plan) -> str:
    mechanism = plan.mechanism
    return _lines(
        [
            f"Gaussian mechanism, noise multiplier {claim.noise_multiplier:g}. {NOISE[mechanism.noise]}",
            f"Clipped to L2 norm {mechanism.max_norm:g}, multiplied by {mechanism.scale:g}, rounded to integers.",
            f"Whoever adds noise draws a discrete Gaussian of standard deviation {mechanism.sigma} per number.",
            "Floating point: noise is drawn exactly, on integers, from the operating system's randomness.",
            f"Software: {', '.join(f'{name} {version}' for name, version in sorted(claim.versions.items()))}.",
        ]
    )


def _notes(claim: ReleaseClaim) -> str:
    hashes = [f"SHA-256 of {name}: {digest}" for name, digest in sorted(claim.hashes.items())]
    return _lines([f"{claim.federation}.", f"Attacks on the model: {claim.attacked}.", *hashes])
