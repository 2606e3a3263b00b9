gcloud compute tpus tpu-vm ssh pod --worker=all '--command=sudo mkdir -p /mnt/lapa && { mountpoint -q /mnt/lapa || { sudo apt-get install -qq -y nfs-common && sudo mount -t nfs 10.0.0.2:/share /mnt/lapa; }; }'
gcloud compute tpus tpu-vm ssh pod --worker=all '--command=umask 077 && touch .lapa.env'
gcloud compute tpus tpu-vm scp secrets.env pod:.lapa.env --worker=all
gcloud compute tpus tpu-vm ssh pod --worker=all '--command=sudo gcloud auth configure-docker --quiet europe-docker.pkg.dev && sudo docker pull --quiet europe-docker.pkg.dev/project/lapa/tpu:1'
