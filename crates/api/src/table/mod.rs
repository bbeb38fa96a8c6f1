//! Tables and partial objects.
