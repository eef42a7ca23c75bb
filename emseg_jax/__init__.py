"""Segmentation of electron-microscopy images with JAX: see `emseg_jax.main` and `emseg_jax.api`.

Importing the package loads none of its parts, so that it is quick and starts no device.
"""
