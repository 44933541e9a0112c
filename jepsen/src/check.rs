//! Judging a run by its history alone: pure functions, no I/O, no clock.
//!
//! A run, simulated or real, leaves a [`history::History`]. Each checker takes it, or the part that concerns it, and
//! says what is impossible about it.

pub mod availability;
pub mod convergence;
pub mod counter;
pub mod cycles;
pub mod history;
pub mod keeper;
pub mod lease;
pub mod ledger;
pub mod linearizability;
pub mod lock;
pub mod rights;
pub mod serializable;
pub mod set;
pub mod store;
#[cfg(test)]
mod tape;
pub mod tokens;
pub mod verdict;
pub mod watch;
