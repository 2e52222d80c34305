"""A certificate that nobody trusts who was not told of it."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.lab.tools import need


class Certificate(NamedTuple):
    """A certificate and its key. The certificate is its own authority."""

    certificate: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        """What a server with it speaks."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self)
        return context

    def client(self) -> ssl.SSLContext:
        """What a client speaks that trusts it alone."""
        return ssl.create_default_context(cafile=str(self.certificate))


def self_signed(folder: Path, *names: str) -> Certificate:
    """A new one for these names, as in `DNS:localhost`, in a folder."""
    [openssl] = need("openssl")
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", f"subjectAltName={','.join(names)}"]
    command += ["-keyout", str(made.key), "-out", str(made.certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return made
