kubectl delete jobset job --namespace=ml
