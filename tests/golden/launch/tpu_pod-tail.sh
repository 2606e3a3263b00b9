gcloud compute tpus tpu-vm ssh pod --zone=z --worker=0 '--command=sudo docker logs --follow --tail 100 lapa'
