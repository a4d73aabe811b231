//! Time of operators on a die: a roofline of operations over achievable rate and bytes over achievable
//! bandwidth, with the share of cores that the stream holds, plus a fixed overhead per operator.

mod calibration;
mod decode;
mod prefill;
mod roofline;

pub use calibration::{Calibration, Operators};
pub use decode::{AttentionParts, DecodeTimes, MicrobatchLoad};
pub use prefill::{PrefillLoad, PrefillTimes};
pub use roofline::{DiePeaks, Product, Roofline, Share};
