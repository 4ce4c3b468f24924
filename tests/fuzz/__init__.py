"""Fuzz targets, one function a reader; a normal test runs each for a bounded number of inputs."""
