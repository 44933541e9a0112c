//! Real processes under faults.

#[allow(dead_code, reason = "most nemeses are yet to come")]
pub mod nemesis;
#[allow(dead_code, reason = "most nemeses are yet to come")]
pub mod nodes;
pub mod rounds;
