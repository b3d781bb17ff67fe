"""What became of a picture that the fast path was asked for."""

from enum import IntEnum


class Status(IntEnum):
    """One a picture, from :meth:`rebar.jpeg.fast.CropDecoder.decode_crops`.

    Everything but OK leaves the picture's pixels undefined. UNSUPPORTED is a JPEG that is fine but of a
    kind this decoder does not take (progressive, four components, 12-bit, ...): decode it whole with
    libturbojpeg. The others name what is wrong with the file or the request.
    """

    OK = 0
    UNSUPPORTED = 1
    CORRUPT_HEADER = 2
    CORRUPT_DATA = 3
    CUT_SHORT = 4
    WRONG_SIZE = 5


# Plain integers for the kernels.
OK = int(Status.OK)
UNSUPPORTED = int(Status.UNSUPPORTED)
CORRUPT_HEADER = int(Status.CORRUPT_HEADER)
CORRUPT_DATA = int(Status.CORRUPT_DATA)
CUT_SHORT = int(Status.CUT_SHORT)
WRONG_SIZE = int(Status.WRONG_SIZE)
