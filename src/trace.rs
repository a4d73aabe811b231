//! Trace files: written as a run goes, and read back to answer questions. They are Perfetto's protobuf format, so they
//! open in its UI and trace processor as they are; figures that Perfetto rounds (it counts nanoseconds) are kept to
//! the picosecond in annotations.

pub mod ask;
mod bandwidth;
pub mod events;
mod marks;
mod packets;
mod read;
pub mod said;
mod sink;
mod tracks;
mod wire;

pub use packets::{Header, Writer};
pub use read::{Counted, Read, Slice};
pub use sink::{Sink, Summary, TraceOptions};
