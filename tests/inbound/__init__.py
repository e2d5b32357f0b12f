"""Tests of `mtt/inbound/`."""
