#!/bin/sh
# Install the pinned torch and triton into the environment of the given python.
# On Linux the default index serves CUDA builds of several gigabytes. Without an NVIDIA or AMD GPU the CPU build is
# enough, so it is taken from PyTorch's own index where that can be reached. TORCH_INDEX_URL overrides the choice.
set -eu
python=$1
torch="torch==2.13.0"
triton="triton==3.7.1"

if [ -z "${TORCH_INDEX_URL:-}" ] && ! command -v nvidia-smi >/dev/null && ! command -v rocminfo >/dev/null; then
    cpu_index="download.pytorch.org"
    if [ "$(uname -s)" = Linux ] && "$python" -c "import socket; socket.gethostbyname('$cpu_index')" 2>/dev/null; then
        TORCH_INDEX_URL="https://$cpu_index/whl/cpu"
    fi
fi
echo "installing $torch${TORCH_INDEX_URL:+ from $TORCH_INDEX_URL}, $triton"
"$python" -m pip install --quiet "$torch" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
"$python" -m pip install --quiet "$triton"
