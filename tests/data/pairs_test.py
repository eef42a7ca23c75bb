"""Images and labels: who belongs to whom, and which of them are used."""

import numpy as np
import pytest
from data_support import open_split, plain, write_folder, write_stack

from emseg_jax.config import Data, Phantom, Source, Task
from emseg_jax.data import pairs
from emseg_jax.data.volumes import ArrayVolume
from emseg_jax.data.writers import write_like
from emseg_jax.errors import DataError


def names(split):
  return [
    (s.name, s.label_volume.names[s.label_index] if s.label_volume else None)
    for s in split.sections
  ]


def open_folders(tmp_path, image_names, label_names):
  """Two folders in which the file number i of each list is filled with the value i."""
  images = {name: plain(i) for i, name in enumerate(image_names)}
  labels = {name: plain(0) for name in label_names}
  return open_split(
    Source(
      images=write_folder(tmp_path / 'images', images),
      labels=write_folder(tmp_path / 'labels', labels),
    )
  )


@pytest.mark.parametrize(
  ('image_names', 'label_names', 'expected'),
  [
    (['b', 'a'], ['a', 'b'], [('a', 'a'), ('b', 'b')]),
    (['Cell_A', 'cell_b'], ['CELL_B', 'cell_a'], [('Cell_A', 'cell_a'), ('cell_b', 'CELL_B')]),
    (['img_2', 'img_10'], ['label_10', 'label_2'], [('img_2', 'label_2'), ('img_10', 'label_10')]),
    (['img_001'], ['1_mask'], [('img_001', '1_mask')]),
    # All numbers count: slice 1 of tile 2 is not slice 2 of tile 1.
    (['t1_2', 't2_1'], ['m2_1', 'm1_2'], [('t1_2', 'm1_2'), ('t2_1', 'm2_1')]),
    (['image'], ['mask'], [('image', 'mask')]),  # one each, no numbers
  ],
)
def test_folders_are_matched_by_name_or_else_by_number(
  tmp_path, image_names, label_names, expected
):
  assert names(open_folders(tmp_path, image_names, label_names)) == expected


@pytest.mark.parametrize(
  ('image_names', 'label_names', 'alone'),
  [
    (['a', 'b', 'c'], ['a', 'c'], 'partner: b'),
    (['a'], ['a', 'b'], 'partner: b'),
    # Matched by number, so it is the number without a partner that is named.
    (['img_1', 'img_2', 'img_3'], ['label_1', 'label_3'], 'partner: img_2'),
    (['img_1', 'img_2'], ['label_1', 'label_3'], 'partner: img_2, label_3'),
    # Two labels could be meant by each image.
    (['img_1'], ['a_1', 'b_1'], 'partner: img_1, a_1, b_1'),
    (['x', 'y'], ['u', 'v'], 'partner: x, y, u'),
  ],
)
def test_what_has_no_partner_is_named(tmp_path, image_names, label_names, alone):
  with pytest.raises(DataError, match='do not match') as caught:
    open_folders(tmp_path, image_names, label_names)
  text = str(caught.value)
  assert text.endswith(alone)
  assert f'{tmp_path}/images' in text
  assert f'{tmp_path}/labels' in text
  assert f'{len(label_names)} labels' in text


def test_stacks_are_matched_by_slice(tmp_path):
  images = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 8), np.uint8)
  split = open_split(
    Source(
      images=write_stack(tmp_path / 'image.tif', images),
      labels=write_stack(tmp_path / 'label.tif', images % 2),
    )
  )
  for i in range(5):
    assert split.image(i)[0, 0] == i
    assert split.label(i)[0, 0] == i % 2


def test_a_folder_of_labels_belongs_to_a_stack_in_natural_order(tmp_path):
  images = np.zeros((11, 6, 8), np.uint8)
  labels = {f'z{i}': plain(int(i == 10)) for i in range(11)}
  split = open_split(
    Source(
      images=write_stack(tmp_path / 'image.tif', images),
      labels=write_folder(tmp_path / 'labels', labels),
    )
  )
  # z10 comes last, not behind z1.
  assert [int(split.label(i)[0, 0]) for i in range(11)] == [0] * 10 + [1]


def test_stacks_of_unequal_length_name_both_files(tmp_path):
  source = Source(
    images=write_stack(tmp_path / 'image.tif', np.zeros((5, 6, 8), np.uint8)),
    labels=write_stack(tmp_path / 'label.tif', np.zeros((4, 6, 8), np.uint8)),
  )
  with pytest.raises(DataError, match=r'label\.tif: has 4 sections but .*image\.tif has 5'):
    open_split(source)


def test_a_label_of_another_size_names_both_files_and_both_sizes(tmp_path):
  source = Source(
    images=write_folder(tmp_path / 'images', {'a': plain(0), 'b': plain(0)}),
    labels=write_folder(tmp_path / 'labels', {'a': plain(0), 'b': plain(0, (6, 9))}),
  )
  with pytest.raises(DataError, match=r'labels, b: label is 6 x 9 .*image b is 6 x 8'):
    open_split(source)


def test_images_of_one_folder_may_have_any_sizes(tmp_path):
  shapes = [(6, 8), (3, 20), (11, 1)]
  named = {f's{i}': plain(1, shape) for i, shape in enumerate(shapes)}
  split = open_split(
    Source(
      images=write_folder(tmp_path / 'images', named),
      labels=write_folder(tmp_path / 'labels', named),
    )
  )
  assert [s.shape for s in split.sections] == shapes
  assert [split.image(i).shape for i in range(3)] == shapes
  assert [split.label(i).shape for i in range(3)] == shapes


@pytest.mark.parametrize(
  ('slices', 'expected'),
  [(None, [0, 1, 2, 3, 4]), ('1:3', [1, 2]), ('-2:', [3, 4]), ('::2', [0, 2, 4]), ('3:99', [3, 4])],
)
def test_slices_choose_sections_in_the_order_of_the_stack(tmp_path, slices, expected):
  stack = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 8), np.uint8)
  path = write_stack(tmp_path / 'stack.tif', stack)
  split = open_split(Source(images=path, labels=path, slices=slices), classes=tuple('abcde'))
  assert [int(image[0, 0]) for image in split.images()] == expected
  assert [int(split.label(i)[0, 0]) for i in range(len(split))] == expected
  assert split.sections[0].name == f'stack[{expected[0]:03d}]'


def test_slices_that_leave_nothing_are_an_error(tmp_path):
  path = write_stack(tmp_path / 'stack.tif', np.zeros((5, 6, 8), np.uint8))
  with pytest.raises(DataError, match=r'stack\.tif: slices=7: leaves none of its 5'):
    open_split(Source(images=path, labels=path, slices='7:'))
  with pytest.raises(DataError, match='phantom-3: slices=9: leaves none of its 2'):
    open_split(Source(phantom=Phantom(count=2, size=(32, 32), seed=3), slices='9:'))


@pytest.mark.parametrize(
  ('fraction', 'slices', 'expected'),
  [
    (1.0, None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    (0.3, None, [0, 1, 2]),
    (0.29, None, [0, 1, 2]),  # 2.9: the nearest
    (0.01, None, [0]),  # never none
    (0.5, '2:8', [2, 3, 4]),  # of the sections that are left
    (0.5, '::3', [0, 3]),  # of 0, 3, 6, 9
  ],
)
def test_a_fraction_takes_the_first_of_the_chosen_sections(tmp_path, fraction, slices, expected):
  stack = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 8), np.uint8)
  path = write_stack(tmp_path / 'stack.tif', stack)
  split = open_split(Source(images=path, slices=slices, fraction=fraction))
  assert [int(image[0, 0]) for image in split.images()] == expected


def test_sections_carry_the_weight_of_their_source():
  sources = [Source(phantom=Phantom(count=2, size=(32, 32)), weight=w) for w in (1.0, 2.5)]
  assert [s.weight for s in open_split(*sources).sections] == [1, 1, 2.5, 2.5]


def test_sources_are_joined_in_order(tmp_path):
  first = write_stack(tmp_path / 'one.tif', np.zeros((2, 6, 8), np.uint8))
  second = write_folder(tmp_path / 'two', {'z': plain(1)})
  split = open_split(Source(images=first, labels=first), Source(images=second, labels=second))
  assert [s.name for s in split.sections] == ['one[000]', 'one[001]', 'z']
  assert len(split) == 3


def test_the_phantom_needs_no_file_and_brings_its_labels():
  source = Source(phantom=Phantom(count=2, size=(48, 40), seed=3))
  split = open_split(source, classes=('cytoplasm', 'membrane', 'mitochondrion'))
  assert names(split)[1] == ('phantom-3[001]', 'phantom-3[001]')
  assert split.image(0).shape == split.label(0).shape == (48, 40)
  assert set(np.unique(split.label(0))) <= {0, 1, 2}


def phantom_labels(**options):
  """Labels of a phantom, an array [Z, Y, X] per volume."""
  source = Source(phantom=Phantom(**{'count': 2, 'size': (40, 48), 'depth': 6} | options))
  split = open_split(source, classes=('cytoplasm', 'membrane', 'mitochondrion'))
  found = {}
  for index, section in enumerate(split.sections):
    found.setdefault(section.image_volume, []).append(split.label(index))
  return [np.stack(sections) for sections in found.values()]


def test_a_phantom_with_depth_is_volumes_of_continuous_tissue():
  volumes = phantom_labels()
  assert [v.shape for v in volumes] == [(6, 40, 48)] * 2
  for volume in volumes:
    neighbours = (volume[1:] == volume[:-1]).mean()
    assert neighbours > (volume[3:] == volume[:-3]).mean() > 0.5
  unrelated = np.stack(phantom_labels(depth=None, count=6)[0])
  assert (unrelated[1:] == unrelated[:-1]).mean() < neighbours


def test_every_phantom_volume_is_another_one_and_always_the_same():
  volumes = [*phantom_labels(seed=0), *phantom_labels(seed=1)]
  for i, one in enumerate(volumes):
    assert all(not np.array_equal(one, other) for other in volumes[:i])
  np.testing.assert_array_equal(phantom_labels(seed=1)[1], volumes[3])


def test_slices_and_fraction_are_those_of_every_phantom_volume():
  phantom = Phantom(count=2, size=(32, 32), depth=6, seed=5)
  split = open_split(Source(phantom=phantom, slices='1:5', fraction=0.5))
  assert [s.name for s in split.sections] == [
    'phantom-5-0[001]',
    'phantom-5-0[002]',
    'phantom-5-1[001]',
    'phantom-5-1[002]',
  ]


def test_images_without_labels_can_be_read_but_have_no_label(tmp_path):
  path = write_stack(tmp_path / 'image.tif', np.zeros((3, 6, 8), np.uint8))
  split = open_split(Source(images=path))
  assert len(split) == 3
  with pytest.raises(DataError, match='has no label; set labels'):
    split.label(0)


def test_opening_reads_no_pixels(tmp_path):
  images, labels = (
    write_folder(tmp_path / n, {'a': plain(0, (64, 64))}) for n in ('images', 'labels')
  )
  for folder in (images, labels):
    path = f'{folder}/a.png'
    with open(path, 'rb') as file:
      head = file.read(40)
    with open(path, 'wb') as file:
      file.write(head)
  split = open_split(Source(images=images, labels=labels))
  with pytest.raises(DataError, match=r'images/a\.png'):
    split.image(0)


def test_sections_of_a_volume_brought_to_another_voxel_size_keep_their_labels(tmp_path):
  image = np.repeat(np.arange(4, dtype=np.uint8), 6 * 8).reshape(4, 6, 8)
  paths = [
    write_like(ArrayVolume(a, voxel_size_zyx=size), tmp_path / name, iter(a))
    for name, a, size in (('i.h5', 10 * image, (8.0, 4.0, 4.0)), ('l.h5', image % 2, None))
  ]
  source = Source(images=str(paths[0]), labels=str(paths[1]), slices='2:')
  data = Data(voxel_size=(4.0, 8.0, 4.0))
  split = pairs.open_split([source], task=Task(classes=('a', 'b')), data=data)
  # Twice the sections, half the rows; the label has no voxel size of its own.
  assert len(split) == 6
  assert split.image(0).shape == split.label(0).shape == (3, 8)
  assert [int(split.label(i)[0, 0]) for i in range(6)] == [1, 1, 0, 0, 1, 1]
  assert [int(split.image(i)[0, 0]) for i in range(6)] == [8, 12, 18, 22, 28, 30]
