# SPDX-License-Identifier: Apache-2.0
"""What the lab cannot do on this host, said aloud: the run is skipped with exit status 77."""

SKIPPED = 77


class Unavailable(Exception):
    """Something the lab needs cannot be had here; its text says what and why."""
