"""People and programs that use the service: SDK and command line."""
