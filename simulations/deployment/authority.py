"""Certificates and keys that authenticate an organiser's server and participants' nodes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import NameOID
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import sign_message, verify_signature

from pudica.clients.themis.submissions import sign_text
from pudica.models.errors import RequestError
from pudica.models.files import is_accessible_by_others, write_atomically
from pudica.simulations.programs.calling import LOOPBACK
from pudica.strategies.core.registry import key_fingerprint

AUTHORITY_DAYS, SERVER_DAYS = 3650, 365
SECRET = 0o600
_KEY_USAGE = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    crl_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


def create_authority(certificate: Path, key: Path) -> None:
    """Create the organiser's own certificate authority; its key is for the organiser alone."""
    private = generate_private_key(SECP384R1())
    name = _build_name("Pudica organiser")
    builder = _start_certificate(name, name, private.public_key(), AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_KEY_USAGE, critical=True)
    write_atomically(key, _encode_pem(private), SECRET)
    signed = builder.sign(private, hashes.SHA384())
    write_atomically(certificate, signed.public_bytes(Encoding.PEM))


def create_server_certificate(
    certificate: Path, key: Path, host: str, authority: Path, authority_key: Path
) -> None:
    """Create a key and certificate for a server reached at ``host`` and from this machine."""
    issuer = x509.load_pem_x509_certificate(authority.read_bytes())
    signer = load_pem_private_key(authority_key.read_bytes(), None)
    assert isinstance(signer, EllipticCurvePrivateKey)
    private = generate_private_key(SECP384R1())
    names = dict.fromkeys([host, "localhost", LOOPBACK])
    builder = _start_certificate(
        _build_name(host), issuer.subject, private.public_key(), SERVER_DAYS
    )
    builder = builder.add_extension(
        x509.SubjectAlternativeName([_build_alternative_name(name) for name in names]),
        critical=False,
    ).add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    )
    write_atomically(key, _encode_pem(private), SECRET)
    signed = builder.sign(signer, hashes.SHA384())
    write_atomically(certificate, signed.public_bytes(Encoding.PEM))


def sign(key: Path, text: bytes) -> bytes:
    """Sign a text with an authority's key: ECDSA with SHA-256, as ``openssl dgst`` does."""
    signer = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(signer, EllipticCurvePrivateKey)
    return sign_message(signer, text)


def is_valid_signature(certificate: Path, text: bytes, signature: bytes) -> bool:
    """Return whether the authority of a certificate signed a text.

    Raises
    ------
    RequestError
        If the certificate can't be read, or is not valid today.
    """
    check_certificate(certificate)
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    return isinstance(key, EllipticCurvePublicKey) and verify_signature(key, text, signature)


def check_certificate(path: Path) -> None:
    """Check that a certificate can be read and is valid today.

    Raises
    ------
    RequestError
        If it is not.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise RequestError(f"certificate: can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"certificate: {path} is not a certificate (PEM)") from error
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= datetime.now(UTC) <= ends:
        raise RequestError(
            f"certificate: {path} is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} "
            f"UTC, and this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M}; set the "
            "clock, or ask the organiser for a new invitation"
        )


def create_node_key(key: Path, public: Path, comment: str) -> None:
    """Create the key by which a node identifies itself, and its public half."""
    private = generate_private_key(SECP384R1())
    encoded = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write_atomically(key, encoded, SECRET)
    half = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_atomically(public, half + f" {comment}\n".encode())


def build_signed_headers(key: Path) -> dict[str, str]:
    """Return the HTTP headers by which a node identifies itself, as Flower's nodes send them.

    Parameters
    ----------
    key : Path
        The node's private key.

    Raises
    ------
    RequestError
        If it can't be read, or is not a node's private key.
    """
    with _explain_read_errors(key, "private"):
        private = load_ssh_private_key(key.read_bytes(), None)
    if not isinstance(private, EllipticCurvePrivateKey):
        raise RequestError(f"{key} is of another kind than `pudica deploy node` makes")
    stamp = datetime.now(UTC).isoformat()
    signed = sign_text(private, stamp)
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(signed["public_key"].encode()).decode(),
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_SIGNATURE_HEADER: signed["signature"],
    }


def compute_fingerprint(public: Path) -> str:
    """Return the fingerprint of a node's public key.

    Raises
    ------
    RequestError
        If there is no such file, or it does not hold a node's public key.
    """
    with _explain_read_errors(public, "public"):
        key = load_ssh_public_key(public.read_bytes())
    if not isinstance(key, EllipticCurvePublicKey):
        raise RequestError(f"{public} is of another kind than `pudica deploy node` makes")
    return key_fingerprint(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


@contextmanager
def _explain_read_errors(path: Path, half: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(f"can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"{path} holds no {half} key (OpenSSH)") from error


def check_secret(path: Path) -> None:
    """Check that nobody else can read a secret.

    Raises
    ------
    RequestError
        If it does not exist, or others may read it.
    """
    if not path.is_file():
        raise RequestError(f"there is no file {path}")
    if is_accessible_by_others(path):
        raise RequestError(f"{path} may be read by others: chmod 600 {path}")


def _build_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _build_alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _start_certificate(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _encode_pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
