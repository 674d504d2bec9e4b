#!/usr/bin/env bash
# Everything about haul on a GPU that must be seen on one, in one go: see README.md beside this file.
#
#     scripts/gpu/accept.sh BINARY MODEL PICTURES [GOLDEN] [--dry] [--only STEP]... (--help says more)
#
# Results go to $OUT, or the folder `gpu-results`.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/accept.py" "$@"
