"""The cloud gateway: makes edge nodes ordinary Kubernetes nodes. Not part of the edge binary."""
