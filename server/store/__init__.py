"""Tables and files of the service: jobs, checkpoints, uploads, the audit log."""
