//! Supernode: a virtual CloudMatrix384 serving a large language model in messages between actors.
//!
//! This crate is what a person touches: the command line, scenario files, workloads and reports. The
//! machine itself is in `supernode-actors`, its parts and wiring in `supernode-topology`.

pub mod audit;
pub mod chaos;
pub mod cli;
pub mod drill;
pub mod error;
mod expert_files;
pub mod fault;
pub mod live;
mod npy;
pub mod ops;
pub mod page;
pub mod report;
pub mod run;
pub mod rundir;
pub mod scenario;
pub mod sweep;
pub mod trace;
pub mod workload;
