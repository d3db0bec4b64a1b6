#!/bin/sh
# Fill .venv with this package and the extras named in $1 (for example "dev"), at the tested versions.
# Silent unless something fails: then the log is shown. Called by the Makefile, from the repository root.
set -eu

extras=${1:-}
log=.venv/setup.log

# PYTHON names an interpreter; without it the first suitable one on the path is taken.
find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Engram needs Python 3.11 or newer; ${PYTHON:-python3} is: $("${PYTHON:-python3}" --version 2>&1 || true)" >&2
    echo "Install a newer one, or name it: make demo PYTHON=/path/to/python3.12" >&2
    return 1
}

fail() {
    echo "Setting up .venv failed while $1. The end of $log:" >&2
    tail -n 40 "$log" >&2
    exit 1
}

pip() { .venv/bin/python -m pip "$@" --quiet --disable-pip-version-check --no-input >>"$log" 2>&1; }

if .venv/bin/python -m pip --version >/dev/null 2>&1; then
    : >"$log"
else
    python=$(find_python)
    mkdir -p .venv
    "$python" -m venv .venv >"$log" 2>&1 ||
        fail "making a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)"
fi

# torch goes first. On Linux the default index gives builds with several GB of CUDA libraries, so the CPU build is tried
# before, unless this machine's pip has indexes of its own. TORCH_INDEX= (empty) takes the default build.
torch=$(grep '^torch==' constraints.txt)
have_torch() { .venv/bin/python -c "import importlib.metadata as m; assert m.version('torch').split('+')[0] == '${torch#torch==}'"; }
own_index() { .venv/bin/python -m pip config list 2>/dev/null | grep -Eq '(index-url|find-links)='; }
if ! have_torch 2>/dev/null; then
    echo "Installing PyTorch and the libraries into .venv: a few minutes, once." >&2
    index=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
    if [ -z "$index" ] || [ "$(uname -s)" != Linux ] || own_index ||
        ! pip install --no-deps --retries 1 --timeout 20 --index-url "$index" "$torch"; then
        pip install -c constraints.txt "$torch" || fail "installing $torch"
    fi
fi
pip install -c constraints.txt -e ".${extras:+[$extras]}" || fail "installing engram${extras:+[$extras]}"
