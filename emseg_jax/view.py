"""Looking at a volume and its labels in a browser: neuroglancer, served on this machine only.

Volumes stay on disk; a box is read when the browser asks for it. The server and the page it serves
come with the package `neuroglancer` (extra `view`), so that nothing is fetched from the internet,
and it listens on 127.0.0.1 alone, under an address that cannot be guessed.

neuroglancer's axes are x, y, z, so that `_Array` is transposed: [X, Y, Z], colour [X, Y, Z, 3].
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from emseg_jax import colours as colours_lib
from emseg_jax import config as config_lib
from emseg_jax.data import volumes
from emseg_jax.data.chunk_cache import ChunkCache
from emseg_jax.errors import ConfigError, DataError

__all__ = ['ADDRESS', 'Legend', 'legend', 'serve', 'view']

LOGGER = logging.getLogger('emseg_jax')
ADDRESS = '127.0.0.1'
POLL_SECONDS = 0.2
# Of each volume that is read by whole sections. A volume that fits is shown in all directions.
CACHE_BYTES = 2**30
MOST_MESHED = 2**27  # voxels: meshes are made from the whole volume in memory
SAMPLE = 1024  # side of the middle of the central section, for contrast and values
CONTRAST = (1, 99)  # percentiles shown black and white
PANEL = 400  # pixels that the volume fills at first, per panel
SHOWN_AS_THEY_ARE = ('uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'float32')

GREY = '#uicontrol invlerp normalized\nvoid main() { emitGrayscale(normalized()); }\n'
COLOUR = """void main() {
  emitRGB(vec3(toNormalized(getDataValue(0)), toNormalized(getDataValue(1)),
    toNormalized(getDataValue(2))));
}
"""
# The surer, the less transparent.
TINT = """#uicontrol invlerp normalized
#uicontrol vec3 tint color(default="{}")
void main() {{ emitRGBA(vec4(tint, normalized())); }}
"""

Path = str | os.PathLike
Legend = Mapping[int, tuple[str, str]]  # value in label files -> name, '#rrggbb'
Size = tuple[int, int, int]


def legend(config: config_lib.Config) -> Legend:
  """What the label values of a run mean, and the colours of its report."""
  names = config.task.values
  colours = colours_lib.class_colours(config.task.colours, len(names))
  mapping = config.data.label_mapping or {index: index for index in range(len(names))}
  found = {value: (names[index], colours[index]) for value, index in mapping.items()}
  if config.task.ignore_value is not None:
    found[config.task.ignore_value] = ('not scored', colours_lib.UNSCORED)
  return found


def view(
  image: Path,
  layers: Mapping[str, Path],
  *,
  port: int = 0,
  should_stop: Callable[[], bool] | None = None,
  legend: Legend | None = None,
  reading: config_lib.Reading | None = None,
) -> None:
  """Serves volumes, prints the address, and returns once `should_stop` says so.

  Args:
    should_stop: asked five times a second; None: until KeyboardInterrupt.

  The others, and what is raised, are as in `serve`.
  """
  with serve(image, layers, port=port, legend=legend, reading=reading) as url:
    print(url, flush=True)
    for value, (name, colour) in (legend or {}).items():
      LOGGER.info('  %d: %s %s', value, name, colour)
    LOGGER.info('Open the address in a browser on this machine; Ctrl-C ends.')
    while not (should_stop and should_stop()):
      time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def serve(
  image: Path,
  layers: Mapping[str, Path],
  *,
  port: int = 0,
  legend: Legend | None = None,
  reading: config_lib.Reading | None = None,
) -> Iterator[str]:
  """Serves an image and what belongs to its voxels while the block runs.

  Args:
    image: anything that `volumes.open_volume` reads, grey or RGB.
    layers: name -> labels, of the image's size. Integers are segments; floats (probabilities) and
      RGB lie over the image half transparent.
    port: 0 takes a free one.
    legend: what label values mean. Labels with other values, such as instances, and all without a
      legend get neuroglancer's random colours, with a palette for 1 to 9. 0 is never drawn.
    reading: what the image file does not say about itself.

  Yields:
    The address to open.

  Raises:
    ConfigError: neuroglancer is not installed, the port is taken, or a layer is named 'image'.
    DataError: a volume cannot be read, or the sizes differ.
  """
  neuroglancer = _import()
  if 'image' in layers:
    raise ConfigError("a layer cannot be named 'image', this is the name of the image itself")
  opened = {'image': volumes.open_volume(image, reading=reading or config_lib.Reading())}
  opened |= {name: volumes.open_volume(path, palette='index') for name, path in layers.items()}
  size = _common_size(opened)
  ours = not neuroglancer.server.is_server_running()
  if ours:
    neuroglancer.set_server_bind_address(ADDRESS, port)
  try:
    viewer = neuroglancer.Viewer(allow_credentials=False)
  except OSError as error:
    raise ConfigError(f'port {port} of {ADDRESS}: {error.strerror}; 0 takes a free one') from error
  try:
    with viewer.txn() as state:
      _compose(neuroglancer, state, opened, size, legend)
    yield viewer.get_viewer_url()
  finally:
    if ours:
      neuroglancer.stop()


def _import() -> ModuleType:
  try:
    import neuroglancer
    import neuroglancer.server
  except ImportError as error:
    raise ConfigError(
      'volumes are shown by neuroglancer, which is not installed: pip install ".[view]"'
    ) from error
  return neuroglancer


# ---- volumes ------------------------------------------------------------------------------------


def _common_size(opened: Mapping[str, volumes.Volume]) -> Size:
  sizes = {name: _size(volume) for name, volume in opened.items()}
  size = sizes['image']
  for name, other in sizes.items():
    if other != size:
      raise DataError(
        f'{opened[name].path}: is {_show(other)} (z y x), but {opened["image"].path} is '
        f'{_show(size)}; only volumes of one size are shown together'
      )
  return size


def _size(volume: volumes.Volume) -> Size:
  shapes = {volume.section_shape(i) for i in range(len(volume))}
  if len(shapes) > 1:
    raise DataError(
      f'{volume.path}: its images are of {len(shapes)} sizes, {_show(min(shapes))} to '
      f'{_show(max(shapes))} (y x); view one of its files'
    )
  return (len(volume), *shapes.pop())


def _show(size: tuple[int, ...]) -> str:
  return ' x '.join(str(n) for n in size)


class _Array:
  """A volume as neuroglancer slices it: [x, y, z] or [x, y, z, channel]; read when asked."""

  def __init__(self, volume: volumes.Volume, size: Size, dtype: np.dtype) -> None:
    self.shape = (*size[::-1], *(3,) * (volume.channels == 3))
    self.dtype = dtype
    self._volume, self._size = volume, size
    self._sections = ChunkCache(CACHE_BYTES)
    size_in_memory = math.prod(self.shape) * volume.dtype.itemsize
    self.all_directions = volume.cheap_boxes or size_in_memory <= CACHE_BYTES

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    x, y, z, *channels = index
    start, stop = zip(*((int(s.start), int(s.stop)) for s in (z, y, x)), strict=True)
    try:
      box = self._box(start, stop)
    except DataError as error:
      LOGGER.warning('%s', error)
      raise ValueError(str(error)) from error  # neuroglancer's server answers 400
    return np.swapaxes(box, 0, 2)[..., *channels].astype(self.dtype, copy=False)

  def _box(self, start: Size, stop: Size) -> np.ndarray:
    if self._volume.cheap_boxes:
      return self._volume.box(start, stop)
    (first, *low), (last, *high) = start, stop
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return np.stack([self._section(z)[window] for z in range(first, last)])

  def _section(self, z: int) -> np.ndarray:
    return self._sections.get(z, lambda: self._volume.section(z))

  def transpose(self) -> np.ndarray:
    """All of it, [z, y, x], for meshes."""
    return self._box((0, 0, 0), self._size).astype(self.dtype, copy=False)

  def sample(self) -> np.ndarray:
    """The middle of the central section: [y, x] or [y, x, 3], in the volume's own type."""
    depth, *sides = self._size
    low = [max(0, (n - SAMPLE) // 2) for n in sides]
    high = [min(n, a + SAMPLE) for a, n in zip(low, sides, strict=True)]
    return self._box((depth // 2, *low), (depth // 2 + 1, *high))[0]


# ---- what neuroglancer shows --------------------------------------------------------------------


def _compose(
  neuroglancer: ModuleType,
  state: Any,
  opened: Mapping[str, volumes.Volume],
  size: Size,
  legend: Legend | None,
) -> None:
  """Fills neuroglancer's state: layers, voxel size, layout, and a zoom at which all is seen."""
  scales, unit = _scales(opened)
  state.dimensions = neuroglancer.CoordinateSpace(names=[*'xyz'], units=unit, scales=scales)
  arrays = []
  for name, volume in opened.items():
    segments = name != 'image' and volume.channels == 1 and volume.dtype.kind in 'biu'
    array = _Array(volume, size, _shown_type(volume.dtype, segments=segments))
    arrays.append(array)
    channels = len(array.shape) - 3
    dimensions = neuroglancer.CoordinateSpace(
      names=[*'xyz', *['c^'] * channels],
      units=[unit] * 3 + [''] * channels,
      scales=[*scales, *[1] * channels],
    )
    source = neuroglancer.LocalVolume(
      array,
      dimensions,
      volume_type='segmentation' if segments else 'image',
      # Flat chunks need one section each, cubes as many as they are deep.
      downsampling='3d' if array.all_directions else '2d',
    )
    if segments:
      layer = _segments(neuroglancer, source, array, legend)
    else:
      layer = _pixels(neuroglancer, source, array, number=len(arrays) - 1)
    state.layers[name] = layer
  whole = size[0] > 1 and all(array.all_directions for array in arrays)
  state.layout = '4panel' if whole else 'xy'
  state.position = [n / 2 for n in size[::-1]]
  # In units of the smallest voxel side; per pixel in sections, per panel in 3D.
  extent = max(n * s for n, s in zip(size[::-1], scales, strict=True)) / min(scales)
  state.cross_section_scale = extent / PANEL
  state.projection_scale = 1.5 * extent
  state.show_slices = False


def _scales(opened: Mapping[str, volumes.Volume]) -> tuple[list[float], str]:
  """Voxel size (x, y, z) and its unit, from the first volume that knows; 1 and '' if none does."""
  known = (volume.voxel_size_zyx for volume in opened.values())
  sizes = next((s for s in known if s is not None and any(s)), None)
  if sizes is None:
    return [1.0] * 3, ''
  side = next(s for s in reversed(sizes) if s)  # for an axis without size: as if voxels were cubes
  return [s or side for s in reversed(sizes)], 'nm'


def _shown_type(dtype: np.dtype, *, segments: bool) -> np.dtype:
  """As what it is sent: segments are unsigned, for meshes; images a type that WebGL has."""
  if segments:
    return np.dtype(f'u{dtype.itemsize}')
  if dtype.kind == 'b':
    return np.dtype('u1')
  return dtype if dtype.name in SHOWN_AS_THEY_ARE else np.dtype('f4')


def _pixels(neuroglancer: ModuleType, source: Any, array: _Array, *, number: int) -> Any:
  """The image itself, number 0, or what lies over it."""
  opacity = {'opacity': 0.5} if number else {}
  if len(array.shape) == 4:
    return neuroglancer.ImageLayer(source=source, shader=COLOUR, **opacity)
  low, high = np.percentile(array.sample().astype(array.dtype), CONTRAST).tolist()
  if array.dtype.kind != 'f':
    low, high = math.floor(low), math.ceil(high)
  shown = [low, high if high > low else low + 1]
  tint = colours_lib.PALETTE[number % len(colours_lib.PALETTE)]
  shader = TINT.format(tint) if number else GREY
  controls = {'normalized': {'range': shown}}
  return neuroglancer.ImageLayer(source=source, shader=shader, shader_controls=controls, **opacity)


def _segments(neuroglancer: ModuleType, source: Any, array: _Array, legend: Legend | None) -> Any:
  colours = dict(enumerate(colours_lib.PALETTE, 1))
  options = {}
  if legend is not None and set(np.unique(array.sample()).tolist()) <= {0, *legend}:
    colours = {value: colour for value, (_, colour) in legend.items()}
    options['segments'] = [value for value in legend if value]
  if math.prod(array.shape) > MOST_MESHED:
    source = neuroglancer.LayerDataSource(url=source, subsources={'meshes': False})
  return neuroglancer.SegmentationLayer(source=source, segment_colors=colours, **options)
