gcloud compute tpus queued-resources create pod --accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite --node-count=2 --node-prefix=pod
