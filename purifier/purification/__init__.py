"""Relabelling a data set with the compromised model itself; `purifier.purify` is the way in."""
