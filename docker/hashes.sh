#!/bin/sh
# Write docker/hashes/*.txt: every package that an image or a build installs, by version (constraints.txt) and SHA-256, from the
# public index. Needs uv (make hashes has it). Without an argument: all of them. With the address of another index of torch, or
# a folder of wheels, only torch-cpu.txt, for: docker build --build-arg TORCH_HASHES=torch-cpu.txt --build-arg TORCH_INDEX=...
set -eu
cd "$(dirname "$0")/.."
uv="${UV:-uv}"
compile() {
  name="$1"
  shift
  "$uv" pip compile --quiet --no-config --generate-hashes --no-annotate --no-header --python-version 3.11 \
    --python-platform x86_64-manylinux_2_28 --constraint constraints.txt --output-file "docker/hashes/$name.txt" "$@"
  echo "docker/hashes/$name.txt"
}
if [ $# -gt 0 ]; then
  if [ -d "$1" ]; then
    wheel=$(ls "$1"/torch-*-cp311-*.whl)
    version=$(basename "$wheel" | cut -d- -f2)
    printf 'torch==%s \\\n    --hash=sha256:%s\n' "$version" "$(sha256sum "$wheel" | cut -d' ' -f1)" > docker/hashes/torch-cpu.txt
  else
    printf 'torch\n' | compile torch-cpu --no-deps --index-url "$1" -
  fi
  exit
fi
compile api-cpu pyproject.toml --extra api --extra cpu
compile api-gpu pyproject.toml --extra api --extra gpu
printf 'torch\n' | compile torch -
# what torch brings is in torch.txt, by what it was built for
compile trainer pyproject.toml --extra trainer --extra cpu $(sed -nE 's/^((torch|nvidia-|triton|cuda-)[A-Za-z0-9._-]*)==.*/--no-emit-package \1/p' docker/hashes/torch.txt)
printf 'setuptools>=77\nbuild\nwheel\n' | compile build -
