//! Volumes with real mounts, in a mount namespace of their own.
