kubectl apply -f - <<'END'
{
 "apiVersion": "jobset.x-k8s.io/v1alpha2",
 "kind": "JobSet",
 "metadata": {
  "name": "job",
  "namespace": "default",
  "annotations": {
   "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
  }
 },
 "spec": {
  "failurePolicy": {
   "maxRestarts": 100,
   "rules": [
    {
     "action": "FailJobSet",
     "onJobFailureReasons": [
      "PodFailurePolicy"
     ]
    }
   ]
  },
  "replicatedJobs": [
   {
    "name": "slice",
    "replicas": 1,
    "template": {
     "spec": {
      "completionMode": "Indexed",
      "parallelism": 8,
      "completions": 8,
      "backoffLimit": 0,
      "podFailurePolicy": {
       "rules": [
        {
         "action": "FailJob",
         "onExitCodes": {
          "containerName": "lapa",
          "operator": "In",
          "values": [
           1,
           2
          ]
         }
        }
       ]
      },
      "template": {
       "spec": {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 300,
        "nodeSelector": {
         "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
         "cloud.google.com/gke-tpu-topology": "2x4x4"
        },
        "tolerations": [
         {
          "key": "google.com/tpu",
          "operator": "Exists",
          "effect": "NoSchedule"
         }
        ],
        "containers": [
         {
          "name": "lapa",
          "image": "europe-docker.pkg.dev/project/lapa/tpu:1",
          "command": [
           "python",
           "-m",
           "launch.supervise",
           "--drain_seconds",
           "270",
           "--",
           "lapa",
           "train",
           "--config",
           "experiments/latent_vla/paper.py:batch=512",
           "--workdir",
           "/mnt/lapa/runs/x"
          ],
          "env": [],
          "ports": [
           {
            "containerPort": 8471
           },
           {
            "containerPort": 8080
           }
          ],
          "resources": {
           "limits": {
            "google.com/tpu": 4
           }
          },
          "volumeMounts": [
           {
            "name": "shared",
            "mountPath": "/mnt/lapa"
           }
          ]
         }
        ],
        "volumes": [
         {
          "name": "shared",
          "persistentVolumeClaim": {
           "claimName": "data"
          }
         }
        ]
       }
      }
     }
    }
   }
  ]
 }
}
END
