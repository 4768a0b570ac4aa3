"""Imported once by the fork server, so that a cell's process starts in milliseconds with everything at hand."""

import safetensors.numpy
import scipy.linalg
import scipy.optimize
import scipy.special
import torch

import benchmarks.cell_process
from methods.registry import built_in

built_in()
__all__ = ["benchmarks", "safetensors", "scipy", "torch"]
