"""Videos stored as still images: a folder of image files, or an HDF5 file of encoded images."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from deg.data.video.image_names import IMAGE_SUFFIXES, images_of
from deg.data.video.reader import Transform, VideoReader, require_size
from deg.errors import VideoError, show_path
from deg.types import ImageOrder, VideoInfo

DATASET = "frame"


class StillReader(VideoReader):
    """A video whose frames are encoded images, each on its own."""

    @abstractmethod
    def _encoded(self, index: int) -> np.ndarray:
        """Return the bytes of image `index`, uint8."""

    @abstractmethod
    def _name(self, index: int) -> str:
        """Return the name of image `index` for messages."""

    def _decode(self, path: Path, index: int) -> np.ndarray:
        """Decode an image to (H, W, 3) in OpenCV's order, which is BGR for an image file."""
        encoded = self._encoded(index)
        # Not cv2.imread: OpenCV 5.0.0 crashes on names that are not UTF-8.
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
        if image is None:
            raise VideoError(
                path,
                f"{self._name(index)} cannot be decoded as an image ({encoded.size} bytes)",
                "Replace it, or take it out of the video and its row out of the labels.",
                frame=index,
            )
        return image

    def _measure(self, path: Path, num_frames: int, size_bytes: int) -> VideoInfo:
        if num_frames == 0:
            raise VideoError(path, "it holds no frames", "Put the recording there again.")
        height, width = self._decode(path, 0).shape[:2]
        return VideoInfo(path, num_frames, height, width, 0.0, size_bytes, path.stat().st_mtime_ns)

    def _checked(self, index: int) -> np.ndarray:
        image = self._decode(self.info.path, index)
        require_size(self.info, index, image.shape, self._name(index))
        return image

    def survey(self) -> tuple[int, list[int]]:
        damaged = []
        for index in range(self.info.num_frames):
            try:
                self._checked(index)
            except VideoError:
                damaged.append(index)
        return self.info.num_frames, damaged


class FolderReader(StillReader):
    """A folder of image files, in the order of the numbers in their names, or in DeepEthogram's."""

    def __init__(self, path: Path, order: ImageOrder = "natural"):
        try:
            files = [file.name for file in path.iterdir()]
            names = images_of(files, order)
            size_bytes = sum((path / name).stat().st_size for name in names)
        except OSError as error:
            raise VideoError(
                path, f"the folder cannot be listed ({error.strerror})", "Check its permissions and links."
            ) from error
        if not names:
            case = "" if order == "natural" else " (lower case, because of project.image_order=deepethogram)"
            raise VideoError(
                path,
                "the folder holds no images",
                f"Expected files ending in {' '.join(IMAGE_SUFFIXES)}{case}, one for each frame.",
            )
        self._folder, self._names = path, names
        info = self._measure(path, len(names), size_bytes)
        self.info = info if names == images_of(files, "deepethogram") else replace(info, image_order="natural")

    def _name(self, index: int) -> str:
        return show_path(self._names[index])

    def _encoded(self, index: int) -> np.ndarray:
        try:
            return np.fromfile(self._folder / self._names[index], dtype=np.uint8)
        except OSError as error:
            raise VideoError(
                self._folder,
                f"{self._name(index)} cannot be read ({error.strerror})",
                "Check its permissions and links.",
                frame=index,
            ) from error

    def _frame(self, index: int, transform: Transform | None) -> np.ndarray:
        image = self._checked(index)
        return cv2.cvtColor(transform(image) if transform else image, cv2.COLOR_BGR2RGB)


class HDF5Reader(StillReader):
    """An HDF5 file with the dataset `frame`: one encoded image (PNG, JPEG) for each frame, as bytes.

    DeepEthogram's writer exchanges red and blue before encoding, and its reader does not change them back: the image as
    OpenCV decodes it is already RGB. Any other program shows these images blue where they should be red.
    """

    def __init__(self, path: Path):
        import h5py  # imported here: it doubles the time that a decoder takes to start, and few videos are HDF5

        try:
            # Without locking: nobody writes to a recording, and many network file systems cannot lock.
            self._file = h5py.File(path, "r", locking=False)
        except OSError as error:
            raise VideoError(
                path, f"it is not a whole HDF5 file ({error})", "Copy it again from where it was recorded."
            ) from error
        try:
            frames = self._file.get(DATASET)
            if not isinstance(frames, h5py.Dataset) or h5py.check_vlen_dtype(frames.dtype) != np.dtype("uint8"):
                raise VideoError(
                    path,
                    f"expected a dataset `{DATASET}` of encoded images (variable-length uint8), found: "
                    f"{', '.join(self._file) or 'nothing'}",
                    "Only HDF5 videos as DeepEthogram writes them can be read; convert others to mp4.",
                )
            self._encoded_T = frames
            self.info = self._measure(path, len(frames), path.stat().st_size)
        except VideoError:
            self._file.close()
            raise

    def _name(self, index: int) -> str:
        return f"image {index}"

    def _encoded(self, index: int) -> np.ndarray:
        try:
            return np.asarray(self._encoded_T[index], dtype=np.uint8)
        except OSError as error:
            raise VideoError(
                Path(self._file.filename),
                f"{self._name(index)} cannot be read ({error})",
                "The file is damaged: copy it again from where it was recorded.",
                frame=index,
            ) from error

    def _frame(self, index: int, transform: Transform | None) -> np.ndarray:
        image = self._checked(index)
        return transform(image) if transform else image

    def close(self) -> None:
        self._file.close()
