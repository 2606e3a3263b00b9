gcloud compute tpus queued-resources delete pod --zone=z --force --quiet
