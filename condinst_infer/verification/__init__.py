"""Checks that two files compute the same: compare, check of an export, self-test."""
