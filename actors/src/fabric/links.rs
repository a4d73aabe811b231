//! The links of one shard's nodes, and the boards of its groups.

use supernode_topology::{ActorId, Machine};

use crate::fabric::{Arrived, Board, Health, Hosts, Link, Row};

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
    /// CPUs that faults slow.
    pub hosts: Hosts,
    /// What left and entered each node over its L1-L2 links.
    pub borders: Vec<Border>,
    /// Reused between phases.
    pub(super) row: Row,
    pub(super) arrived: Vec<Arrived>,
    rows: Vec<Row>,
    pub(crate) scratch: Scratch,
}

/// What a rank works with while it handles a message, and needs no longer: the same memory for all, which stays near.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Tokens by expert, and by slot.
    pub counts: Vec<u32>,
    pub by_slot: Vec<u32>,
    /// Units by `source * slots + slot`.
    pub received: Vec<u16>,
}

/// What crossed a node's border one way. Every message crosses it on each sub-plane, with a stripe of its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Crossed {
    pub bytes: u64,
    pub messages: u64,
}

impl Crossed {
    #[inline]
    pub fn add(&mut self, bytes: u64, messages: u64) {
        self.bytes += bytes;
        self.messages += messages;
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Border {
    pub up: Crossed,
    pub down: Crossed,
}

impl Fabric {
    /// What crossed a node's border, up and down, as all shards saw it.
    pub fn border<'a>(shards: impl Iterator<Item = &'a Self>, node: usize) -> Border {
        let mut sum = Border::default();
        for Border { up, down } in shards.map(|f| f.borders[node]) {
            sum.up.add(up.bytes, up.messages);
            sum.down.add(down.bytes, down.messages);
        }
        sum
    }

    pub fn new(machine: &Machine, boards: Vec<Board>, health: Health) -> Self {
        let first_link = machine.die_count() + machine.cpu_count();
        Self {
            links: vec![Link::default(); (machine.actor_count() - first_link) as usize],
            first_link,
            boards,
            health,
            hosts: Hosts::new(machine),
            borders: vec![Border::default(); machine.node_count() as usize],
            row: Row::default(),
            arrived: Vec::new(),
            rows: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// An empty row, of those that are no longer needed if there is one.
    pub(super) fn empty_row(&mut self) -> Row {
        self.rows.pop().unwrap_or_default()
    }

    /// A row is no longer needed.
    pub fn keep_row(&mut self, mut row: Row) {
        /// More would only be needed if shards sent each other more rows than they got.
        const KEPT_MOST: usize = 1 << 10;
        if self.rows.len() < KEPT_MOST {
            row.clear();
            self.rows.push(row);
        }
    }

    pub fn link(&mut self, id: ActorId) -> &mut Link {
        &mut self.links[(id.0 - self.first_link) as usize]
    }

    pub fn peek(&self, id: ActorId) -> &Link {
        &self.links[(id.0 - self.first_link) as usize]
    }
}
