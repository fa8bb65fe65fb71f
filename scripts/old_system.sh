#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Try a release on Debian 11: glibc 2.31, Python 3.9, MXNet 1.9.1, no compiler.
#
#     scripts/old_system.sh [DIST]
#
# DIST is what scripts/build_release.py wrote (default: dist). In a folder of its own this makes the system, installs the
# wheel, and runs `mxadamax verify` and the quick tests, with README's code. It needs root, mmdebstrap, and
# Python 3.9 with a compiler here: what only tests need is in no wheel. OLD_SYSTEM_FOLDER names a folder to keep the
# system in, for the next time.
set -euo pipefail
dist=$(realpath "${1:-$(dirname "$0")/../dist}")
wheel=$(echo "$dist"/mxadamax-*-cp39-cp39-*.whl)
sdist=$(echo "$dist"/mxadamax-*.tar.gz)
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
root=${OLD_SYSTEM_FOLDER:-$here/root}
python=$(python3 "$(dirname "$0")/pythons.py" 3.9)

if [ ! -e "$root/usr/bin/python3" ]; then
  # MXNet's wheel loads libgomp and libquadmath, and does not bring them along.
  mmdebstrap --variant=minbase --include=python3-venv,libgomp1,libquadmath0 bullseye "$root"
fi

# Run a command there, where it sees its own processes alone, and neither our variables nor our network settings.
inside() {
  unshare --mount --pid --fork bash -c '
    mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" &&
    exec chroot "$0" env -i PATH=/try/bin:/usr/bin:/bin HOME=/root LANG=C.UTF-8 "$@"' "$root" "$@"
}

# Everything is fetched and built here: there, packages come from a folder.
rm -rf "$root/try" "$root/packages" "$root/tests"
mkdir "$root/packages" "$root/tests"
"$python" -m venv "$here/venv"
"$here/venv/bin/python" -m pip download --quiet --dest "$root/packages" --only-binary=:all: --implementation cp \
  --python-version 3.9 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
  'mxnet==1.9.1' 'numpy<1.24' hypothesis pytest pytest-xdist rich
cp "$wheel" "$root/packages/"
tar --extract --file "$sdist" --directory "$root/tests" --strip-components=1
SKBUILD_CMAKE_DEFINE="MXADAMAX_TESTING=ONLY" \
  "$here/venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$here/testing" "$sdist"

inside ldd --version | head -1
inside python3 --version
for compiler in cc gcc g++ c++ clang; do
  if inside which "$compiler"; then exit 1; fi
done
inside python3 -m venv /try
install=(/try/bin/pip install --quiet --no-index --find-links /packages)
inside "${install[@]}" 'mxnet==1.9.1' 'numpy<1.24' hypothesis pytest pytest-xdist
echo "install the wheel:"
time inside "${install[@]}" "/packages/$(basename "$wheel")"
inside mxadamax info
inside mxadamax verify
# Only tests need it.
packages=$(inside python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
"$python" -m zipfile --extract "$here"/testing/*.whl "$here/testing"
cp "$here"/testing/mxadamax/_native_testing.* "$root$packages/mxadamax/"
# Not from the folder of the sources, which would hide the installed package. README's code is run by tests/docs.
inside pytest -c /tests/pyproject.toml -p no:cacheprovider --numprocesses auto --dist worksteal -m quick /tests/tests
