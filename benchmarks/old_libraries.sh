#!/bin/sh
# Loads and draws what this toolkit writes with diffusers, transformers and peft of the last years, and prints a table.
#
#   benchmarks/old_libraries.sh [FOLDER]    environments are made in FOLDER and used again; without it in a temporary one
#
# Needs Python 3.11, a package index, and about 1 GB for each environment. The table belongs in docs/interoperability.md.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
if [ $# -gt 0 ]; then envs=$1; mkdir -p "$envs"; else envs=$(mktemp -d); trap 'rm -rf "$envs"' EXIT; fi
work=$(mktemp -d "$envs/files.XXXXXX")

environment() {  # NAME PACKAGES ...: one that is whole already is left as it is
    name=$1; shift
    [ -f "$envs/$name/.whole" ] && return
    "$python" -m venv "$envs/$name"
    "$envs/$name/bin/pip" install --quiet torch==2.13.0 accelerate safetensors pillow "$@"
    touch "$envs/$name/.whole"
}
environment old diffusers==0.30.3 transformers==4.44.2 peft==0.12.0 'accelerate<0.35' 'huggingface_hub<0.26' 'numpy<2'
environment mid diffusers==0.36.0 transformers==4.57.3 peft==0.18.0
environment late diffusers==0.39.0 transformers==5.5.4 peft==0.18.0

export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
PYTHONPATH=$root "$python" "$root/benchmarks/old_libraries.py" write "$work"
for name in old mid late; do
    "$envs/$name/bin/python" "$root/benchmarks/old_libraries.py" read "$work" "$name"
done
"$python" "$root/benchmarks/old_libraries.py" read "$work" today
"$python" "$root/benchmarks/old_libraries.py" table "$work"
rm -rf "$work"
