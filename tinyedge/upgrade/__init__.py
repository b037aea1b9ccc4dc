"""Versions of this program on a device: what a download must prove, where it is unpacked, and the trial that each new
version has to pass before it stays. The launcher (`packaging/launcher`, POSIX sh) counts the starts of a version on
trial; all else is here.
"""
