gcloud alpha compute tpus queued-resources ssh pod --worker=all --node=all '--command=umask 077 && touch .lapa.env'
gcloud alpha compute tpus queued-resources scp secrets.env pod:.lapa.env --worker=all --node=all
gcloud alpha compute tpus queued-resources ssh pod --worker=all --node=all '--command=sudo gcloud auth configure-docker --quiet europe-docker.pkg.dev && sudo docker pull --quiet europe-docker.pkg.dev/project/lapa/tpu:1'
