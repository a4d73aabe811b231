//! The links of one shard's nodes, and the boards of its groups.

use supernode_topology::{ActorId, Machine};

use crate::fabric::{Arrived, Board, Cell, Health, Link};

/// The links of this shard's nodes and the boards of its groups.
#[derive(Debug)]
pub struct Fabric {
    /// By link actor id, counted from the first link. All 7 lanes of a part carry equal shares of each message, so
    /// lane 0 stands for all seven.
    pub(crate) links: Vec<Link>,
    pub(crate) first_link: u32,
    /// Prefill groups' boards, then decode groups'.
    pub boards: Vec<Board>,
    /// Links that faults have struck.
    pub health: Health,
    /// Bytes that left and entered each node over its L1-L2 links.
    pub node_up_bytes: Vec<u64>,
    pub node_down_bytes: Vec<u64>,
    /// Reused between phases.
    pub(super) cells: Vec<Cell>,
    pub(super) arrived: Vec<Arrived>,
}

impl Fabric {
    pub fn new(machine: &Machine, boards: Vec<Board>, health: Health) -> Self {
        let first_link = machine.die_count() + machine.cpu_count();
        Self {
            links: vec![Link::default(); (machine.actor_count() - first_link) as usize],
            first_link,
            boards,
            health,
            node_up_bytes: vec![0; machine.node_count() as usize],
            node_down_bytes: vec![0; machine.node_count() as usize],
            cells: Vec::new(),
            arrived: Vec::new(),
        }
    }

    pub fn link(&mut self, id: ActorId) -> &mut Link {
        &mut self.links[(id.0 - self.first_link) as usize]
    }

    pub fn peek(&self, id: ActorId) -> &Link {
        &self.links[(id.0 - self.first_link) as usize]
    }
}
