"""Hosts with a network between them: a namespace for each, and a bridge that their cables end in."""

import os
import secrets
import subprocess
from contextlib import suppress


class ForbiddenError(Exception):
    """This machine does not permit what a network is made of."""


def ip(line):
    """Run a command of iproute2 that must work; its words, if it does not."""
    done = subprocess.run(line.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{line}: {(done.stderr or done.stdout).strip()}")


def attempt(line):
    """Run a command of iproute2 that not every machine permits.

    Raises:
        ForbiddenError: This one does not, in its own words.
    """
    try:
        ip(line)
    except (RuntimeError, FileNotFoundError) as error:
        raise ForbiddenError(f"not permitted here: {error}") from None


class Network:
    """A namespace "" for the coordinator, which the bridge is in, one for each site, and a cable from where tests run.

    All names have something random in them. Addresses are of 198.18.0.0/15, which is for tests of networks.
    """

    def __init__(self, names):
        number = secrets.randbelow(1 << 9)
        subnet, self.token = f"198.{18 + (number >> 8)}.{number & 255}", secrets.token_hex(3)
        self.coordinator, self._made = f"{subnet}.1", []
        try:
            self._add("")
            attempt(f"ip {self._on('')} link add name bridge type bridge")
            ip(f"ip {self._on('')} addr add {self.coordinator}/24 dev bridge")
            ip(f"ip {self._on('')} link set dev bridge up")
            for host, name in enumerate(names, start=2):
                self._add(name)
                self._connect(name, self.space(name), self._on(name), f"{subnet}.{host}")
            self._connect("test", os.getpid(), "", f"{subnet}.254")
        except BaseException:
            self.close()
            raise

    def space(self, name):
        """The namespace of a host."""
        return f"hubbub-{self.token}-{name or 'coordinator'}"

    def within(self, name):
        """What a command is run by to be on a host."""
        return ["ip", "netns", "exec", self.space(name)]

    def _on(self, name):
        return f"-n {self.space(name)}"

    def _add(self, name):
        attempt(f"ip netns add {self.space(name)}")
        self._made.append(self.space(name))
        ip(f"ip {self._on(name)} link set dev lo up")

    def _connect(self, name, where, there, address):
        """Lay a cable from the bridge to a namespace."""
        own = f"hb{self.token}"
        attempt(f"ip {self._on('')} link add name {name} type veth peer name {own} netns {where}")
        ip(f"ip {self._on('')} link set dev {name} master bridge up")
        ip(f"ip {there} addr add {address}/24 dev {own}")
        ip(f"ip {there} link set dev {own} up")

    def cut(self, *names):
        """Take cables down where they end in the bridge: their hosts hear nothing, and nobody tells them."""
        for name in names:
            ip(f"ip {self._on('')} link set dev {name} down")

    def mend(self, *names):
        """Put the cables back, and let the kernel disturb nothing on them."""
        for name in names:
            ip(f"ip {self._on('')} link set dev {name} up")
            for where, device in (("", name), (name, f"hb{self.token}")):
                with suppress(RuntimeError):  # there is nothing to take away
                    ip(f"tc {self._on(where)} qdisc del dev {device} root")

    def disturb(self, words, *names):
        """Have the kernel's netem disturb what goes to hosts and what comes from them."""
        for name in names:
            for where, device in (("", name), (name, f"hb{self.token}")):
                attempt(f"tc {self._on(where)} qdisc add dev {device} root netem {words}")

    def close(self):
        """Take everything away; a cable goes with its end."""
        for space in self._made:
            subprocess.run(["ip", "netns", "del", space], check=False)
