"""The pictures of networks in docs/diagrams: stages as the networks' code has them, none hidden."""

import itertools
import re
import sys
import xml.etree.ElementTree as ET

import docs_support
import pytest

from emseg_jax import models, zoo

DOCS = docs_support.ROOT / 'docs'
sys.path.append(str(DOCS))

import drawing  # noqa: E402
import stages  # noqa: E402

NAMESPACE = '{http://www.w3.org/2000/svg}'


def _trace(name):
  return stages.trace(next(e for e in zoo.ENTRIES if e.name == name))


def _named(network):
  return {node.name: node for node in network.nodes}


def _sources(network, name):
  return [network.nodes[s].name for s in _named(network)[name].sources]


@pytest.fixture(scope='module')
def unet():
  return _trace('unet')


def test_a_u_net_has_levels_down_and_up_and_joins_them(unet):
  assert [n.name for n in unet.nodes if n.kind == 'DoubleConv'] == [
    *('down1', 'down2', 'down3', 'down4', 'bridge'),
    *('up4', 'up3', 'up2', 'up1'),
  ]
  for level in (1, 2, 3, 4):
    (join,) = _named(unet)[f'up{level}'].sources
    assert unet.nodes[join].name == 'join'
    feeding = {unet.nodes[s].name for s in unet.nodes[join].sources}
    assert feeding == {f'down{level}', f'upconv{level}'}
  assert _sources(unet, 'bridge') == ['down4']  # pooling and dropout lie between
  assert _sources(unet, 'down1') == ['image']
  assert _sources(unet, 'logits') == ['head']


def test_shapes_and_parameters_of_stages_equal_a_count_by_hand(unet):
  bridge = _named(unet)['bridge']
  assert bridge.shape == (16, 16, 1024)  # 256 halved four times
  assert bridge.parameters == 9 * (512 * 1024 + 1024 * 1024) + 2 * 1024
  assert unet.parameters == sum(node.parameters for node in unet.nodes) == 31_030_658


def test_wide_parts_are_opened_and_repetitions_put_together():
  network = _trace('deeplabv3plus')
  found = _named(network)
  assert found['layer3_0 to 5'].count == 6  # of ResNet-50's 3, 4, 6 and 3 blocks
  (join,) = found['project'].sources
  assert {network.nodes[s].name for s in network.nodes[join].sources} == {
    *('pool', 'point', 'rate12', 'rate24', 'rate36'),
  }
  assert _sources(network, 'low') == ['layer1_0 to 2']


@pytest.mark.parametrize('name', models.MODELS)
def test_boxes_lie_apart_and_everything_within_the_picture(name):
  root = ET.parse(DOCS / 'diagrams' / f'{name}.svg').getroot()
  width, height = float(root.get('width')), float(root.get('height'))
  paper, *boxes = (
    [float(e.get(k, 0)) for k in ('x', 'y', 'width', 'height')]
    for e in root.iter(f'{NAMESPACE}rect')
  )
  assert paper == [0, 0, width, height]
  for (x, y, w, h), (u, v, s, t) in itertools.combinations(boxes, 2):
    assert x + w <= u or u + s <= x or y + h <= v or v + t <= y
  points = [(x, y) for x, y, _, _ in boxes] + [(x + w, y + h) for x, y, w, h in boxes]
  for line in root.iter(f'{NAMESPACE}path'):
    if line.get('class') == 'line':
      points += [tuple(map(float, p)) for p in re.findall(r'[ML](\S+) (\S+)', line.get('d'))]
  assert all(0 < x < width and 0 < y < height for x, y in points)


def test_every_network_has_its_picture_on_the_page():
  page = (DOCS / 'networks.md').read_text(encoding='utf-8')
  for name in models.MODELS:
    assert f'](diagrams/{name}.svg)' in page
  assert {p.stem for p in (DOCS / 'diagrams').iterdir()} == set(models.MODELS)


def test_numbers_are_shortened_to_three_digits():
  shown = [drawing._short(n) for n in (0, 517, 37_568, 221_440, 999_600, 14_157_824, 119_545_856)]
  assert shown == ['', '517', '37.6 k', '221 k', '1.0 M', '14.2 M', '120 M']
