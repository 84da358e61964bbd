#!/bin/sh
# Sets up .venv from requirements.lock: `make` calls it. Needs python3 (with pip or venv) or uv, and a package index.
# .venv/.ready is written last, so an install that was cut off is done again, from an empty .venv: a package that was
# half written would pass for an installed one.
set -eu
cd "$(dirname "$0")/.."
log=.venv-setup.log

fail() {
    echo "setup: $1" >&2
    exit 1
}

# uv: the machine's, or our own in .tools (by pip where python3 has it, else through a venv, which brings its pip along).
if command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1; then
    uv=uv
else
    uv=.tools/bin/uv
    if ! "$uv" --version >/dev/null 2>&1; then
        command -v python3 >/dev/null 2>&1 || fail "python3 is missing: install Python 3.11 or 3.12, or uv"
        echo "setup: installing uv into .tools/"
        rm -rf .tools
        if python3 -m pip --version >/dev/null 2>&1; then
            python3 -m pip install --quiet --disable-pip-version-check --target .tools uv >"$log" 2>&1 ||
                { tail -n 5 "$log" >&2; fail "pip could not fetch uv: is the package index reachable?"; }
        elif python3 -m venv .tools >"$log" 2>&1; then
            .tools/bin/python -m pip install --quiet --disable-pip-version-check uv >"$log" 2>&1 ||
                { tail -n 5 "$log" >&2; fail "pip could not fetch uv: is the package index reachable?"; }
        else
            rm -rf .tools
            fail "python3 has neither pip nor venv: install one (Debian: apt install python3-venv) or uv"
        fi
    fi
fi

# Python 3.11 or 3.12: one that the machine has and that runs, else one that uv fetches.
python=""
for candidate in python3.12 python3.11 python3; do
    path=$(command -v "$candidate" 2>/dev/null) || continue
    if "$path" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1; then
        python=$path
        break
    fi
done
if [ -z "$python" ]; then
    "$uv" python find --system '>=3.11,<3.13' >/dev/null 2>&1 && python=$("$uv" python find --system '>=3.11,<3.13')
fi

case "$(uname -s)-$(uname -m)" in
Linux-x86_64) size="3.5 GB to download, 7 GB on disk (most of it torch's CUDA libraries)" ;;
Darwin-*) size="about 0.6 GB to download, 1.8 GB on disk (estimates: untried on macOS; it must be 14 or newer)" ;;
*) size="up to 3.5 GB to download, 7 GB on disk (untried on this machine's kind)" ;;
esac
echo "setup: installing into .venv: $size; one to five minutes on a fast line"

free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1024)}')
if [ ! -d .venv ] && [ "$free" -lt 7000 ]; then
    fail "7 GB are needed here, $free MB are free: make room"
fi

[ ! -e .venv/.installing ] || rm -rf .venv
rm -f .venv/.ready
if ! .venv/bin/python -c 'import sys; sys.exit(sys.prefix == sys.base_prefix or sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1; then
    rm -rf .venv
    "$uv" venv --quiet --python "${python:-3.12}" .venv >"$log" 2>&1 || {
        tail -n 3 "$log" >&2
        fail "no Python 3.11 or 3.12 here and uv could not fetch 3.12: install one of them"
    }
fi
touch .venv/.installing
begun=$(date +%s)
# Compiled at once: hundreds of processes start from here, torch alone takes each of them seconds otherwise.
[ -t 2 ] && progress="" || progress=--quiet # bars on a terminal, errors alone elsewhere
# shellcheck disable=SC2086
if ! "$uv" pip sync $progress --compile-bytecode --require-hashes --python .venv/bin/python requirements.lock; then
    free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1024)}')
    [ "$free" -gt 500 ] || fail "the disk is full ($free MB free, 7 GB are needed): make room, then run the same command again"
    fail "the packages could not be installed (see above): is the package index reachable? Then run the same command again"
fi
"$uv" pip install --quiet --no-deps --no-build-isolation --python .venv/bin/python --editable . ||
    fail "the project itself could not be installed (see above)"
rm -f "$log" .venv/.installing
touch .venv/.ready
echo "setup: done in $(($(date +%s) - begun)) s, $(du -sh .venv | cut -f1)"
