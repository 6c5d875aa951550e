"""Bytes in and out: the S3 client, and results written so that a reader never sees half a file."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
    SSOError,
    TokenRetrievalError,
)

from scanner.errors import EXIT_PREFLIGHT, EXIT_USAGE, UserError
from scanner.uris import foreign_scheme, is_s3, join, local_path, split_s3

if TYPE_CHECKING:  # boto3 and pyarrow.fs take half a second to import: a scan of a local folder needs neither
    from pyarrow.fs import FileSystem

#: What boto3 raises. ValueError: AWS_ENDPOINT_URL is not a URL.
S3_ERRORS = (BotoCoreError, ClientError, ValueError)

#: A body that broke off. The client repeats requests, but not what fails after an answer has begun.
BROKEN_BODY = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
BODY_TRIES = 5

READ, LIST, WRITE, DELETE = "s3:GetObject", "s3:ListBucket", "s3:PutObject", "s3:DeleteObject"
_VERB = {READ: "read", LIST: "listed", WRITE: "written", DELETE: "removed"}

_GONE = {"404", "NoSuchKey", "NotFound"}
_DENIED = {"403", "AccessDenied", "Forbidden", "AllAccessDisabled", "AccountProblem"}
_BAD_CREDENTIALS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "TokenRefreshRequired", "RequestExpired", "InvalidClientTokenId",
}  # fmt: skip
_WRONG_CLOCK = "RequestTimeTooSkewed"
_REFUSED_HEAD = {"400", "403"}
_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
_WRONG_REGION = {
    "301",
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}


# --- S3 ---------------------------------------------------------------------------------------------------


@functools.cache
def s3_client(patient: bool = True) -> Any:
    """The S3 client of this process: standard AWS variables, AWS_ENDPOINT_URL; safe to share between threads.

    patient: retry for about half a minute, as a long run wants it; False answers a preflight in seconds.
    """
    from boto3.session import Session
    from botocore.config import Config

    session = Session()  # not boto3's default session, which threads may not create together
    settings: dict[str, Any] = {
        "retries": {"mode": "standard", "max_attempts": 8 if patient else 4},
        "connect_timeout": 10 if patient else 5,
        "read_timeout": 60 if patient else 15,
        "max_pool_connections": 64,
        "tcp_keepalive": True,
    }
    client = session.client("s3", config=Config(**settings))
    if _is_aws(client):
        return client
    # Servers that imitate S3 seldom have a DNS name per bucket, and some refuse boto3's checksums.
    settings |= {
        "s3": {"addressing_style": "path"},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    return session.client("s3", config=Config(**settings))


# A forked child must not share the parent's sockets.
os.register_at_fork(after_in_child=s3_client.cache_clear)


def _is_aws(client: Any) -> bool:
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def s3_code(error: BaseException) -> str:
    """The S3 error code (`NoSuchKey`, `404`, ...), or "" for an error that is not an answer of the server."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def is_gone(error: BaseException) -> bool:
    return s3_code(error) in _GONE | {"NoSuchBucket"}


class CredentialsFailed(UserError):
    """The credentials have expired, were refused or are not there, or the clock by which requests are signed is wrong.

    All of which says nothing of what was asked for.
    """


def raise_if_credentials_failed(error: BaseException, uri: str, permission: str) -> None:
    """Raise CredentialsFailed, with the fix, where an error of S3 means that."""
    if s3_code(error) in _BAD_CREDENTIALS | {_WRONG_CLOCK} or isinstance(error, _NO_CREDENTIALS):
        raise CredentialsFailed(s3_problem(error, uri, permission), EXIT_PREFLIGHT) from None


def s3_problem(error: BaseException, uri: str, permission: str) -> str:
    """One sentence on why S3 failed, and the fix. Says nothing that the server wrote, so no credential leaks.

    permission: READ, LIST, WRITE or DELETE, what was being tried.
    """
    return f"{uri} could not be {_VERB[permission]}: {_reason(error, split_s3(uri)[0], permission)}"


def _reason(error: BaseException, bucket: str, permission: str) -> str:
    code = s3_code(error)
    if code in _DENIED:
        return f"AccessDenied. deepsweep needs {permission} on {bucket}."
    if code == "NoSuchBucket" or (code in _GONE and permission != READ):
        return f"there is no bucket {bucket}. Check its name, and AWS_ENDPOINT_URL if it is not at AWS."
    if code in _GONE:
        return "it does not exist (any more)."
    if code in _BAD_CREDENTIALS:
        return f"{code}. The server refused the AWS credentials: renew them, or choose others with AWS_PROFILE."
    if code == _WRONG_CLOCK:
        # On a cluster each node has a clock of its own.
        return f"{code}. Set this machine's clock ({platform.node()}): the server refuses requests of another time."
    if code in _WRONG_REGION:
        return f"{code}. Set AWS_DEFAULT_REGION to the region of {bucket}."
    if code == "InvalidObjectState":
        return "it is in cold storage. Restore it from Glacier first."
    if code == "PreconditionFailed" or code == "412":
        return "it changed during the scan."
    if code:
        return f"the server answered {code}."
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "no AWS credentials found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
    if isinstance(error, CredentialRetrievalError):
        return "the AWS credentials could not be renewed. Check where this machine gets them from."
    if isinstance(error, ProfileNotFound):
        return "AWS_PROFILE names a profile that is not in the AWS config. Correct it, or unset it."
    if isinstance(error, SSOError | TokenRetrievalError):
        return "the AWS login has expired. Run `aws sso login`."
    if isinstance(error, ParamValidationError):
        return f"{bucket!r} is not a valid bucket name."
    if isinstance(error, IncompleteReadError | ResponseStreamingError):
        return "the connection broke, time and again. Check the network."
    if isinstance(error, ConnectionError | ConnectionClosedError | HTTPClientError):
        host = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url", ""))).netloc.rpartition("@")[2]
        return f"{host or 'the server'} did not answer. Check AWS_ENDPOINT_URL and the network."
    if isinstance(error, ValueError):
        return "AWS_ENDPOINT_URL is not a URL. Write it as https://host:port."
    return f"{type(error).__name__}. Check the AWS settings of this machine."


# --- results ----------------------------------------------------------------------------------------------


def put_bytes(uri_or_path: str, data: bytes) -> None:
    """Write a whole file at once: a reader sees the old bytes or the new ones, and a crash leaves no part.

    Raises OSError or one of S3_ERRORS.
    """
    if is_s3(uri_or_path):
        bucket, key = split_s3(uri_or_path)
        s3_client().put_object(Bucket=bucket, Key=key, Body=data)
        return
    target = local_path(uri_or_path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The leading dot hides a file left by a crash from Arrow's datasets.
    temporary = target.with_name(f".{target.name[:80]}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(target.parent)


def _fsync_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Network file systems that can't do this say EINVAL."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def get_bytes(uri_or_path: str) -> bytes:
    """The whole file. Raises FileNotFoundError when it is not there, locally and on S3 alike."""
    if not is_s3(uri_or_path):
        return local_path(uri_or_path).read_bytes()
    try:
        return get_object_bytes(uri_or_path)
    except ClientError as error:
        if is_gone(error):
            raise FileNotFoundError(errno.ENOENT, "no such object", uri_or_path) from None
        raise


def get_object_bytes(uri: str, **request: str) -> bytes:
    """An object's bytes; a body that breaks off is asked for again. Raises S3_ERRORS.

    request: more of what get_object takes, such as Range.
    """
    bucket, key = split_s3(uri)
    for tries_left in reversed(range(BODY_TRIES)):
        try:
            return s3_client().get_object(Bucket=bucket, Key=key, **request)["Body"].read()
        except BROKEN_BODY:
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def head_object(uri: str, **request: str) -> dict[str, Any]:
    """An object's `ETag` and `ContentLength`. Raises S3_ERRORS, with the code that a GET is answered.

    request: more of what head_object and get_object take, such as IfMatch.
    """
    bucket, key = split_s3(uri)
    client = s3_client()
    try:
        return client.head_object(Bucket=bucket, Key=key, **request)
    except ClientError as error:
        if s3_code(error) not in _REFUSED_HEAD:
            raise
    # An answer to HEAD has no body that says why: expired credentials, or no right to this object.
    answer = client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0", **request)
    answer["Body"].close()
    whole = answer.get("ContentRange", "").rpartition("/")[2]  # missing where the server ignores ranges
    return answer | ({"ContentLength": int(whole)} if whole.isdigit() else {})


def list_results(results: str, prefix: str = "", suffix: str = "") -> list[str]:
    """Paths or URIs of all files below RESULTS/prefix that end in suffix, sorted; [] when there are none.

    prefix: relative to RESULTS, such as "runs/". Unfinished files (see `put_bytes`) are left out.
    Raises UserError (exit code 4) for a folder that can't be read: what is in it would be missing without a word.
    """
    if is_s3(results):
        found = [uri for uri, _ in _s3_sizes(results, prefix)]
    else:
        base = local_path(results)
        folders = os.walk(base / prefix.rpartition("/")[0], onerror=_refuse_unless_gone)
        files = (Path(where, name) for where, _, names in folders for name in names)
        found = [
            str(file)
            for file in files
            if not file.name.startswith(".") and file.relative_to(base).as_posix().startswith(prefix)
        ]
    return sorted(uri for uri in found if uri.endswith(suffix))


def _refuse_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise unreadable(error.filename, error)


def unreadable(path: str, error: OSError) -> UserError:
    """What to tell of a file or folder of RESULTS that is there and can't be read."""
    return UserError(f"{path} can't be read: {error.strerror}. Mend that.", EXIT_PREFLIGHT)


def file_sizes(results: str, prefix: str, suffix: str) -> dict[str, int]:
    """Bytes of each file that list_results lists, in its order."""
    if is_s3(results):
        return dict(sorted((uri, size) for uri, size in _s3_sizes(results, prefix) if uri.endswith(suffix)))
    sizes = {}
    for path in list_results(results, prefix, suffix):
        with contextlib.suppress(FileNotFoundError):
            sizes[path] = Path(path).stat().st_size
    return sizes


def _s3_sizes(results: str, prefix: str) -> Iterator[tuple[str, int]]:
    """(URI, bytes) of every object below RESULTS/prefix."""
    bucket, _ = split_s3(results)
    pages = (
        s3_client()
        .get_paginator("list_objects_v2")
        .paginate(Bucket=bucket, Prefix=split_s3(join(results, prefix))[1].lstrip("/"))
    )
    for page in pages:
        for entry in page.get("Contents", ()):
            yield f"s3://{bucket}/{entry['Key']}", entry["Size"]


def delete_file(uri_or_path: str) -> None:
    """Remove a file; one that is gone already is fine. Raises OSError or one of S3_ERRORS."""
    if is_s3(uri_or_path):
        bucket, key = split_s3(uri_or_path)
        s3_client().delete_object(Bucket=bucket, Key=key)
    else:
        local_path(uri_or_path).unlink(missing_ok=True)


def ensure_writable(results: str) -> None:
    """Try RESULTS with a probe file, since permission bits don't bind root and S3 policies can't be read.

    Raises UserError with the fix.
    """
    if is_s3(results):
        _ensure_bucket_writable(results)
        return
    if scheme := foreign_scheme(results):
        raise UserError(f"RESULTS can't be written to {scheme}://. Give a folder, or s3://bucket/prefix.")
    folder = local_path(results)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, probe = tempfile.mkstemp(prefix=".deepsweep-probe-", dir=folder)
        os.close(handle)
        Path(probe).unlink()
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{results} is a file, or lies below one. --out must be a folder.") from None
    except OSError as error:
        raise UserError(
            f"{results} can't be written to: {error.strerror}. Choose another folder with --out.",
            EXIT_PREFLIGHT,
        ) from None


def _ensure_bucket_writable(results: str) -> None:
    bucket, _ = split_s3(results)
    if not bucket or "@" in bucket:
        raise UserError("RESULTS on S3 are written as s3://bucket/prefix, without credentials.")
    key = split_s3(join(results, ".deepsweep-probe"))[1]
    permission = WRITE
    try:
        client = s3_client(patient=False)
        client.put_object(Bucket=bucket, Key=key, Body=b"")
        permission = LIST
        client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        permission = READ
        client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except S3_ERRORS as error:
        usage = isinstance(error, ParamValidationError) or s3_code(error) == "NoSuchBucket"
        raise UserError(s3_problem(error, results, permission), EXIT_USAGE if usage else EXIT_PREFLIGHT) from None
    # An append-only bucket refuses this; a scan deletes nothing else, so an empty probe may stay.
    with contextlib.suppress(*S3_ERRORS):
        client.delete_object(Bucket=bucket, Key=key)


def arrow_filesystem(results: str) -> tuple[FileSystem, str]:
    """Arrow's view of RESULTS: (file system, path of RESULTS in it).

    On S3, endpoint, region and credentials are those that boto3 found, so that what boto3 reaches Arrow
    reaches too. Temporary credentials are those of this moment: call again rather than keep it for hours.
    Raises UserError when there are no credentials.
    """
    from pyarrow import fs

    if not is_s3(results):
        return fs.LocalFileSystem(), str(local_path(results).absolute())
    from boto3.session import Session
    from botocore.utils import get_environ_proxies

    try:
        client = s3_client()
        credentials = Session().get_credentials()
        frozen = credentials.get_frozen_credentials() if credentials else None
    except S3_ERRORS as error:
        raise UserError(s3_problem(error, results, READ), EXIT_PREFLIGHT) from None
    if frozen is None:
        raise UserError(s3_problem(NoCredentialsError(), results, READ), EXIT_PREFLIGHT)
    endpoint = urlsplit(client.meta.endpoint_url)
    options: dict[str, Any] = {"scheme": endpoint.scheme}
    if not _is_aws(client):
        options["endpoint_override"] = endpoint.netloc
    proxy = get_environ_proxies(client.meta.endpoint_url).get(endpoint.scheme)
    if proxy:
        options["proxy_options"] = proxy
    if os.environ.get("AWS_CA_BUNDLE"):
        options["tls_ca_file_path"] = os.environ["AWS_CA_BUNDLE"]
    filesystem = fs.S3FileSystem(
        access_key=frozen.access_key,
        secret_key=frozen.secret_key,
        session_token=frozen.token,
        region=client.meta.region_name,
        connect_timeout=10,  # Arrow's 1 s and 3 s are too short for a busy endpoint
        request_timeout=60,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=8),
        **options,
    )
    return filesystem, "/".join(split_s3(results)).rstrip("/")
