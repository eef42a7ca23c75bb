"""Figures of the report on hand-made arrays."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from emseg_jax import colours as colours_lib
from emseg_jax.errors import ConfigError, DataError
from emseg_jax.report import figures

# Okabe & Ito (2008): vermillion, sky blue, yellow; grey for what is not scored.
VERMILLION, SKY, YELLOW = (213, 94, 0, 255), (86, 180, 233, 255), (240, 228, 66, 255)
GREY, CLEAR = (128, 128, 128, 255), (0, 0, 0, 0)


def decode(uri: str) -> np.ndarray:
  header, data = uri.split(',')
  assert header == 'data:image/png;base64'
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert('RGBA'))


def make_case(**fields: np.ndarray) -> figures.Case:
  arrays = {
    'image': np.zeros((4, 4), np.uint8),
    'label': np.zeros((4, 4), np.int32),
    'weight': np.ones((4, 4), np.float32),
    'prediction': np.zeros((4, 4), np.int32),
  }
  return figures.Case('case', 0.5, 0.5, **{**arrays, **fields})


def test_error_map_has_one_colour_per_kind_of_error():
  # Class 0 is the common one. Row by row: label, prediction and what a reader calls it.
  label = np.array([[0, 0, 1, 2], [0, 0, 1, 2], [0, 0, 1, 2], [0, 9, 1, 2]])
  prediction = np.array([[0, 1, 0, 2], [0, 2, 1, 1], [0, 0, 2, 0], [1, 0, 1, 2]])
  weight = np.ones((4, 4))
  weight[3, :2] = 0  # one wrong, one with a label that is no class
  expected = [
    [CLEAR, VERMILLION, SKY, CLEAR],  # right, false, missed, right
    [CLEAR, VERMILLION, CLEAR, YELLOW],  # right, false, right, 2 taken for 1
    [CLEAR, CLEAR, YELLOW, SKY],  # right, right, 1 taken for 2, missed
    [GREY, GREY, CLEAR, CLEAR],  # not scored twice, right, right
  ]
  errors = figures.draw_errors(label, weight, prediction, common=0)
  np.testing.assert_array_equal(errors, np.array(expected))
  # What is embedded is what was drawn, pixel by pixel.
  uri, size = figures.png_uri(errors, longest=768)
  assert size == (4, 4)
  np.testing.assert_array_equal(decode(uri)[errors[..., 3] > 0], errors[errors[..., 3] > 0])
  np.testing.assert_array_equal(decode(uri)[..., 3], errors[..., 3])


def test_two_classes_never_give_a_wrong_class():
  rng = np.random.default_rng(0)
  label, prediction = rng.integers(0, 2, (2, 16, 16))
  errors = figures.draw_errors(label, np.ones((16, 16)), prediction, common=1)
  colours = {tuple(colour) for colour in errors.reshape(-1, 4).tolist()}
  assert colours == {CLEAR, VERMILLION, SKY}


def test_labels_are_tinted_but_the_common_class_is_clear_and_unscored_pixels_are_grey():
  classes = np.array([[0, 1], [1, 255]])
  tint = figures.draw_labels(
    classes, colours=('#0072b2', '#d55e00'), plain=0, weight=np.array([[1, 1], [1, 0]])
  )
  assert tint[0, 0, 3] == 0
  assert tuple(tint[0, 1, :3]) == (213, 94, 0)  # 0xd5, 0x5e, 0x00
  assert 0 < tint[0, 1, 3] < 255
  assert tuple(tint[1, 1, :3]) == (128, 128, 128)
  assert tint[1, 1, 3] > 0


def test_the_common_class_is_counted_on_scored_pixels_only():
  label = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
  weight = np.ones((4, 4))
  assert figures.most_common_class([make_case(label=label)], 2) == 0  # 11 against 5
  weight[:2] = 0
  assert figures.most_common_class([make_case(label=label, weight=weight)], 2) == 1  # 3 : 5


@pytest.mark.parametrize('field', ['label', 'prediction'])
def test_a_class_out_of_range_is_an_error_that_names_the_case(field: str):
  case = make_case(**{field: np.full((4, 4), 2)})
  with pytest.raises(DataError, match=f'case: {field} holds classes 2 to 2, .* 2 classes'):
    figures.most_common_class([case], 2)


def test_a_case_whose_arrays_differ_in_size_is_an_error():
  with pytest.raises(DataError, match=r'case: weight has shape \(4, 5\), the image \(4, 4\)'):
    make_case(weight=np.ones((4, 5)))


def test_an_image_of_four_channels_is_an_error():
  with pytest.raises(DataError, match=r'\(4, 4, 4\)'):
    make_case(image=np.zeros((4, 4, 4)))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32, np.float64])
def test_an_image_of_any_type_is_stretched_to_eight_bits(dtype: type):
  image = (10 + np.arange(100).reshape(10, 10)).astype(dtype)
  drawn = figures.draw_image(image)
  assert drawn.dtype == np.uint8
  assert drawn.min() == 0
  assert drawn.max() == 255
  # The middle of 10..109 lies in the middle of any symmetric stretch.
  assert abs(int(drawn[4, 9]) + int(drawn[5, 0]) - 255) <= 1


def test_pixels_that_are_not_finite_are_drawn_black():
  image = np.linspace(1.0, 2.0, 100, dtype=np.float32).reshape(10, 10)
  image[9, 9], image[9, 8] = np.nan, np.inf
  drawn = figures.draw_image(image)
  assert drawn[9, 9] == drawn[9, 8] == 0
  assert drawn[9, 7] == 255
  assert not figures.draw_image(np.full((3, 3), np.nan)).any()


def test_a_flat_image_and_one_with_a_single_bright_pixel_can_be_drawn():
  assert not figures.draw_image(np.full((8, 8), 7, np.uint8)).any()
  image = np.zeros((100, 100), np.uint8)  # both percentiles are 0
  image[5, 5] = 9
  assert figures.draw_image(image)[5, 5] == 255


def test_equal_channels_become_one_and_colour_stays():
  grey = np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4, 1), 3, axis=2)
  assert figures.draw_image(grey).shape == (4, 4)
  grey[0, 0, 1] = 200
  assert figures.draw_image(grey).shape == (4, 4, 3)


def test_large_pictures_are_reduced_and_overlays_gain_no_colours():
  overlay = np.zeros((20, 40, 4), np.uint8)
  overlay[:, ::2] = VERMILLION  # half of the pixels
  uri, size = figures.png_uri(overlay, longest=20)
  pixels = decode(uri)
  assert size == (10, 20)
  assert pixels.shape == (10, 20, 4)
  assert {tuple(colour) for colour in pixels.reshape(-1, 4).tolist()} <= {VERMILLION, CLEAR}
  image = np.zeros((20, 40), np.uint8)
  image[:, ::2] = 200
  uri, size = figures.png_uri(image, longest=20)
  assert size == (10, 20)
  # Averaging gives the mean, 100; picking pixels would give 0 or 200.
  assert abs(float(decode(uri)[..., 0].mean()) - 100) < 5


def test_class_colours_are_checked():
  assert colours_lib.class_colours(None, 2) == colours_lib.PALETTE[:2]
  assert len(set(colours_lib.class_colours(None, 18))) == 18
  assert colours_lib.class_colours(['red', '#ABC'], 2) == ('#ff0000', '#aabbcc')
  with pytest.raises(ConfigError, match="'x;y' is not a colour"):
    colours_lib.class_colours(['#000000', 'x;y'], 2)
  with pytest.raises(ConfigError, match='has 1 colours for 2 classes'):
    colours_lib.class_colours(['#000000'], 2)
