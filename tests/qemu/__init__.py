"""A whole Debian system under QEMU: our file installed in it, booted, upgraded, and its power cut. See __main__.py."""
