# shellcheck shell=bash
# Sourced by the other scripts: a virtual environment with the project in it.
# VENV chooses its place (.venv); PYTHON the interpreter (the newest of 3.11 to 3.13).

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
VENV="$(realpath -m "${VENV:-.venv}")"

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "need Python 3.11, 3.12 or 3.13; install one, or name it: PYTHON=/path/to/python $0" >&2
  return 1
}

# make_environment EXTRA: installs once; again when the requirements change.
make_environment() {
  local stamp wanted
  stamp="$VENV/.installed"
  wanted="$(cat requirements.txt setup.cfg | cksum) $1"
  if ! grep -qxF "$wanted" "$stamp" 2>/dev/null; then
    local python
    python="$(find_python)"
    echo "== installing into $VENV with $("$python" --version) (about 3 GB, a minute or two)"
    "$python" -m venv "$VENV"
    "$VENV/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt -e ".$1"
    echo "$wanted" >> "$stamp"
  fi
  PATH="$VENV/bin:$PATH"
}

# On a CPU, XLA's large buffers are given back to the kernel and faulted in anew at every step: a third to a half of the
# time. These keep them (glibc only).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.arena_max=1}"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"  # TensorFlow reports every GPU library that it lacks
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-true}"
