"""`python -m annheal.coordinator` says how a coordinator is started."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.exit("start a coordinator with: annheal serve coordinator --help")
