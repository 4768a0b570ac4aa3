"""Imported once by the fork server, so that a cell's process starts in milliseconds with everything at hand."""

import numpy
import safetensors.numpy
import scipy.linalg
import scipy.optimize
import scipy.special
import sklearn.linear_model
import torch

import benchmarks.cell_process
from methods.registry import built_in

built_in()
__all__ = ["benchmarks", "numpy", "safetensors", "scipy", "sklearn", "torch"]
