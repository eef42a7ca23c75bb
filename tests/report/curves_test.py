"""Curves as SVG."""

import matplotlib
import numpy as np

from emseg_jax.report import curves


def test_a_curve_takes_its_ink_from_the_page_and_leaves_matplotlib_as_it_was():
  before = dict(matplotlib.rcParams)
  line = curves.Line('loss', [1, 2, 3], [3.0, float('nan'), 1.0], '#0072b2')
  drawn = curves.curve('Training loss', {'loss': [line]})
  assert drawn.svg.startswith('<svg viewBox=')
  assert drawn.svg.endswith('</svg>')
  assert 'currentColor' in drawn.svg
  assert '#0072b2' in drawn.svg
  assert '<style' not in drawn.svg
  assert drawn.description == 'Training loss: loss from 3 at step 1 to 1 at step 3.'
  assert dict(matplotlib.rcParams) == before


def test_long_curves_are_means_over_runs_and_keep_gaps():
  values = np.arange(1200.0)
  values[100] = np.nan
  line = curves.Line('loss', np.arange(1200), values, '#0072b2')
  x, means = curves._thin(line)
  assert len(x) == 600
  assert x[0] == means[0] == 0.5  # the mean of 0 and 1
  assert np.isnan(means[50])  # 100 and 101
  assert np.isfinite(np.delete(means, 50)).all()


def test_curves_of_equal_input_are_equal():
  line = curves.Line('loss', [1, 2, 3], [3.0, 2.0, 1.0], '#0072b2', 'dashed')
  assert curves.curve('A', {'x': [line]}) == curves.curve('A', {'x': [line]})


def test_shares_run_from_0_to_1_and_bars_are_drawn():
  lines = [curves.Line('model', [0.6, 0.9], [0.5, 0.8], '#0072b2')]
  bars = [curves.Line('share', [0.5, 0.9], [0.25, 0.75], '#d55e00', bars=0.1)]
  drawn = curves.curve('Calibration', {'right': lines, 'part': bars}, x='confidence', share=True)
  assert '>confidence</text>' in drawn.svg
  assert '>0.2</text>' in drawn.svg  # though no value is below 0.5
  assert 'model from 0.5 at confidence 0.6 to 0.8 at confidence 0.9' in drawn.description
  assert drawn.svg.count('fill: #d55e00') == 2
