"""A federation with its coordinator and its sites: real homes, keys, memberships and folders; any carrier between them.

`Deployment` founds it, registers data, has a study approved; who is asked what then goes through the same bytes as
between hosts.
"""

import secrets
import shutil
import time

import msgspec

from hubbub.engine.commands import (
    Failed,
    OfferStudy,
    ReleaseRun,
    ResumeRun,
    ShowStatus,
    SubmitStudy,
    read_answer,
)
from hubbub.engine.enrol import admit
from hubbub.engine.home import open_log
from hubbub.governance import Federation, decide, new_keys, propose, read, terms_of
from hubbub.governance.acts import FoundFederation, ProposeStudy, RegisterDataset, ReleaseModel
from hubbub.governance.certificates import make_request, read_request
from hubbub.governance.enrolment import write_membership
from hubbub.governance.roles import packaged
from hubbub.participant.folder import SiteFolder
from hubbub.participant.host import Host
from hubbub.planning import make_plan
from hubbub.study import Lock, load_study
from hubbub.study.lock import write_lock

DAY = 86_400
STUDY = """
[study]
name = "away"
seed = 3
[data.x]
dtype = "float32"
shape = [4]
[data.y]
dtype = "int64"
classes = 2
[privacy]
unit = "client"
epsilon = 30.0
noise = "distributed"
retries = 4
[cohort]
colluding = 1
minimum = 4
dropouts = 0.2
[training]
algorithm = "fedavg"
rounds = 4
learning_rate = 0.5
batch_size = 8
"""
CODE = """
import os
from pathlib import Path
import numpy as np
from hubbub import Examples

def participants():
    raise RuntimeError("a site is itself")

def data(name):
    seed = int((Path(os.environ["HUBBUB_DATA"]) / "seed").read_text())
    x = np.random.default_rng(seed).normal(size=(20, 4)).astype(np.float32)
    return Examples(x, (x.sum(axis=1) > 0).astype(np.int64))

def test_data():
    x = np.random.default_rng(99).normal(size=(40, 4)).astype(np.float32)
    return Examples(x, (x.sum(axis=1) > 0).astype(np.int64), public=True)

def parameters():
    return {"w": np.zeros(4, dtype=np.float32)}

def train(parameters, examples, rng):
    rows = rng.permutation(len(examples.x))[:8]
    signs = 2 * examples.y[rows, None] - 1 - parameters["w"].sum()
    return {"w": parameters["w"] + (signs * examples.x[rows]).mean(axis=0).astype(np.float32)}

def evaluate(parameters, examples):
    return {"accuracy": ((examples.x @ parameters["w"] > 0) == examples.y).mean()}
"""


def plant(folder, _name, number):
    """Give a site its records: a seed that they follow from."""
    (folder / "seed").write_text(str(number))


class Deployment:
    """Everybody's folders, before anybody has started a process."""

    def __init__(self, root, names="abcde", **options):
        """`options`: study, code (texts), epsilon, unit, grant (of every dataset), fill (makes records), address."""
        defaults = {"study": STUDY, "code": CODE, "epsilon": 60.0, "unit": "client", "grant": "filter"}
        made = defaults | {"fill": plant, "address": "localhost:1"} | options
        self.grant, self.fill, address = made["grant"], made["fill"], made["address"]
        self.root, self.names, self.address = root, tuple(names), address
        self.home, self._log = root / "coordinator", None
        self.keys = {
            **{name: new_keys(name, organisation=f"clinic-{name}", role="node") for name in self.names},
            **{
                f"owner-{name}": new_keys(f"owner-{name}", organisation=f"clinic-{name}", role="data-owner")
                for name in self.names
            },
            "officer": new_keys("officer", organisation="board", role="privacy-officer"),
            "operator": new_keys("operator", organisation="it", role="operator"),
            "scientist": new_keys("scientist", organisation="lab", role="data-scientist"),
        }
        self.study_folder = root / "study"
        self.study_folder.mkdir(parents=True)
        (self.study_folder / "study.toml").write_text(made["study"])
        (self.study_folder / "study.py").write_text(made["code"])
        self._found()
        self.datasets = {name: self._register(name, made["epsilon"], made["unit"]) for name in self.names}
        for number, name in enumerate(self.names):
            self._make_site(name, number)
        shutil.copytree(self.study_folder, self.home / "studies" / "away")

    # --- acts, as if everybody sat at the coordinator's machine

    def record(self, make):
        """Record one signed act, made at this second."""
        self._log = self._log or open_log(self.home)
        now = int(time.time())
        envelope = make(now)
        self._log.append(lambda: [self._log.fold(Federation).event(envelope, now)])
        return self._log.fold(Federation), read(envelope)

    def let_go(self):
        """Close the log that acts are recorded in, until the next one."""
        if self._log is not None:
            self._log.close()
        self._log = None

    def propose(self, who, act, days=30):
        key, federation = self.keys[who].identity, self.federation_id()
        return self.record(lambda now: propose(act, key, at=now, expires=now + days * DAY, federation=federation))[1].id

    def federation_id(self):
        """The id of the federation; empty until it is founded."""
        self._log = self._log or open_log(self.home)
        return self._log.fold(Federation).id

    def approve(self, case, *who):
        for name in who:
            self.record(lambda now, name=name: decide(case, self.keys[name].identity, at=now, expires=now + 30 * DAY))

    def _found(self):
        cards = tuple(keys.card for keys in self.keys.values())
        case = self.propose("operator", FoundFederation(name="heart", cards=cards, roles=packaged()[1]))
        self.approve(case, *(name for name in self.keys if name != "operator"))

    def _register(self, name, epsilon, unit):
        dataset = secrets.token_hex(16)
        act = RegisterDataset(
            dataset=dataset, participant=name, organisation=f"clinic-{name}", unit=unit, purposes=("research",),
            retention="2040-12-31", epsilon=epsilon, delta=1e-5, grant=self.grant,
        )  # fmt: skip
        act = msgspec.convert(msgspec.to_builtins(act), RegisterDataset)
        self.approve(self.propose(f"owner-{name}", act), "officer")
        return dataset

    def _make_site(self, name, number):
        site = self.site(name)
        (site / "studies").mkdir(parents=True)
        (site / "data").mkdir()
        self.fill(site / "data", name, number)
        self.keys[name].save(site / "node.key")
        self.admit(name, site / "node.membership")
        (site / "site.toml").write_text(
            '[site]\nkey = "node.key"\nmembership = "node.membership"\ndata = "data"\n'
            '[policy]\npurposes = ["research"]\n'
        )
        shutil.copytree(self.study_folder, site / "studies" / "away")

    def admit(self, name, path):
        """Have the operator answer a holder's request with a membership."""
        request = read_request(make_request(self.keys[name]))
        write_membership(admit(self.home, [request], address=self.address, now=int(time.time()))[name], path)
        return path

    def site(self, name):
        return self.root / f"site-{name}"

    def host(self, name):
        return Host(SiteFolder(self.site(name)), lambda: int(time.time()))

    # --- a study, with answers of a coordinator

    def approve_study(self, command):
        """Offer, propose and approve the study; what is to be submitted."""
        study = load_study(self.study_folder)
        hashes = {"study_hash": study.settings.approved_hash(), "code_hash": study.code_hash}
        offers = {offer.participant: offer for offer in self.ask(command, "scientist", OfferStudy(**hashes)).offers}
        assert not any(offer.refused for offer in offers.values()), offers
        (parameters,) = {offer.parameters for offer in offers.values()}
        slots = {name: offers[name].slots for name in self.names}
        lock = Lock(
            format=1, code_hash=hashes["code_hash"], schema_hash=study.schema_hash, parameters=parameters, slots=slots
        )
        write_lock(self.study_folder / "study.lock", lock)
        self.plan = make_plan(study.with_lock(lock))
        act = ProposeStudy(
            study=self.plan.study, plan_hash=self.plan.hash, **hashes,
            data={self.datasets[name]: offers[name].data_commitment for name in self.names},
            purpose=study.settings.study.purpose, terms=terms_of(study.settings, minimum=self.plan.minimum),
        )  # fmt: skip
        self.approve(self.propose("scientist", act), *(f"owner-{name}" for name in self.names), "officer")
        return SubmitStudy(plan_hash=self.plan.hash, lock=(self.study_folder / "study.lock").read_bytes(), **hashes)

    def ask(self, command, name, order):
        """Ask a coordinator something; what it refuses is raised."""
        answer = read_answer(command(name, order.encode()))
        if isinstance(answer, Failed):
            raise answer.error()
        return answer

    def status(self, command, run):
        return next(one for one in self.ask(command, "operator", ShowStatus()).runs if one.run == run)

    def ended(self, command, run, seconds=120):
        """Wait until a run does not go on; its status."""
        until = time.monotonic() + seconds
        while (told := self.status(command, run)).state == "running":
            assert time.monotonic() < until, told
            time.sleep(0.05)
        return told

    def resume(self, command, run):
        return self.ask(command, "operator", ResumeRun(run))

    def release(self, command, run):
        """Propose, approve and make a release; the bundle."""
        told = self.status(command, run)
        act = ReleaseModel(run=run, model_hash=told.model_hash, claim_hash=told.claim_hash)
        self.approve(self.propose("scientist", act), *(f"owner-{name}" for name in self.names), "officer")
        self.ask(command, "operator", ReleaseRun(run))
        return self.home / "runs" / run / "bundle"
