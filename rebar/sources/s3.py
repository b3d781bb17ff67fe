"""Images below a prefix of an S3 bucket, in class folders or with a list of labels, read object by object.

boto3 reads credentials, region and endpoint from its usual places: AWS_PROFILE, AWS_ENDPOINT_URL, an instance role.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rebar.cli import progress_bar
from rebar.errors import RebarError
from rebar.sources.labels import (
    DEVKITS,
    GROUND_TRUTH,
    LISTS,
    PARENTS_SEARCHED,
    SYNSETS_BY_ID,
    ValidationLabels,
    find_labels,
    labels_not_found,
)
from rebar.sources.layout import (
    HIDDEN,
    NOT_AN_IMAGE,
    OUTSIDE_CLASS_FOLDERS,
    PackedNames,
    check_class_folders,
    find_split_path,
    has_hidden_part,
    index_classes,
    is_hidden,
    is_image,
)
from rebar.storage.aws import make_client
from rebar.storage.s3 import retry_interrupted

PREFIX = "s3://"


class S3Folder:
    """The images at ``s3://bucket/prefix/<class>/``, ordered by class, then key.

    Without class folders, classes are read from a list: the local file ``labels``, or an object near the images, as for
    :func:`~rebar.sources.files.open_flat_folder`. Each process connects when it reads its first image. Raises
    RebarError if the prefix cannot be listed, or the classes of the images cannot be determined.
    """

    def __init__(self, url: str, split: str, labels: str = "") -> None:
        self._bucket, _, prefix = url.removeprefix(PREFIX).partition("/")
        self._client: Any = None
        if not self._bucket:
            raise RebarError(f"{url} has no bucket name. Pass s3://bucket/prefix.", code="s3-address-invalid")
        self._root = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        path = find_split_path(self, split, url, prefix.rstrip("/").rpartition("/")[2])
        prefix = self._root + (f"{path}/" if path else "")
        omitted: Counter[str] = Counter()
        counts: Counter[str] = Counter()  # class folder -> images
        keys: list[str] = []
        outside: list[str] = []
        with progress_bar(f"listing {url}", None, "objects") as bar:
            for key in self._list(prefix):
                bar.update()
                name = key[len(prefix) :]
                class_name, slash, _ = name.partition("/")
                if has_hidden_part(name):
                    omitted[HIDDEN] += 1
                elif is_image(name) and not slash:
                    outside.append(name)
                elif is_image(name):
                    keys.append(key)
                    counts[class_name] += 1
                else:
                    omitted[NOT_AN_IMAGE] += not key.endswith("/")  # consoles create objects for folders
                    counts.update({class_name: 0} if slash else {})
        if not keys and not outside:
            raise RebarError(
                f"s3://{self._bucket}/{prefix}: contains no images in class folders. Arrange them as {url}/<class>/….",
                code="source-empty",
            )
        location = f"s3://{self._bucket}/{prefix}".rstrip("/")
        if counts:
            check_class_folders(location, list(counts), list(counts.values()), outside)
            omitted[OUTSIDE_CLASS_FOLDERS] += len(outside)
            classes = [key[len(prefix) :].partition("/")[0] for key in keys]
            self.class_names: Sequence[str] = sorted(counts)
        else:
            found = find_labels(Path(), labels) if labels else self._find_labels(prefix)
            classes = found.look_up(outside, location)
            self.class_names = found.class_names
            keys = [prefix + name for name in outside]
        self.omitted: Mapping[str, int] = dict(omitted)
        # Keys sort as a-b/c.jpg < a/b.jpg; class folders sort as a < a-b.
        order = sorted(range(len(keys)), key=lambda index: (classes[index], keys[index]))
        self._keys = PackedNames(keys[index] for index in order)
        self._labels = index_classes([classes[index] for index in order], self.class_names)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """Return the label of an image."""
        return int(self._labels[index])

    def read(self, index: int) -> bytes:
        """Return the content of an image. Interrupted downloads are retried."""
        return self._read_object(self._keys[index])

    def _read_object(self, key: str) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        def read() -> bytes:
            content: bytes = self._connect().get_object(Bucket=self._bucket, Key=key)["Body"].read()
            return content

        try:
            return retry_interrupted(read)
        except (BotoCoreError, ClientError) as error:
            raise OSError(str(error)) from None

    def name(self, index: int) -> str:
        """Return the URL of an object."""
        return f"s3://{self._bucket}/{self._keys[index]}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def _connect(self) -> Any:
        if self._client is None:
            self._client = make_client("s3")
        return self._client

    def folders(self, path: str) -> list[str]:
        """Return the names of the folders in a folder of the prefix that are not hidden, sorted."""
        prefix = self._root + (f"{path}/" if path else "")
        names = [entry["Prefix"][len(prefix) : -1] for entry in self._entries("CommonPrefixes", prefix, Delimiter="/")]
        return sorted(name for name in names if not is_hidden(name))

    def has_images(self, path: str) -> bool:
        """Return whether images are directly in a folder of the prefix."""
        prefix = self._root + (f"{path}/" if path else "")
        return any(is_image(entry["Key"][len(prefix) :]) for entry in self._entries("Contents", prefix, Delimiter="/"))

    def _find_labels(self, prefix: str) -> ValidationLabels:
        """Return the first list of labels in the folder ``prefix`` or its parents."""
        folder, downloaded = prefix.rstrip("/"), (*SYNSETS_BY_ID, GROUND_TRUTH, *LISTS, *DEVKITS)
        for _ in range(PARENTS_SEARCHED + 1):
            keys = [entry["Key"] for entry in self._entries("Contents", f"{folder}/" if folder else "", Delimiter="/")]
            names = {key.rpartition("/")[2]: key for key in keys}
            if set(names).intersection((GROUND_TRUTH, *LISTS, *DEVKITS)):
                with tempfile.TemporaryDirectory() as copies:
                    for name in set(names).intersection(downloaded):
                        Path(copies, name).write_bytes(self._read_object(names[name]))
                    found = find_labels(Path(copies))
                    origin = f"s3://{self._bucket}/{names[Path(found.origin).name]}"
                    return replace(found, origin=origin)
            if not folder:
                break
            folder = folder.rpartition("/")[0]
        raise labels_not_found(f"s3://{self._bucket}/{prefix}")

    def _list(self, prefix: str) -> Iterator[str]:
        return (entry["Key"] for entry in self._entries("Contents", prefix))

    def _entries(self, kind: str, prefix: str, **options: str) -> Iterator[Any]:
        client = self._connect()
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix, **options)
        try:
            for page in pages:
                yield from page.get(kind, ())
        except NoCredentialsError:
            raise RebarError(
                f"s3://{self._bucket}: no AWS credentials found. Run aws configure, set AWS_PROFILE, or attach a role "
                "that may read the bucket.",
                code="s3-source-unreadable",
            ) from None
        except (BotoCoreError, ClientError) as error:
            raise RebarError(
                f"s3://{self._bucket}/{prefix} cannot be listed: {error}. Check the bucket and its permissions.",
                code="s3-source-unreadable",
            ) from None
