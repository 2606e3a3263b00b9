gcloud compute tpus queued-resources create pod --zone=z --project=p --accelerator-type=v5p-64 --runtime-version=v2-alpha-tpuv5 --node-id=pod --spot
