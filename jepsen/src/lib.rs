//! What every tier of the tests shares: the history of a run, and the checkers that judge it.

pub mod check;
