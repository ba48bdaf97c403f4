"""The tests that keep the documentation true."""
