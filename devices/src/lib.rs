//! Virtio devices as vfio-user server processes.
