"""Callbacks that Lightning does not have, one file each."""
