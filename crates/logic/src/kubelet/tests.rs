//! Tables and a closed loop.
