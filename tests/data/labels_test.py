"""What values in label files mean, and which are refused."""

import numpy as np
import pytest
from data_support import open_split, plain, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from emseg_jax.config import Data, Labels, Source, Task
from emseg_jax.data import labels
from emseg_jax.errors import DataError


def mapped(raw, *, classes=2, mapping=None, ignore_value=None):
  return labels.map_labels(
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
  np.testing.assert_array_equal(out, [[0, 1, labels.IGNORED]])
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


# ---- what is done before the mapping ------------------------------------------------------------


def test_one_of_many_values_is_a_class_and_all_others_are_another():
  raw = np.array([[0, 7], [3, 500]], np.uint16)
  mapping = {3: 1, 7: 0}
  out = labels.map_labels(
    raw, num_classes=2, label_mapping=mapping, ignore_value=500, other=0, name=''
  )
  np.testing.assert_array_equal(out, [[0, 0], [1, labels.IGNORED]])


def test_colours_of_a_legend_become_values():
  raw = np.array([[[255, 0, 0], [0, 0, 0]], [[0, 128, 255], [255, 0, 0]]], np.uint8)
  out = labels.decode_colours(raw, {'#FF0000': 5, '#000000': 0, '#0080ff': 9}, name='label.png')
  np.testing.assert_array_equal(out, [[5, 0], [9, 5]])


def test_a_blended_colour_is_named():
  raw = np.full((2, 2, 3), 17, np.uint8)
  with pytest.raises(DataError, match=r'label\.png: #111111 is not in data\.labels\.colours'):
    labels.decode_colours(raw, {'#000000': 0}, name='label.png')
  with pytest.raises(DataError, match=r'label\.png: is uint8 grey, but data\.labels\.colours'):
    labels.decode_colours(raw[..., 0], {'#000000': 0}, name='label.png')


def test_instances_have_a_boundary_where_another_value_is_near():
  # Two touching instances with ids beyond 32 bits, and background on the right.
  a, b = 2**40, 2**40 + 1
  raw = np.array([[a, a, a, b, b, b, 0, 0]] * 3, np.uint64)
  out = labels.part_instances(raw, width=1, name='')
  np.testing.assert_array_equal(out, [[1, 1, 2, 2, 1, 2, 0, 0]] * 3)
  wide = labels.part_instances(raw, width=2, name='')
  np.testing.assert_array_equal(wide, [[1, 2, 2, 2, 2, 2, 0, 0]] * 3)


def test_the_boundary_reaches_corners_and_leaves_the_border_of_the_image_open():
  raw = np.ones((4, 4), np.int32)
  raw[0, 0] = 0
  expected = np.ones((4, 4), np.uint8)
  expected[:2, :2] = 2
  expected[0, 0] = 0
  np.testing.assert_array_equal(labels.part_instances(raw, width=1, name=''), expected)


@given(
  st.integers(1, 3),
  st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=5, max_size=5),
)
@settings(max_examples=50, deadline=None)
def test_the_boundary_is_what_a_search_of_every_window_finds(width, rows):
  raw = np.array(rows)
  out = labels.part_instances(raw, width=width, name='')
  for (y, x), value in np.ndenumerate(raw):
    window = raw[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
    expected = 0 if value == 0 else 2 if (window != value).any() else 1
    assert out[y, x] == expected


def test_a_split_reads_instances_colours_and_masks(tmp_path):
  ids = np.array([[[3, 3, 3, 9, 9, 9]] * 6], np.uint8)
  colours = np.zeros((6, 6, 3), np.uint8)
  colours[:, 3:] = 255, 0, 0
  mask = np.ones((6, 6), np.uint8)
  mask[0] = 0
  folders = {
    name: write_folder(tmp_path / name, {'a': array})
    for name, array in (('image', plain(0, (6, 6))), ('ids', ids[0]), ('rgb', colours))
  }
  folders['mask'] = write_folder(tmp_path / 'mask', {'a': mask})

  def read(which, **options):
    source = Source(images=folders['image'], labels=folders[which], mask=folders['mask'])
    return open_split(source, classes=('in', 'edge'), **options).label(0)

  membranes = read('ids', labels=Labels(kind='instances'), mapping={1: 0, 2: 1})
  np.testing.assert_array_equal(membranes[0], [labels.IGNORED] * 6)
  np.testing.assert_array_equal(membranes[1:], [[0, 0, 1, 1, 0, 0]] * 5)
  named = read('rgb', labels=Labels(colours={'#000000': 0, '#ff0000': 1}))
  np.testing.assert_array_equal(named[1:], [[0, 0, 0, 1, 1, 1]] * 5)


def test_a_mask_of_another_size_is_refused(tmp_path):
  image = write_folder(tmp_path / 'image', {'a': plain(0)})
  mask = write_folder(tmp_path / 'mask', {'a': plain(0, (6, 9))})
  with pytest.raises(DataError, match=r'mask, a: mask is 6 x 9 .*image a is 6 x 8'):
    open_split(Source(images=image, labels=image, mask=mask))


AFFINITIES = Task(activation='affinities', offsets=((1, 0), (0, 1)))


def ids_of(raw, *, ignore_value=None):
  return labels.instance_ids(np.asarray(raw), ignore_value=ignore_value, name='ids.tif')


def test_instance_ids_stay_as_they_are():
  assert ids_of(np.array([[0, 7, 60_000]], np.uint16)).dtype == np.int32
  large = ids_of(np.array([[0, 2**40, 3]], np.uint64))
  assert (large.dtype, large.tolist()) == (np.int64, [[0, 2**40, 3]])
  assert ids_of([[1.0, 2.0]]).tolist() == [[1, 2]]
  rules = labels.Rules(AFFINITIES, Data())
  assert rules.apply(np.array([[0, 255]], np.uint8), name='x').tolist() == [[0, 255]]


def test_an_ignored_id_is_no_id():
  assert ids_of([[0, 4, 9]], ignore_value=9).tolist() == [[0, 4, labels.NO_ID]]
  assert ids_of([[-5, 4]], ignore_value=-5).tolist() == [[labels.NO_ID, 4]]
  assert ids_of([[0, 4]], ignore_value=0).tolist() == [[labels.NO_ID, 4]]


@pytest.mark.parametrize(
  ('raw', 'message'),
  [
    (np.array([[3, -2]]), 'instance id -2 is negative'),
    (np.array([[2**63]], np.uint64), f'instance id {2**63} is too large'),
    (np.array([[0.5]]), 'fractional'),
    (np.zeros((2, 2, 3), np.uint8), '3 colour channels'),
  ],
)
def test_what_is_no_id_is_refused(raw, message):
  with pytest.raises(DataError, match=f'ids.tif.*{message}'):
    ids_of(raw)


@given(hnp.arrays(np.int64, (3, 4), elements=st.sampled_from([-1, 0, 1, 5, 2**40])))
@settings(deadline=None)
def test_numbers_made_small_tell_the_same_ids_apart(ids):
  found = labels.renumbered(ids)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found[..., None, None] == found, ids[..., None, None] == ids)
  np.testing.assert_array_equal(found <= 0, ids <= 0)
  np.testing.assert_array_equal(found[ids <= 0], ids[ids <= 0])
  assert set(found[found > 0]) == set(range(1, found.max() + 1))


@pytest.mark.parametrize(
  ('label', 'shown'),
  [
    (np.array([0, 1, 254, 255], np.uint8), [0, 1, 1, -1]),
    (np.array([0, 1, 255, -1, 2**20], np.int32), [0, 1, 1, -1, 1]),
  ],
)
def test_the_type_tells_what_is_ignored(label, shown):
  assert labels.ignored(label).tolist() == [s < 0 for s in shown]
  assert labels.foreground(label).tolist() == [s > 0 for s in shown]
  hidden = labels.hide(label, np.zeros(len(label), bool))
  assert hidden.dtype == label.dtype
  assert labels.ignored(hidden).all()
