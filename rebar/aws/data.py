"""``data send|stage``: verified, parallel uploads to S3 and downloads from it."""

from argparse import Namespace
from pathlib import Path

from rebar.aws.arguments import argument, command, positive
from rebar.aws.client import Aws
from rebar.storage.boto import AwsError, S3NotFoundError
from rebar.storage.files import sha256_of
from rebar.storage.s3 import DOWNLOAD_PART_BYTES, DOWNLOAD_THREADS, MIB, S3Prefix, download, upload


@command(
    "data send",
    "/nvme/train.beton /nvme/train.beton.json s3://my-bucket/betons",
    argument("files", type=Path, nargs="+", help="the files"),
    argument("folder", help="s3://BUCKET/PREFIX"),
    changes=False,
)
def _send(aws: Aws, options: Namespace) -> None:
    """Upload files to S3, in parallel, with the checksums that 'data stage' verifies."""
    prefix, client = S3Prefix.parse(options.folder, "FOLDER"), aws("s3")
    for path in options.files:
        if not path.is_file():
            raise AwsError(f"{path}: no such file.", code="file-not-found")
    for path in options.files:
        with path.open("rb") as file:
            sha256 = sha256_of(file)
            file.seek(0)
            upload(client, file, prefix.bucket, prefix.key(path.name), sha256=sha256)
        print(f"{prefix}/{path.name}: {path.stat().st_size / MIB:.1f} MiB", flush=True)


@command(
    "data stage",
    "s3://my-bucket/betons/train.beton /nvme/train.beton",
    argument("source", help="s3://BUCKET/KEY; the sidecar of a .beton is downloaded too, if it exists"),
    argument("target", type=Path, help="the local file"),
    argument("--sha256", help="expected SHA-256 (default: the checksum that S3 has)"),
    argument("--unverified", action="store_true", help="accept an object without a checksum in S3"),
    argument("--workers", type=positive, default=DOWNLOAD_THREADS, help="parallel requests (default: %(default)s)"),
    argument(
        "--part-mib", type=positive, default=DOWNLOAD_PART_BYTES // MIB, help="MiB per request (default: %(default)s)"
    ),
    changes=False,
)
def _stage(aws: Aws, options: Namespace) -> None:
    """Download an S3 object to a local file, in parallel. Verifies its checksum, and resumes if interrupted."""
    source, client = S3Prefix.parse(options.source, "SOURCE"), aws("s3")
    if not source.prefix:
        raise AwsError(f"{source}: not an object. Use s3://BUCKET/KEY.", code="s3-invalid-url")
    how = {"threads": options.workers, "part_bytes": options.part_mib * MIB, "unverified": options.unverified}
    is_new = download(client, source.bucket, source.prefix, options.target, sha256=options.sha256, **how)
    print(f"{options.target}: {'downloaded from' if is_new else 'unchanged, identical to'} {source}")
    if source.prefix.endswith(".beton"):
        sidecar = options.target.with_name(options.target.name + ".json")
        try:
            download(client, source.bucket, source.prefix + ".json", sidecar, **how)
            print(f"{sidecar}: downloaded")
        except S3NotFoundError:
            pass
