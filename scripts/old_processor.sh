#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Try a release's wheel on processors that QEMU emulates: which kernels it selects, and that they compute what MXNet does.
#
#     scripts/old_processor.sh [DIST]
#
# DIST is what scripts/build_release.py wrote (default: dist). It needs qemu-x86_64 (Debian's package qemu-user), Python 3.9,
# and the network for MXNet.
set -euo pipefail
dist=$(realpath "${1:-$(dirname "$0")/../dist}")
wheel=$(echo "$dist"/mxadamax-*-cp39-cp39-*.whl)
python=$(python3 "$(dirname "$0")/pythons.py" 3.9)
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
# Python would take the sources for the installed package.
cd "$here"

# Run Python on a processor.
on() { qemu-x86_64 -cpu "$1" "$here/venv/bin/python" "${@:2}" < /dev/null; }

for extra in mxnet1 mxnet; do
  rm -rf "$here/venv"
  "$python" -m venv "$here/venv"
  "$here/venv/bin/python" -m pip install --quiet "${wheel}[$extra]"
  # "max" is all that QEMU emulates, which is AVX2 and not AVX-512; without xsave, the system does not keep registers.
  while read -r processor expected; do
    selected=$(on "$processor" -c 'from mxadamax import _native; print(_native.instruction_set)')
    echo "$extra on $processor: $selected"
    [ "$selected" = "$expected" ]
  done << 'END'
core2duo baseline
max avx2
max,-f16c baseline
max,-popcnt baseline
max,-xsave baseline
END
  # Of MXNet 2, oneDNN needs SSE4.1, which that processor does not have. Processes that a program starts are not emulated:
  # the selected kernels are verified in the same process.
  MXNET_ONEDNN_ENABLED=0 on core2duo -m mxadamax verify --instruction-set baseline
  # MXNet 2 has the processor flush subnormal numbers to zero. That does not apply to VCVTPS2PH, which makes float16 numbers,
  # but QEMU 7.2 applies it.
  if [ "$extra" = mxnet1 ]; then on max -m mxadamax verify --instruction-set avx2; fi
done
