"""Certificates of the TLS tests, made by openssl: good ones and each kind of bad one."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from servers.process import binary, temporary_folder

_CA_CONFIG = """
[ca]
default_ca = own
[own]
dir = {folder}
database = $dir/index.txt
serial = $dir/serial
new_certs_dir = $dir
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
"""


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, as PEM files."""

    cert: Path
    key: Path


class Certificates:
    """An authority, server certificates of each kind, and one for a client.

    Attributes:
        folder: Where the files are.
        ca: The certificate of the authority.
        other_ca: One that signed nothing.
        client: What a client shows.
    """

    def __init__(self) -> None:
        """Make all of them; takes a few hundred milliseconds."""
        self.folder = temporary_folder("tls")
        # Servers run as another user read them too.
        self.folder.chmod(0o755)
        (self.folder / "index.txt").touch()
        (self.folder / "serial").write_text("1000\n")
        self._config = self.folder / "ca.cnf"
        self._config.write_text(_CA_CONFIG.format(folder=self.folder))
        self.ca = self._authority("ca")
        self.other_ca = self._authority("other-ca")
        here = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"
        self._servers = {
            "good": self._signed("good", "localhost", here),
            "wrong-host": self._signed("wrong-host", "db.example", "subjectAltName=DNS:db.example"),
            "expired": self._signed("expired", "localhost", here, expired=True),
            "self-signed": self._self_signed("self-signed", here),
        }
        usage = "extendedKeyUsage=clientAuth"
        self.client = self._signed("client", "worker", usage)
        self.foreign_client = self._self_signed("foreign-client", usage)

    def server(self, kind: str) -> Pair:
        """Return a server's certificate: good, wrong-host, expired or self-signed."""
        return self._servers[kind]

    def copy_for(self, kind: str, folder: Path, uid: int, gid: int) -> Pair:
        """Copy a pair for a server that wants the key to be its user's alone."""
        pair = self._servers[kind]
        copies = []
        for file in (pair.cert, pair.key):
            copy = folder / file.name
            shutil.copyfile(file, copy)
            os.chown(copy, uid, gid)
            copy.chmod(0o600)
            copies.append(copy)
        return Pair(*copies)

    def _authority(self, name: str) -> Path:
        pair = self._files(name)
        self._key(pair.key)
        self._run(
            *("req", "-x509", "-new", "-key", pair.key, "-out", pair.cert, "-days", "30"),
            *("-subj", f"/CN=eventbus {name}"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )
        return pair.cert

    def _self_signed(self, name: str, extension: str) -> Pair:
        pair = self._files(name)
        self._key(pair.key)
        self._run(
            *("req", "-x509", "-new", "-key", pair.key, "-out", pair.cert, "-days", "30"),
            *("-subj", f"/CN={name}", "-addext", extension),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
        return pair

    def _signed(self, name: str, host: str, extension: str, *, expired: bool = False) -> Pair:
        pair = self._files(name)
        self._key(pair.key)
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(f"basicConstraints=critical,CA:FALSE\n{extension}\n")
        self._run("req", "-new", "-key", pair.key, "-out", request, "-subj", f"/CN={host}")
        span = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"]
        self._run(
            *("ca", "-batch", "-notext", "-config", self._config, "-in", request),
            *("-out", pair.cert, "-cert", self.ca, "-keyfile", self.ca.with_suffix(".key")),
            *("-extfile", extensions, *(span if expired else ["-days", "30"])),
        )
        return pair

    def _files(self, name: str) -> Pair:
        return Pair(self.folder / f"{name}.crt", self.folder / f"{name}.key")

    def _key(self, path: Path) -> None:
        self._run(
            "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path
        )
        path.chmod(0o644)

    def _run(self, *words: str | Path) -> None:
        command = [binary("openssl"), *(str(word) for word in words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"openssl {words[0]} failed:\n{done.stderr}")


@cache
def certificates() -> Certificates:
    """Return the certificates of this run."""
    return Certificates()
