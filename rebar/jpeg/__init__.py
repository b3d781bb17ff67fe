"""Decode, crop and losslessly transcode JPEGs in memory. This package does not depend on .beton files."""
