"""The steps between the versions of the tables, in `versions`; see `server.store.schema`."""
