#!/usr/bin/env bash
# Ours beside diffusers' own scripts on a GPU: Stable Diffusion 1.5's shapes (random weights), 512 px, bf16, batch 1 + 1.
#
#     benchmarks/gpu.sh CHECKOUT [OUT]        a checkout of huggingface/diffusers; where the tables go (default outputs/gpu)
#
# Then Z-Image and FLUX.2 Klein 4B in their real shapes, a LoRA at 1024 px in bf16 (40 GB of disk).
# Needs torchvision beside torch, which diffusers' scripts import. The tables belong into RESULTS.md. The second half was
# written without a GPU, and has not been run.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$1 out=${2:-outputs/gpu}
python=${PYTHON:-.venv/bin/python}
export PYTHONPATH=$PWD
mkdir -p "$out"

$python benchmarks/real_size.py sd1 --only-make --work "$out"

$python benchmarks/limit.py "$out/sd1" --resolution 512 --precision bf16 | tee "$out/limit.md"
side_by_side() {
    $python benchmarks/side_by_side.py --diffusers "$checkout" --model "$out/sd1" --pictures data/dog \
        --class-pictures data/robot --resolution 512 --precision bf16 --steps 30 --rounds 2 "$@" | tee -a "$out/side_by_side.md"
}
side_by_side --method full --train-text-encoder --ours train.compile=true
side_by_side --method lora --ours train.compile=true
$python benchmarks/side_by_side.py --diffusers "$checkout" --model "$out/sd1" --pictures data/dog --class-images 20 \
    --method full --train-text-encoder --resolution 512 --precision bf16 --steps 80 --rounds 1 | tee -a "$out/side_by_side.md"

# The flow-matching bases in their real shapes: time of a step and the most memory, beside what `plan` foretells.
for family in z_image flux2_klein; do
    $python benchmarks/memory.py $family --shape real --resolution 1024 --precision bf16-mixed --steps 8 --work "$out" --rows \
        "train.gradient_checkpointing=true" \
        "train.gradient_checkpointing=true train.compile=true" \
        "train.gradient_checkpointing=true model.quantize=int8" \
        "train.gradient_checkpointing=true model.quantize=fp8" \
        "train.gradient_checkpointing=true model.quantize=nf4" \
        "train.gradient_checkpointing=true train.offload=parts" \
        "train.gradient_checkpointing=true train.offload=blocks" \
        "train.gradient_checkpointing=true model.quantize=int8 train.offload=blocks" | tee "$out/$family.md"
done
