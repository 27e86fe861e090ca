"""Random changes of volumes: batched, on their device, drawn first and then applied."""
