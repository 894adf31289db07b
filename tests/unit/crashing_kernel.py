"""Stands for a compiler that crashes: it does as soon as it is imported."""

import os

os.abort()
