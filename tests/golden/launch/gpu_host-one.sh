XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 \
    XLA_FLAGS='--xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_enable_pipelined_all_gather=true --xla_gpu_enable_pipelined_reduce_scatter=true --xla_gpu_enable_while_loop_double_buffering=true' \
    python -m launch.supervise -- lapa train --config experiments/latent_vla/paper.py:batch=512 --workdir /mnt/lapa/runs/x
