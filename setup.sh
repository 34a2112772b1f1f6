#!/usr/bin/env bash
# Makes the environment: pinned versions with their hashes, bytecode compiled at installation (a first start without it
# takes twice as long). Run by make; runs again only when requirements.txt or pyproject.toml change.
set -euo pipefail
cd "$(dirname "$0")"
python=$1 venv=$2

say() { printf '%s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

command -v "$python" >/dev/null || fail "$python: not found; install Python 3.11 or newer, or name one: make PYTHON=python3.12"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "$python: is $("$python" -V 2>&1), 3.11 or newer is wanted; name one: make PYTHON=python3.12"

say "setting up $venv (once; about 6 GB, a few minutes on a usual line)"
[ -x "$venv/bin/python" ] || "$python" -m venv --without-pip "$venv" || fail "$venv: could not be made; see the lines above"
if command -v uv >/dev/null; then
    uv=uv
else
    uv=$venv/tools/bin/uv
    if [ ! -x "$uv" ]; then
        "$python" -m venv "$venv/tools" && "$venv/tools/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.5' \
            || fail "uv: could not be installed; check the network, then run the same command again"
    fi
fi
"$uv" pip sync --quiet --python "$venv/bin/python" --require-hashes --compile-bytecode requirements.txt \
    || fail "requirements.txt: could not be installed; see the lines above, then run the same command again"
"$uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable . \
    || fail "comp: could not be installed into $venv; see the lines above"
touch "$venv/.ready"
