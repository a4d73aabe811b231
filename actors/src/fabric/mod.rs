//! How messages move: links that serialise and queue, paths and what they cost, and boards where the many
//! messages of a collective phase meet.

mod board;
mod close;
mod health;
mod hosts;
mod link;
mod links;
mod outgoing;
mod paths;
mod phase;
mod posted;
mod row;
mod serving;
mod shape;
mod side;
mod sorting;
mod toll;

pub use board::{Arrived, Board, PhaseSend, epoch, epoch_start};
pub use health::Health;
pub use hosts::Hosts;
pub use link::{Direction, Link, Served};
pub(crate) use links::Scratch;
pub use links::{Border, Crossed, Fabric};
pub use outgoing::{Sender, SourceCosts, UnitCost, Units};
pub use paths::{BothReaches, PathCost, Paths, PerByte};
pub use phase::{PhaseOut, Sent, post};
pub use row::Row;
pub use serving::{Receipt, message_hash};
pub use shape::Shape;
pub use toll::{Crossing, Found, LinkState, Toll};
