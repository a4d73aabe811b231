//! The actor runtime of Supernode, and the actors of the machine: dies, CPUs and links.
//!
//! `runtime` knows nothing of LLM serving; the actors know nothing of files, wall clocks, HTTP or printing.

mod assemble;
pub mod beats;
pub mod compute;
pub mod config;
pub mod cpu;
pub mod die;
pub mod env;
pub mod experts;
pub mod fabric;
pub mod fault;
pub mod figures;
pub mod launch;
pub mod layout;
mod limits;
pub mod live;
pub mod memory;
pub mod message;
pub mod meter;
pub mod model;
pub mod object_store;
pub mod request;
pub mod runtime;
pub mod stats;
mod steady;
pub mod tally;
pub mod time;
pub mod trace;
pub mod weights;
pub mod world;
