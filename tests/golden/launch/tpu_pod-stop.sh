gcloud compute tpus tpu-vm ssh pod --worker=all '--command=sudo docker stop lapa'
