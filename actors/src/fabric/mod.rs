//! How messages move: links that serialise and queue, paths and what they cost, and boards where the many
//! messages of a collective phase meet.

mod board;
mod health;
mod link;
mod links;
mod paths;
mod phase;

pub use board::{Arrived, Board, PhaseSend, Receipt};
pub use health::{Crossing, Found, Health, LinkState, Toll};
pub use link::{Direction, Link, Served};
pub use links::Fabric;
pub use paths::{BothReaches, PathCost, Paths, PerByte};
pub use phase::{BySlot, PhaseOut, Returned, ToEach, Units, post};
