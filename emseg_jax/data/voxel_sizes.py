"""Whether volumes have the voxel size that a network is trained on; sizes are (z, y, x) in nm."""

from collections.abc import Iterable, Sequence

from emseg_jax.data.volume import Volume, VoxelSize
from emseg_jax.errors import DataError

__all__ = ['check', 'common']

FAR = 0.1  # relative difference from which on things look different


def common(volumes: Iterable[Volume], *, ndim: int) -> VoxelSize | None:
  """The voxel size of all volumes: of the first that gives one; None if none does.

  Args:
    volumes: what is trained on.
    ndim: 2 for networks of sections, for which z does not matter.

  Raises:
    DataError: two of them differ.
  """
  first: Volume | None = None
  for volume in volumes:
    if volume.voxel_size_zyx is None:
      continue
    if first is None:
      first = volume
    check(volume, first.voxel_size_zyx, ndim=ndim, of=f'those of {first.path}')
  return None if first is None else first.voxel_size_zyx


def check(volume: Volume, expected: Sequence[float | None], *, ndim: int, of: str) -> None:
  """Refuses a volume whose voxel size is known and another one.

  Raises:
    DataError: an axis differs by more than a tenth.
  """
  known = volume.voxel_size_zyx or (None, None, None)
  pairs = list(zip(known, expected, strict=True))[-ndim:]
  if any(a and b and abs(a - b) > FAR * b for a, b in pairs):
    raise DataError(
      f'{volume.path}: its voxels are {_show(known)} nm (z, y, x), {of} are {_show(expected)}; set '
      'data.voxel_size to have everything resampled to one size, or reading.voxel_size if a file '
      'is wrong'
    )


def _show(size: Sequence[float | None]) -> str:
  return ' x '.join('?' if n is None else f'{n:g}' for n in size)
