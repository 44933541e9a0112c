//! What every tier of the tests shares: the history of a run, and the checkers that judge it. And the first tier's
//! world: the simulation.

pub mod check;
pub mod simulation;
