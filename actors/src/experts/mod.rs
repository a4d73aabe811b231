//! Experts: which die holds which copy (`Plan`), how tokens choose them (`Routing`), and EPLB.

mod eplb;
mod plan;
mod popularity;
mod routing;

pub use eplb::{place, replicate};
pub use plan::{Plan, SlotUse};
pub use popularity::{ExpertFigures, PopularityFigures, popularity};
pub use routing::{Dealer, Routing};
