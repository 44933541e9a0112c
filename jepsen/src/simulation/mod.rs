//! A whole cluster in one thread, under simulated time, network and disk.

pub mod disk;
pub mod network;
