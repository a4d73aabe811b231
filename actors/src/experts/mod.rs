//! Experts: which die holds which copy (`Plan`), how tokens choose them (`Routing`), and EPLB.

mod busiest;
mod deal;
mod drift;
mod eplb;
mod layers;
mod messages;
mod observed;
mod plan;
mod popularity;
mod repair;
mod routing;
mod tables;

pub use busiest::{Busiest, unit_of};
pub use deal::Hand;
pub use drift::Drift;
pub use eplb::{place, replicate};
pub use layers::{ExpertLayers, ExpertSetup, of_layer, start_loads};
pub use messages::{ExpertMsg, ExpertState, NewPlan};
pub use observed::Observed;
pub use plan::{Plan, SlotUse};
pub use popularity::{ExpertFigures, PopularityFigures, popularity};
pub use repair::Room;
pub use routing::Routing;
pub use tables::{ExpertTables, Placement};
