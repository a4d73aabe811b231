//! How messages move: links that serialise and queue, paths and what they cost, and boards where the many
//! messages of a collective phase meet.

mod board;
mod link;
mod paths;

pub use board::{Arrived, Board, PhaseSend, Receipt};
pub use link::{Direction, Link, Served};
pub use paths::{BothReaches, PathCost, Paths, PerByte};
