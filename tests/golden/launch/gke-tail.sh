kubectl logs --namespace=default --follow --tail=100 --prefix --selector=jobset.sigs.k8s.io/jobset-name=job,batch.kubernetes.io/job-completion-index=0
