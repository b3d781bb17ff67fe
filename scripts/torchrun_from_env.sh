#!/usr/bin/env bash
#
# Start a script with torchrun on all GPUs of this node. In a multi-node job, the node rank and the address of the first
# node come from the environment variables of SkyPilot, AWS Batch, SageMaker or Slurm.
#
#   scripts/torchrun_from_env.sh train_imagenet.py --config-file rn50_configs/g5_4gpu.yaml
#   scripts/torchrun_from_env.sh --print          only print torchrun's flags
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
port=${MASTER_PORT:-29500}
sagemaker=${REBAR_ROOT:-}/opt/ml/input/config/resourceconfig.json  # tests use another root

die() {
    echo "error: $1" >&2
    exit 2
}

count_gpus() {
    local gpus
    gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | grep -c '^GPU' || true)
    echo "$((gpus > 0 ? gpus : 1))"
}

# from_json HOSTS NAME: number of hosts, rank of NAME, first host.
from_json() {
    python3 -c '
import json, sys
hosts = sorted(json.loads(sys.argv[1]))
print(len(hosts), hosts.index(sys.argv[2]), hosts[0])' "$1" "$2"
}

# The same from SageMaker's file (for images without its training toolkit), and the network interface.
from_resource_config() {
    python3 -c '
import json, sys
config = json.load(open(sys.argv[1]))
hosts = sorted(config["hosts"])
here = config["current_host"]
print(len(hosts), hosts.index(here), hosts[0], config.get("network_interface_name", ""))' "$sagemaker"
}

nodes=1 rank=0 address='' gpus=''
if [[ -n ${SKYPILOT_NODE_IPS:-} ]]; then
    nodes=${SKYPILOT_NUM_NODES:-$(grep -c . <<<"$SKYPILOT_NODE_IPS")}
    rank=${SKYPILOT_NODE_RANK:?SkyPilot sets it}
    address=$(head -n 1 <<<"$SKYPILOT_NODE_IPS")
    gpus=${SKYPILOT_NUM_GPUS_PER_NODE:-}
elif [[ -n ${AWS_BATCH_JOB_NUM_NODES:-} ]]; then
    nodes=$AWS_BATCH_JOB_NUM_NODES
    rank=${AWS_BATCH_JOB_NODE_INDEX:?AWS Batch sets it}
    # The main node does not get its own address; torchrun needs it to have rank 0.
    [[ ${AWS_BATCH_JOB_MAIN_NODE_INDEX:-0} == 0 ]] || die "the job definition's mainNode must be 0"
    address=${AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS:-$(hostname -I | cut -d ' ' -f 1)}
elif [[ -n ${SM_HOSTS:-} ]]; then
    read -r nodes rank address < <(from_json "$SM_HOSTS" "${SM_CURRENT_HOST:?SageMaker sets it}")
    gpus=${SM_NUM_GPUS:-}
elif [[ -f $sagemaker ]]; then
    read -r nodes rank address interface < <(from_resource_config)
    if [[ -n $interface ]]; then
        export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$interface} GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
    fi
elif [[ -n ${SLURM_JOB_NODELIST:-} ]]; then
    nodes=${SLURM_NNODES:-${SLURM_JOB_NUM_NODES:?Slurm sets it}}
    rank=${SLURM_NODEID:?run this with srun, one task per node}
    address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    gpus=${SLURM_GPUS_ON_NODE:-}
fi
if [[ ! $gpus =~ ^[1-9][0-9]*$ ]]; then gpus=$(count_gpus); fi

flags=("--nproc_per_node=$gpus")
if ((nodes > 1)); then
    [[ -n $address ]] || die "the address of the first node is unknown"
    flags+=("--nnodes=$nodes" "--node_rank=$rank" "--master_addr=$address" "--master_port=$port")
else
    flags+=(--standalone)
fi

if [[ ${1:-} == --print ]]; then
    echo "${flags[*]}"
    exit
fi
(($#)) || die "usage: $0 SCRIPT [ARGUMENT...]"
python=$repo/.venv/bin/python
[[ -x $python ]] || python=python3
exec "$python" -m torch.distributed.run "${flags[@]}" "$@"
