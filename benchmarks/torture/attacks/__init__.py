"""The attacks, one kind a file; each gives its `attacks(scene)`."""
