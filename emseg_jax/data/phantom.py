"""Synthetic electron micrographs of nervous tissue with exact labels: training without any file.

Cells are a warped Voronoi partition with dark membranes whose thickness and contrast vary;
mitochondria are bent ellipsoids with cristae inside the cells. What makes real sections hard is
there on purpose: membranes that fade out, reticulum, vesicles and granules as dark as membranes,
mitochondria whose grey values overlap both other classes, uneven illumination, shot noise and blur.
A grey threshold therefore fails where a network that sees context does not.

Everything works in two and in three dimensions; lengths are in voxels, which are cubes. Labels are
made with IEEE sums, products and square roots only, so that they are bit-identical on every
platform; images may differ in rounding between numpy versions.
"""

import dataclasses
import itertools

import numpy as np
from scipy import ndimage

__all__ = ['CLASSES', 'make_section', 'make_sections', 'make_volume']

CLASSES = ('cytoplasm', 'membrane', 'mitochondrion')

MITOCHONDRIA_SHARE = 0.09  # aimed at; reached wherever the image is large enough for a few of them
MITOCHONDRION_LENGTH = (14.0, 30.0)  # range of the long semi-axis
MITOCHONDRION_WIDTH = (6.0, 12.0)  # range of the short semi-axes


@dataclasses.dataclass(frozen=True)
class _Tissue:
  """What is where. All arrays share the shape of the image."""

  cell: np.ndarray  # int32 cell number
  wall: np.ndarray  # f32 distance to the nearest cell boundary
  contrast: np.ndarray  # f32 visibility of the membrane, 0 to 1
  membrane: np.ndarray  # bool
  mitochondrion: np.ndarray  # bool
  along: np.ndarray  # f32 position along the long axis of the mitochondrion, 0 outside


def make_section(*, seed: int, index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """One section: uint8 image [Y, X] and uint8 labels [Y, X] (indices into CLASSES).

  The result depends on the three arguments alone, so that sections can be made in any order and
  in any process.
  """
  return _make((seed, index), size)


def make_sections(*, count: int, size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
  """`count` unrelated sections: uint8 images [N, Y, X] and uint8 labels [N, Y, X]."""
  sections = [make_section(seed=seed, index=index, size=size) for index in range(count)]
  images, labels = zip(*sections, strict=True)
  return np.stack(images), np.stack(labels)


def make_volume(*, shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
  """One volume of tissue that is continuous in z: uint8 image and uint8 labels, both [Z, Y, X]."""
  return _make((seed,), shape)


def _make(entropy: tuple[int, ...], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  geometry, texture = (
    np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(entropy).spawn(2)
  )
  tissue = _make_tissue(geometry, shape)
  labels = np.zeros(shape, np.uint8)
  labels[tissue.membrane] = CLASSES.index('membrane')
  labels[tissue.mitochondrion] = CLASSES.index('mitochondrion')
  return _expose(texture, _stain(texture, tissue)), labels


# ---- geometry: plain IEEE arithmetic only -------------------------------------------------------


def _noise(rng: np.random.Generator, shape: tuple[int, ...], spacing: float) -> np.ndarray:
  """Smooth noise of zero mean and unit variance: a cubic B-spline through random values.

  Not a Gaussian filter, because the sums here come out the same to the last bit everywhere.
  """
  values = 2 * rng.random([int(n / spacing) + 4 for n in shape], np.float32) - 1
  values *= np.float32(1.732)  # a uniform variable in [-1, 1] has variance 1/3
  for axis in reversed(range(len(shape))):  # the last pass, over all voxels, copies whole rows
    position = np.arange(shape[axis], dtype=np.float32) / np.float32(spacing)
    knot = position.astype(np.int64)
    t = (position - knot).astype(np.float32)
    s = 1 - t
    weights = (
      s * s * s / 6,
      (3 * t * t * t - 6 * t * t + 4) / 6,
      (3 * s * s * s - 6 * s * s + 4) / 6,
      t * t * t / 6,
    )
    column = [-1 if a == axis else 1 for a in range(len(shape))]
    values = sum(w.reshape(column) * np.take(values, knot + k, axis) for k, w in enumerate(weights))
    values *= np.float32(1.445)  # 1 / sqrt(mean over t of the sum of squared weights)
  return values


def _make_cells(rng: np.random.Generator, shape: tuple[int, ...], spacing: float) -> np.ndarray:
  """Numbers the cells of a warped, weighted Voronoi partition; some neighbours are one cell."""
  ndim = len(shape)
  grid = [int(n / spacing) + 7 for n in shape]  # three sites more on every side
  sites = [i + rng.random(grid, np.float32) for i in np.indices(grid, np.float32)]
  weight = rng.random(grid, np.float32) * np.float32(0.3)
  number = np.arange(weight.size, dtype=np.int32).reshape(grid)
  merge = rng.random(grid)
  for axis in range(ndim):
    chosen = (merge >= 0.15 * axis) & (merge < 0.15 * axis + 0.15)
    number = np.where(chosen, np.roll(number, -1, axis), number)

  position, home = [], []  # in units of the spacing; home: the site whose square holds the voxel
  for axis, n in enumerate(shape):
    column = [-1 if a == axis else 1 for a in range(ndim)]
    p = np.arange(n, dtype=np.float32).reshape(column) / np.float32(spacing) + 3
    p = p + np.float32(0.35) * _noise(rng, shape, 0.9 * spacing)
    p = p + np.float32(0.08) * _noise(rng, shape, 0.35 * spacing)
    position.append(p)
    home.append(np.clip(p.astype(np.int32), 1, grid[axis] - 2))
  home = np.ravel_multi_index(home, grid)

  nearest = np.full(shape, np.inf, np.float32)
  cell = np.zeros(shape, np.int32)
  strides = [int(np.prod(grid[axis + 1 :])) for axis in range(ndim)]
  for offset in itertools.product((-1, 0, 1), repeat=ndim):
    site = home + sum(o * s for o, s in zip(offset, strides, strict=True))
    distance = -weight.take(site)
    for p, s in zip(position, sites, strict=True):
      step = s.take(site) - p
      distance += step * step
    np.copyto(cell, number.take(site), where=distance < nearest)
    np.minimum(nearest, distance, out=nearest)
  return cell


def _distance_to_walls(cell: np.ndarray) -> np.ndarray:
  """Distance to the nearest voxel whose next neighbour along an axis is in another cell, f32."""
  wall = np.zeros(cell.shape, bool)
  for axis in range(cell.ndim):
    here = tuple(slice(None, -1) if a == axis else slice(None) for a in range(cell.ndim))
    wall[here] |= np.diff(cell, axis=axis) != 0
  if not wall.any():  # one cell fills the image
    return np.full(cell.shape, np.inf, np.float32)
  return ndimage.distance_transform_edt(~wall).astype(np.float32)


def _direction(rng: np.random.Generator, ndim: int) -> np.ndarray:
  """A unit vector, uniform over the sphere (by rejection, to need no transcendental function)."""
  while True:
    v = 2 * rng.random(ndim) - 1
    squared = sum(float(x) * float(x) for x in v)
    if 0.01 < squared < 1:
      return v / np.sqrt(squared)


def _place_mitochondria(
  rng: np.random.Generator, cell: np.ndarray, wall: np.ndarray, free: np.ndarray
) -> np.ndarray:
  """Fills cells with bent ellipsoids until they hold their share; returns `along` (0 outside).

  `free` marks where a mitochondrion may lie. Each stays inside one cell and apart from the others.
  """
  along = np.zeros(cell.shape, np.float32)
  taken = ~free
  missing = MITOCHONDRIA_SHARE * cell.size
  uneven = _noise(rng, cell.shape, 8.0)
  for _ in range(100 + cell.size // 100):
    if missing <= 0:
      break
    centre = tuple(int(x * n) for x, n in zip(rng.random(cell.ndim), cell.shape, strict=True))
    width = _between(rng, MITOCHONDRION_WIDTH)
    if taken[centre] or wall[centre] < 0.8 * width:
      continue
    length = _between(rng, MITOCHONDRION_LENGTH)
    axis, side = _direction(rng, cell.ndim), _direction(rng, cell.ndim)
    bend = 0.6 * rng.random() * width / (length * length)
    box = tuple(
      slice(max(0, int(c - length - 4)), min(n, int(c + length + 5)))
      for c, n in zip(centre, cell.shape, strict=True)
    )
    offsets = np.ogrid[box]
    offsets = [(o - c).astype(np.float32) for o, c in zip(offsets, centre, strict=True)]
    u = sum(np.float32(a) * o for a, o in zip(axis, offsets, strict=True))
    bent = [
      o - np.float32(a) * u + np.float32(bend * s) * u * u
      for a, s, o in zip(axis, side, offsets, strict=True)
    ]
    form = sum(b * b for b in bent) / np.float32(width * width)
    form = form + u * u / np.float32(length * length) + np.float32(0.1) * uneven[box]
    whole = form < 1
    inside = whole & ~taken[box] & (cell[box] == cell[centre])
    if inside.sum() < 0.75 * whole.sum():  # a sliver of a mitochondrion looks like none
      continue
    along[box][inside] = u[inside] + np.float32(100)  # never 0 inside
    taken[box] |= form < 1.8
    missing -= int(inside.sum())
  return along


def _between(rng: np.random.Generator, limits: tuple[float, float]) -> float:
  return limits[0] + (limits[1] - limits[0]) * float(rng.random())


def _make_tissue(rng: np.random.Generator, shape: tuple[int, ...]) -> _Tissue:
  # A volume has more wall per voxel than a section through it would have at the same spacing.
  spacing = 34.0 if len(shape) == 2 else 44.0
  cell = _make_cells(rng, shape, spacing)
  wall = _distance_to_walls(cell)
  contrast = np.clip(
    np.float32(0.75) + np.float32(0.42) * _noise(rng, shape, 22.0), np.float32(0.1), np.float32(1)
  )
  # Obliquely cut membranes are faint and wide.
  half = np.float32(1.9) - np.float32(0.7) * contrast
  half = half + np.float32(0.45) * _noise(rng, shape, 14.0)
  half = np.clip(half, np.float32(0.5), np.float32(3.5))
  membrane = wall <= half
  along = _place_mitochondria(rng, cell, wall, wall > np.maximum(half + np.float32(1.5), 3))
  return _Tissue(cell, wall, contrast, membrane, along != 0, along)


# ---- appearance ---------------------------------------------------------------------------------


def _scatter(rng: np.random.Generator, where: np.ndarray, spacing: float) -> np.ndarray:
  """1 at random voxels of `where`, about `spacing` apart, 0 elsewhere, f32."""
  density = spacing**-where.ndim
  return ((rng.random(where.shape, np.float32) < density) & where).astype(np.float32)


def _spots(centres: np.ndarray, sigma: float) -> np.ndarray:
  """A Gaussian spot of peak 1 at every centre, f32."""
  peak = (np.sqrt(2 * np.pi) * sigma) ** centres.ndim
  return ndimage.gaussian_filter(centres, sigma, truncate=3) * np.float32(peak)


def _sheets(rng: np.random.Generator, shape: tuple[int, ...], spacing: float) -> np.ndarray:
  """Thin curved lines (sheets in a volume), 1 on the line and 0 away from it, f32."""
  field = _noise(rng, shape, spacing)
  slopes = [np.gradient(field, axis=axis) for axis, n in enumerate(shape) if n > 1]
  slope = np.sqrt(sum(s * s for s in slopes)) + 1e-3
  return np.exp(-((field / slope) ** 2) / 1.6)


def _stain(rng: np.random.Generator, tissue: _Tissue) -> np.ndarray:
  """Grey values before the microscope, about 0 (dark) to 1, f32."""
  shape = tissue.cell.shape
  inner = (tissue.wall > 4.5) & ~tissue.mitochondrion
  brightness = rng.normal(0.66, 0.06, int(tissue.cell.max()) + 1).astype(np.float32)
  image = brightness[tissue.cell] + np.float32(0.035) * _noise(rng, shape, 5.0)

  crowded = _noise(rng, shape, 22.0)
  vesicles = _scatter(rng, inner & (crowded > 0.4), 8.0)
  image -= 0.55 * _spots(vesicles, 2.0) - 0.7 * _spots(vesicles, 1.2)  # bright inside a dark rim
  granules = _scatter(rng, inner & (crowded < 0.2), 8.0)
  image -= 0.42 * _spots(granules, 1.0)
  reticulum = _sheets(rng, shape, 14.0) * np.clip(0.2 + _noise(rng, shape, 14.0), 0, 1)
  image -= 0.5 * reticulum * ndimage.uniform_filter(inner.astype(np.float32), 3)

  profile = np.clip(2.4 - tissue.wall, 0, 1.5) / 1.5
  image -= 0.46 * tissue.contrast * np.where(tissue.membrane, np.maximum(profile, 0.35), 0)

  core = ndimage.binary_erosion(tissue.mitochondrion, iterations=2)
  cristae = np.sin(tissue.along + 1.5 * _noise(rng, shape, 7.0))
  matrix = 0.45 + 0.08 * _noise(rng, shape, 30.0) + 0.12 * cristae
  organelle = np.where(core, matrix, 0.26)
  return np.where(tissue.mitochondrion, organelle, image).astype(np.float32)


def _expose(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
  """Blur, uneven illumination, shot and read-out noise, digitisation to uint8."""
  shape = image.shape
  image = ndimage.gaussian_filter(image, 0.8)
  drift = max(40.0, 0.5 * max(shape))
  image = 0.5 + (image - 0.5) * (1 + 0.15 * _noise(rng, shape, drift))
  image = image + 0.07 * _noise(rng, shape, drift)
  variance = 0.007 * np.clip(image, 0.1, 1) + 0.004
  image = image + np.sqrt(variance) * rng.standard_normal(shape, np.float32)
  image = ndimage.gaussian_filter(image, 0.45)
  return np.clip(np.rint(255 * image), 0, 255).astype(np.uint8)
