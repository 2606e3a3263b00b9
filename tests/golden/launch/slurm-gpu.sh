sbatch <<'END'
#!/bin/bash
#SBATCH --job-name=lapa
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --partition=gpu
#SBATCH --signal=TERM@300
#SBATCH --output=lapa-%j.log
#SBATCH --open-mode=append
#SBATCH --exclusive
#SBATCH --requeue

cd HERE || exit
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.9
export XLA_FLAGS='--xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_enable_pipelined_all_gather=true --xla_gpu_enable_pipelined_reduce_scatter=true --xla_gpu_enable_while_loop_double_buffering=true --xla_gpu_exclude_nondeterministic_ops=true'
srun --kill-on-bad-exit=0 python -m launch.supervise --drain_seconds 270 -- lapa train --config experiments/latent_vla/paper.py:batch=512 --workdir /mnt/lapa/runs/x
code=$?
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
END
