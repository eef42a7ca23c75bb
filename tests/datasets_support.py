"""Published data sets in small: their file layouts, full in number and tiny in size."""

import contextlib
import dataclasses
import functools
import http.server
import threading

import numpy as np
import tifffile
from PIL import Image

from emseg_jax.data import datasets

SHAPE = (8, 12)
TILE = 4  # sem_material's images are 4 x 4 tiles, as 8192 is 4 x 2048

# Examples per split. All but the last two are those of architectures.md: 1.5 (PmcaNet: 18/6/6,
# 96/32/32, 1248/416/416), 2 and 4.4 (EPFL: two stacks of 165, the last 10 % of one validates), 3
# (SegET: 60 and 16 of 76), 5.2 (Res-CR-Net: 8/4 and 10/6). Kasthuri++ as in Casser et al. 2020,
# SNEMI3D 100 labelled sections as in its Zenodo record.
COUNTS = {
  'isbi2012': {'train': 18, 'validation': 6, 'test': 6},
  'cardiac': {'train': 96, 'validation': 32, 'test': 32},
  'sem_material': {'train': 1248, 'validation': 416, 'test': 416},
  'epfl/lucchi': {'train': 149, 'validation': 16, 'test': 165},
  'epfl/lucchipp': {'train': 149, 'validation': 16, 'test': 165},
  'ctl_synapse': {'train': 60, 'validation': 16},
  'rat_liver': {'train': 8, 'validation': 4},
  'muscle_fm': {'train': 10, 'validation': 6},
  'kasthuripp': {'train': 85, 'test': 75},
  'snemi3d': {'train': 80, 'validation': 20},
}


def variant_of(key):
  """'epfl/lucchi' -> its class and 'lucchi'."""
  name, _, variant = key.partition('/')
  return datasets.builder_class(name), variant


def shrink(monkeypatch, key, **changes):
  """Makes the data set expect SHAPE; `changes` are further fields of it."""
  cls, variant = variant_of(key)
  published = cls.VARIANTS[variant]
  tile = TILE if published.tile else None
  shape = (TILE, TILE) if tile else SHAPE
  splits = {k: dataclasses.replace(p, shape=shape) for k, p in published.splits.items()}
  small = dataclasses.replace(published, splits=splits, tile=tile, **changes)
  monkeypatch.setitem(cls.VARIANTS, variant, small)
  return small


def pixels(count, *, seed=0, shape=SHAPE, values=None):
  """Random [count, Y, X] uint8, of the given values only."""
  rng = np.random.default_rng(seed)
  return rng.choice(np.array(values or range(256), np.uint8), (count, *shape))


def write_stack(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  tifffile.imwrite(path, array, photometric='minisblack')
  return array


def write_folder(folder, array, pattern='{:03d}.png'):
  folder.mkdir(parents=True, exist_ok=True)
  for i, section in enumerate(array):
    Image.fromarray(section).save(folder / pattern.format(i))
  return array


def write(key, root):
  """Writes the data set in its published layout; returns {split: (images, {label: labels})}."""
  return LAYOUTS[key](root)


def _isbi2012(root):
  image = write_stack(root / 'train-volume.tif', pixels(30))
  label = write_stack(root / 'train-labels.tif', pixels(30, seed=1, values=(0, 255)))
  return _cut(
    image, {'label': label}, train=slice(18), validation=slice(18, 24), test=slice(24, 30)
  )


def _lucchi(root):
  image = write_stack(root / 'training.tif', pixels(165))
  label = write_stack(root / 'training_groundtruth.tif', pixels(165, seed=1, values=(0, 255)))
  test = write_stack(root / 'testing.tif', pixels(165, seed=2))
  truth = write_stack(root / 'testing_groundtruth.tif', pixels(165, seed=3, values=(0, 255)))
  parts = _cut(image, {'label': label}, train=slice(149), validation=slice(149, 165))
  return parts | {'test': (test, {'label': truth})}


def _casser(root, *, folder, train, test, values):
  """As the archive unpacks: labels are RGB, their names numbers without the images' prefix."""
  found = {}
  for split, count in (('Train', train), ('Test', test)):
    image = write_folder(root / folder / f'{split}_In', pixels(count, seed=count), 'mask{:04d}.png')
    label = pixels(count, seed=1, values=values)
    write_folder(root / folder / f'{split}_Out', np.stack([label] * 3, -1), '{}.png')
    found[split.lower()] = (image, {'label': label})
  return found


def _lucchipp(root):
  found = _casser(root, folder='Lucchi++', train=165, test=165, values=(0, 255))
  image, labels = found['train']
  return found | _cut(image, labels, train=slice(149), validation=slice(149, 165))


def _ctl_synapse(root):
  image = write_stack(root / 'image.tif', pixels(76))
  names = ('synapse', 'mts', 'centriole', 'granules', 'golgi')
  labels = {}
  for i, name in enumerate(names):  # signed masks, as MRC files of mode 0 hold them
    mask = pixels(76, seed=i + 1, values=(0, 255)).view(np.int8)
    labels[name] = write_stack(root / f'{name}.tif', mask).view(np.uint8)
  held_out = [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75]
  train = [i for i in range(76) if i not in held_out]
  return _cut(image, labels, train=train, validation=held_out)


def _snemi3d(root):
  image = write_stack(root / 'image' / 'train-input.tif', pixels(100))
  label = pixels(100, seed=1).astype(np.uint16) * 7
  write_stack(root / 'seg' / 'train-labels.tif', label)
  return _cut(image, {'label': label}, train=slice(80), validation=slice(80, 100))


def _folders(root, *, values, colour=False, shape=SHAPE, **counts):
  """ROOT/FOLDER/images and ROOT/FOLDER/labels."""
  found = {}
  for seed, (folder, count) in enumerate(counts.items()):
    image = pixels(count, seed=seed, shape=(*shape, 3) if colour else shape)
    write_folder(root / folder / 'images', image)
    label = write_folder(
      root / folder / 'labels', pixels(count, seed=seed, shape=shape, values=values)
    )
    found['validation' if folder == 'val' else folder] = (image, {'label': label})
  return found


def _sem_material(root):
  """Images of 4 x 4 tiles; a tile after the other in rows."""
  big = (4 * TILE, 4 * TILE)
  found = _folders(root, values=(0, 1, 2), shape=big, train=78, val=26, test=26)

  def tiles(array):
    rows = array.reshape(len(array), 4, TILE, 4, TILE).swapaxes(2, 3)
    return rows.reshape(-1, TILE, TILE)

  return {k: (tiles(i), {'label': tiles(labels['label'])}) for k, (i, labels) in found.items()}


def _cut(image, labels, **parts):
  return {split: (image[p], {k: v[p] for k, v in labels.items()}) for split, p in parts.items()}


LAYOUTS = {
  'isbi2012': _isbi2012,
  'cardiac': functools.partial(_folders, values=(0, 255), train=96, val=32, test=32),
  'sem_material': _sem_material,
  'epfl/lucchi': _lucchi,
  'epfl/lucchipp': _lucchipp,
  'ctl_synapse': _ctl_synapse,
  'rat_liver': functools.partial(_folders, values=(0, 1, 2), train=8, validation=4),
  'muscle_fm': functools.partial(
    _folders, values=(0, 1, 2, 3), colour=True, train=10, validation=6
  ),
  'kasthuripp': functools.partial(
    _casser, folder='Kasthuri++', train=85, test=75, values=(0, 2, 255)
  ),
  'snemi3d': _snemi3d,
}


@contextlib.contextmanager
def serve(folder):
  """Files of a folder over http on the loopback; yields its URL and the requested paths."""
  requested = []

  class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
      requested.append(self.path)
      super().do_GET()

    def log_message(self, *arguments):
      pass

  handler = functools.partial(Handler, directory=str(folder))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      yield f'http://127.0.0.1:{server.server_port}', requested
    finally:
      server.shutdown()
      thread.join()
