"""Images and labels: who belongs to whom, what label values mean, and the cache behind a split."""

import collections
import concurrent.futures
import shutil
import time

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from emseg_jax.config import Data, Phantom, Source, Task
from emseg_jax.data import normalise, pairs, volumes
from emseg_jax.errors import DataError


def write_folder(folder, named):
  """Writes {name: array} as PNGs."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, array in named.items():
    Image.fromarray(array).save(folder / f'{name}.png')
  return str(folder)


def plain(value, shape=(6, 8)):
  return np.full(shape, value, np.uint8)


def write_stack(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  tifffile.imwrite(path, array, photometric='minisblack')
  return str(path)


def open_split(*sources, classes=('a', 'b'), mapping=None, ignore_value=None, cache_gb=1.0):
  return pairs.open_split(
    sources,
    task=Task(classes=classes, ignore_value=ignore_value),
    data=Data(label_mapping=mapping, cache_gb=cache_gb),
  )


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


# ---- matching -----------------------------------------------------------------------------------


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


# ---- label values -------------------------------------------------------------------------------


def mapped(raw, *, classes=2, mapping=None, ignore_value=None):
  return pairs.map_labels(
    np.asarray(raw),
    num_classes=classes,
    label_mapping=mapping,
    ignore_value=ignore_value,
    name='label.png',
  )


def test_without_a_mapping_values_are_class_indices():
  out = mapped([[0, 1], [2, 1]], classes=3)
  assert out.dtype == np.uint8
  np.testing.assert_array_equal(out, [[0, 1], [2, 1]])


def test_a_mapping_turns_file_values_into_classes_many_to_one():
  out = mapped([[0, 32, 64, 255]], mapping={0: 1, 32: 1, 64: 1, 255: 0})
  np.testing.assert_array_equal(out, [[1, 1, 1, 0]])


def test_the_ignored_value_becomes_255():
  out = mapped([[0, 1, 99]], ignore_value=99)
  np.testing.assert_array_equal(out, [[0, 1, pairs.IGNORED]])
  out = mapped([[7, -1]], mapping={7: 1}, ignore_value=-1)
  np.testing.assert_array_equal(out, [[1, 255]])


@pytest.mark.parametrize('dtype', [bool, np.int8, np.uint16, np.int32, np.uint64, np.float32])
def test_any_type_that_holds_whole_numbers_is_a_label(dtype):
  out = mapped(np.array([[0, 1], [1, 0]], dtype))
  assert out.dtype == np.uint8
  np.testing.assert_array_equal(out, [[0, 1], [1, 0]])


@settings(max_examples=50, deadline=None)
@given(
  st.dictionaries(st.integers(-(2**31), 2**31 - 1), st.integers(0, 254), min_size=1, max_size=9),
  st.data(),
)
def test_a_mapping_is_applied_value_by_value(mapping, data):
  values = st.lists(st.sampled_from(sorted(mapping)), min_size=6, max_size=6)
  raw = np.array(data.draw(values)).reshape(2, 3)
  expected = [[mapping[int(v)] for v in row] for row in raw]
  np.testing.assert_array_equal(mapped(raw, classes=255, mapping=mapping), expected)


def test_a_value_outside_the_mapping_is_named_with_the_allowed_ones():
  with pytest.raises(DataError, match=r'label\.png: label value 7 .*allowed: \[0, 1, 99\]'):
    mapped([[0, 7]], ignore_value=99)
  with pytest.raises(DataError, match=r'label value 2, 3, 4, 5, 6, \.\.\. is not'):
    mapped([range(9)])


def test_a_mask_of_0_and_255_is_answered_with_the_mapping_it_needs():
  with pytest.raises(DataError, match=r'set data\.label_mapping to \{"0": 0, "255": 1\}'):
    mapped([[0, 255]])
  # An all-foreground section says the same of the data set.
  with pytest.raises(DataError, match=r'set data\.label_mapping'):
    mapped([[255, 255]])
  for raw, options in [
    ([[0, 254]], {}),
    ([[0, 1, 255]], {}),
    ([[0, 255]], {'classes': 3}),
    ([[0, 255]], {'mapping': {0: 0}}),
  ]:
    with pytest.raises(DataError) as caught:
      mapped(raw, **options)
    assert 'set data.label_mapping' not in str(caught.value)


def test_colour_and_fractions_are_no_labels():
  with pytest.raises(DataError, match=r'label\.png: the label has 3 colour channels'):
    mapped(np.zeros((2, 2, 3), np.uint8))
  with pytest.raises(DataError, match=r'label\.png: the label has fractional values'):
    mapped(np.array([[0.0, 0.5]]))


def test_a_bad_label_in_a_folder_names_the_folder_and_the_section(tmp_path):
  split = open_split(
    Source(
      images=write_folder(tmp_path / 'images', {'a': plain(0), 'b': plain(0)}),
      labels=write_folder(tmp_path / 'labels', {'a': plain(0), 'b': plain(3)}),
    )
  )
  split.label(0)
  with pytest.raises(DataError, match=r'labels, b: label value 3'):
    split.label(1)


def test_labels_of_a_split_are_mapped_with_the_configuration(tmp_path):
  label = np.array([[0, 255, 7], [255, 0, 7]], np.uint8)
  folder = write_folder(tmp_path / 'x', {'a': label})
  split = open_split(Source(images=folder, labels=folder), mapping={0: 1, 255: 0}, ignore_value=7)
  np.testing.assert_array_equal(split.label(0), [[1, 0, 255], [0, 1, 255]])


# ---- cache --------------------------------------------------------------------------------------


class CountingVolume(volumes.ArrayVolume):
  """Counts how often each section is decoded."""

  def __init__(self, array):
    super().__init__(array)
    self.reads = [0] * len(array)

  def _read(self, index):
    self.reads[index] += 1
    return super()._read(index)


def counting_split(*, sections, cache_bytes, size=(10, 10)):
  number = np.arange(sections, dtype=np.uint8)[:, None, None] * np.ones((1, *size), np.uint8)
  image, label = CountingVolume(number), CountingVolume(number % 2)
  split = pairs.Split(
    [pairs.Section(name, image, i, label, i) for i, name in enumerate(image.names)],
    num_classes=2,
    label_mapping=None,
    ignore_value=None,
    cache_bytes=cache_bytes,
  )
  return split, image, label


def test_a_cached_section_is_read_once():
  split, image, label = counting_split(sections=3, cache_bytes=600)  # 3 images, 3 labels of 100 B
  for _ in range(3):
    for i in range(3):
      split.image(i)
      split.label(i)
  assert image.reads == label.reads == [1, 1, 1]


def test_the_least_recently_used_section_leaves_first():
  split, image, _ = counting_split(sections=3, cache_bytes=200)
  for i in (0, 1, 0, 2, 0, 1):  # 2 pushes out 1, because 0 was used since
    split.image(i)
  assert image.reads == [1, 2, 1]


@pytest.mark.parametrize('limit', [0, 99, 100, 350])
def test_the_cache_never_holds_more_than_its_limit(limit):
  split, _, _ = counting_split(sections=6, cache_bytes=limit)
  for i in (0, 3, 1, 5, 4, 2, 0):
    assert split.image(i)[0, 0] == i
    assert split.label(i)[0, 0] == i % 2
    held = sum(array.nbytes for array in split._cache.values())
    assert held == split._cached_bytes <= limit


class YieldingDict(collections.OrderedDict):
  """Lets other threads run between a look-up and what follows it, so that a missing lock shows."""

  def __contains__(self, key):
    found = super().__contains__(key)
    time.sleep(1e-5)
    return found


def test_many_threads_on_a_small_cache_read_the_right_sections():
  split, _, _ = counting_split(sections=16, cache_bytes=500)
  split._cache = YieldingDict()

  def read(seed):
    for i in np.random.default_rng(seed).integers(0, 16, 50):
      assert (split.image(i) == i).all()
      assert (split.label(i) == i % 2).all()
    return seed

  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    assert list(pool.map(read, range(16))) == list(range(16))
  assert split._cached_bytes == sum(array.nbytes for array in split._cache.values()) <= 500


def test_what_the_cache_hands_out_cannot_be_changed():
  split, _, _ = counting_split(sections=1, cache_bytes=1000)
  with pytest.raises(ValueError, match='read-only'):
    split.image(0)[0, 0] = 9


def test_reading_leaves_the_callers_array_writable():
  array = np.zeros((1, 4, 4), np.uint8)
  pairs.Split.of_images(volumes.ArrayVolume(array)).image(0)
  array[0, 0, 0] = 1
  assert array.flags.writeable


# ---- statistics and fingerprint -----------------------------------------------------------------


def test_statistics_are_those_of_the_stack_or_of_the_single_image(tmp_path):
  stack = np.arange(3, dtype=np.uint8)[:, None, None] * np.full((1, 6, 8), 10, np.uint8)
  one = open_split(Source(images=write_stack(tmp_path / 'stack.tif', stack), slices='0:1'))
  assert one.volume_statistics(0).mean == 10  # of 0, 10 and 20, also of the sections left out
  folder = write_folder(tmp_path / 'images', {f'z{i}': stack[i] for i in range(3)})
  single = open_split(Source(images=folder))
  assert [single.volume_statistics(i).mean for i in range(3)] == [0, 10, 20]


def test_volumes_of_the_same_name_keep_statistics_of_their_own():
  arrays = [np.full((2, 4, 4), value, np.uint8) for value in (10, 200)]
  same = [volumes.ArrayVolume(array, name='memory') for array in arrays]
  split = pairs.Split(
    [pairs.Section('s', volume, i, None, i) for volume in same for i in range(2)],
    num_classes=2,
    label_mapping=None,
    ignore_value=None,
    cache_bytes=0,
  )
  assert [split.volume_statistics(i).mean for i in range(4)] == [10, 10, 200, 200]


def test_sections_of_the_phantom_are_unrelated_so_each_has_its_own_statistics():
  split = open_split(Source(phantom=Phantom(count=2, size=(32, 32), seed=1)))
  means = [split.volume_statistics(i).mean for i in range(2)]
  assert means == pytest.approx([split.image(i).mean() for i in range(2)])


def test_the_network_sees_the_normalised_section(tmp_path):
  stack = np.arange(96, dtype=np.uint8).reshape(2, 6, 8)
  split = open_split(Source(images=write_stack(tmp_path / 'stack.tif', stack)))
  n = normalise.fit('per_volume', 1, split.images())
  out = split.network_image(1, n)
  np.testing.assert_allclose(out[..., 0], (stack[1] - 47.5) / np.arange(96).std(), rtol=1e-4)
  assert split.network_image(1, normalise.fit('scale', 3, split.images())).shape == (6, 8, 3)


def test_copied_data_have_the_same_fingerprint(tmp_path):
  rng = np.random.default_rng(0)
  named = {f'z{i}': rng.integers(0, 2, (6, 8), dtype=np.uint8) for i in range(4)}
  write_folder(tmp_path / 'here' / 'x', named)
  shutil.copytree(tmp_path / 'here', tmp_path / 'there' / 'deep')

  def fingerprint(folder):
    return open_split(Source(images=str(folder / 'x'), labels=str(folder / 'x'))).fingerprint()

  original = fingerprint(tmp_path / 'here')
  assert fingerprint(tmp_path / 'there' / 'deep') == original
  assert fingerprint(tmp_path / 'here') == original


def _array_split(images, labels, name='memory'):
  image, label = (volumes.ArrayVolume(a, name=name) for a in (images, labels))
  return pairs.Split(
    [pairs.Section(n, image, i, label, i) for i, n in enumerate(image.names)],
    num_classes=2,
    label_mapping=None,
    ignore_value=None,
    cache_bytes=0,
  )


@pytest.mark.parametrize('what', ['image', 'label', 'name', 'order', 'count', 'type'])
def test_changed_data_have_another_fingerprint(what):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 255, (8, 6, 8), dtype=np.uint8)
  labels = rng.integers(0, 2, (8, 6, 8), dtype=np.uint8)
  original = _array_split(images, labels).fingerprint()
  assert _array_split(images.copy(), labels.copy()).fingerprint() == original
  changed = {'image': images.copy(), 'label': labels.copy()}
  changed['image'][5, 3, 2] ^= what == 'image'  # a single pixel
  changed['label'][5, 3, 2] ^= what == 'label'
  order = {'order': [1, 0, 2, 3, 4, 5, 6, 7], 'count': range(7)}.get(what, range(8))
  arrays = [array[list(order)] for array in changed.values()]
  if what == 'type':
    arrays[0] = arrays[0].astype(np.uint16)
  split = _array_split(*arrays, name='other' if what == 'name' else 'memory')
  assert split.fingerprint() != original


def test_a_fingerprint_reads_at_most_64_sections():
  images, labels = np.zeros((200, 4, 4), np.uint8), np.zeros((200, 4, 4), np.uint8)
  image, label = CountingVolume(images), CountingVolume(labels)
  split = pairs.Split(
    [pairs.Section(n, image, i, label, i) for i, n in enumerate(image.names)],
    num_classes=2,
    label_mapping=None,
    ignore_value=None,
    cache_bytes=0,
  )
  split.fingerprint()
  assert sum(image.reads) == sum(label.reads) == 64
  assert image.reads[0] == image.reads[-1] == 1
