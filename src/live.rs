//! A live supernode: a machine that stays up, its virtual time paced to the wall clock, behind an OpenAI-compatible
//! API, Prometheus metrics, a control API and a page.
//!
//! ```text
//! HTTP arbiter             driver thread                     executors (runtime)
//! openai, metrics, --Command--> driver: clock, meters --run_until--> actors
//! control, page    <--Mailbox--          deliveries  <--------------
//! ```
//! The driver alone touches the machine. Handlers send it commands over a channel and read tokens from mailboxes of
//! bounded size, so no client waits for another, and nothing blocks the arbiter.

mod api;
mod bell;
mod clock;
mod control;
mod driver;
mod faults;
mod gateway;
mod inbox;
mod load;
mod mailbox;
mod meters;
mod openai;
mod page;
mod record;
mod report;
mod server;
mod sse;
mod text;
mod tracer;
mod traces;

pub use clock::Pace;
pub use control::Desk;
pub use driver::{Driver, Finished, Options};
pub use gateway::{Counters, Facts, Gateway};
pub use inbox::inbox;
pub use load::Player;
pub use record::Recorder;
pub use report::Context;
pub use server::{Bound, Server};
