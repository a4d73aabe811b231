//! The weights of a model as the pool keeps them: blocks of one long image, each owned by a CPU, and which of them
//! each die reads. Plain data, made once from model and scenario.

use std::collections::BTreeMap;

use supernode_topology::Machine;

use crate::compute::Calibration;
use crate::config::{Serving, WeightCopies, WeightStart};
use crate::experts::{ExpertLayers, SlotUse, of_layer};
use crate::fabric::PerByte;
use crate::layout::{Layout, Ring, Role};
use crate::memory::WeightBytes;
use crate::model::ModelSpec;
use crate::time::{Ps, ps_from_s};

/// Models of a run: the one it starts with, and the one it switches to.
pub const MODELS: usize = 2;

/// Time for the last words of those who have drained, after `drain_s`.
const GRACE_S: f64 = 1.0;

/// A model's weights in a row: head and embedding, attention, dense layers, then the experts layer by layer.
#[derive(Clone, Debug)]
pub struct Image {
    block_bytes: u64,
    head_shard_bytes: u64,
    head_shards: u64,
    attention_bytes: u64,
    dense_bytes: u64,
    expert_bytes: u64,
    /// MoE layers, the multi-token-prediction layer's among them.
    layers: u32,
    routed: u32,
    shared: u32,
}

/// What a die needs of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub block: u32,
    pub bytes: u64,
}

impl Image {
    pub fn new(model: &ModelSpec, serving: &Serving, cal: &Calibration) -> Self {
        let w = WeightBytes::new(model, serving.precision.weights, cal);
        let whole = |bytes: f64| bytes.round() as u64;
        Self {
            block_bytes: u64::from(serving.model_cache.block_mb) * 1_000_000,
            head_shard_bytes: whole(w.head_shard),
            head_shards: u64::from(cal.head.tensor_parallel_dies),
            attention_bytes: whole(w.attention),
            dense_bytes: whole(w.dense),
            expert_bytes: whole(w.expert),
            layers: model.moe_layers() + model.mtp_layers,
            routed: model.routed_experts,
            shared: model.shared_experts,
        }
    }

    pub fn bytes(&self) -> u64 {
        self.expert_at(self.layers, 0)
    }

    pub fn blocks(&self) -> u32 {
        self.bytes().div_ceil(self.block_bytes) as u32
    }

    /// The last block is shorter than the others.
    pub fn block_bytes(&self, block: u32) -> u64 {
        let from = u64::from(block) * self.block_bytes;
        self.block_bytes.min(self.bytes() - from)
    }

    fn expert_at(&self, layer: u32, expert: u32) -> u64 {
        let experts = u64::from(self.routed + self.shared);
        self.head_shard_bytes * self.head_shards
            + self.attention_bytes
            + self.dense_bytes
            + (u64::from(layer) * experts + u64::from(expert)) * self.expert_bytes
    }

    /// What a rank with these experts reads, in the order of the image.
    pub fn of_rank(&self, experts: &ExpertLayers, rank: u32) -> Vec<Piece> {
        let head = self.head_shard_bytes * self.head_shards;
        let shard = u64::from(rank) % self.head_shards * self.head_shard_bytes;
        let mut need = BTreeMap::new();
        self.add(shard, self.head_shard_bytes, &mut need);
        self.add(head, self.attention_bytes + self.dense_bytes, &mut need);
        let slots = experts.slots_per_rank as usize;
        for layer in 0..self.layers {
            let plan = of_layer(&experts.plans, layer);
            let uses = &plan.uses[rank as usize * slots..(rank as usize + 1) * slots];
            for slot in uses {
                let (first, count) = match slot {
                    SlotUse::Empty => continue,
                    SlotUse::Shared => (self.routed, self.shared),
                    SlotUse::Routed(e) => (u32::from(*e), 1),
                };
                let bytes = u64::from(count) * self.expert_bytes;
                self.add(self.expert_at(layer, first), bytes, &mut need);
            }
        }
        let piece = |(block, bytes)| Piece { block, bytes };
        need.into_iter().map(piece).collect()
    }

    fn add(&self, from: u64, bytes: u64, need: &mut BTreeMap<u32, u64>) {
        let (mut at, end) = (from, from + bytes);
        while at < end {
            let block = at / self.block_bytes;
            let next = ((block + 1) * self.block_bytes).min(end);
            *need.entry(block as u32).or_default() += next - at;
            at = next;
        }
    }
}

/// Which block of which model, in which copy: what the pool finds it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockName {
    pub copy: u16,
    pub model: u8,
    pub block: u32,
}

impl BlockName {
    pub fn key(self) -> u64 {
        u64::from(self.copy) << 48 | u64::from(self.model) << 40 | u64::from(self.block)
    }

    pub fn of(key: u64) -> Self {
        Self {
            copy: (key >> 48) as u16,
            model: (key >> 40) as u8,
            block: key as u32,
        }
    }
}

/// How the weights of a run reach its dies. There is one only if a load is simulated.
#[derive(Clone, Debug)]
pub struct WeightPlan {
    pub image: Image,
    /// By model: its weights are in the DRAM of the pool from the start.
    pub warm: [bool; MODELS],
    /// The run starts with a load.
    pub loads_at_start: bool,
    /// When requests begin to be for the other model; when who was to end of the one before has ended or failed; and
    /// when whoever has not heard of it switches all the same.
    pub switch: Option<SwitchTimes>,
    pub object_store: PerByte,
    /// By copy.
    rings: Vec<Ring>,
    one_copy: bool,
    /// Bytes of weights that each CPU owns, by model; none of one that is not loaded.
    owned_bytes: [Vec<u64>; MODELS],
}

#[derive(Clone, Copy, Debug)]
pub struct SwitchTimes {
    pub at_ps: Ps,
    pub drained_ps: Ps,
    pub over_ps: Ps,
}

impl WeightPlan {
    /// None where nothing is loaded.
    ///
    /// # Errors
    /// When the pool has too little DRAM, with the sum.
    pub fn new(
        machine: &Machine,
        model: &ModelSpec,
        serving: &Serving,
        cal: &Calibration,
        layout: &Layout,
    ) -> Result<Option<Self>, String> {
        let m = &serving.model_cache;
        let loads_at_start = m.start != WeightStart::Resident;
        let groups = layout.prefill.iter().chain(&layout.decode);
        if !(loads_at_start || m.switch_at_s.is_some()) {
            return Ok(None);
        }
        let one_copy = m.copies == WeightCopies::Shared;
        let rings = if one_copy {
            vec![layout.ring.clone()]
        } else {
            let per_node = machine.cpus_per_node();
            let own = |nodes: &[u32]| -> Vec<u32> {
                let all = nodes.iter();
                all.flat_map(|&n| (0..per_node).map(move |c| n * per_node + c))
                    .collect()
            };
            groups.map(|g| Ring::new(&own(&g.nodes))).collect()
        };
        if rings.iter().any(Ring::is_empty) {
            return Err(
                "model_cache.start: the weights are kept in the pool: set cache.enabled = true"
                    .into(),
            );
        }
        let switch = m.switch_at_s.map(|at_s| SwitchTimes {
            at_ps: ps_from_s(at_s),
            drained_ps: ps_from_s(at_s + m.drain_s),
            over_ps: ps_from_s(at_s + m.drain_s + GRACE_S),
        });
        let gb_per_s = m
            .object_store_gb_per_s
            .unwrap_or(machine.spec.storage.object_store_gb_per_s);
        let mut plan = Self {
            image: Image::new(model, serving, cal),
            warm: [
                m.start == WeightStart::Warm,
                m.switch_from == WeightStart::Warm,
            ],
            loads_at_start,
            switch,
            object_store: PerByte::from_gb_per_s(gb_per_s),
            rings,
            one_copy,
            owned_bytes: std::array::from_fn(|_| vec![0; machine.cpu_count() as usize]),
        };
        let models = [loads_at_start, switch.is_some()];
        for (model, _) in models.iter().enumerate().filter(|(_, loaded)| **loaded) {
            for copy in 0..plan.rings.len() as u16 {
                for block in 0..plan.image.blocks() {
                    let (model, bytes) = (model as u8, plan.image.block_bytes(block));
                    let name = BlockName { copy, model, block };
                    let owner = plan.owner(name, |_| true).expect("no ring is empty");
                    plan.owned_bytes[usize::from(model)][owner as usize] += bytes;
                }
            }
        }
        plan.check_dram(machine, serving)?;
        Ok(Some(plan))
    }

    fn check_dram(&self, machine: &Machine, serving: &Serving) -> Result<(), String> {
        let dram_gb = serving.cache.dram_gb_per_node / f64::from(machine.cpus_per_node());
        let owned = || (0..machine.cpu_count()).map(|c| self.set_aside_bytes(c));
        let most = owned().max().unwrap_or(0) as f64 / 1e9;
        if most <= dram_gb {
            return Ok(());
        }
        let all: u64 = owned().sum();
        Err(format!(
            "cache.dram_gb_per_node = {}: the pool is to hold {:.1} GB of weights, {most:.1} GB of them in one CPU's DRAM \
             of {dram_gb:.1} GB: raise cache.dram_gb_per_node or cache.nodes, or load one model only",
            serving.cache.dram_gb_per_node,
            all as f64 / 1e9,
        ))
    }

    /// DRAM that a CPU sets aside for weights.
    pub fn set_aside_bytes(&self, cpu: u32) -> u64 {
        self.owned_bytes.iter().map(|o| o[cpu as usize]).sum()
    }

    /// Which copy a die reads.
    pub fn copy_of(&self, layout: &Layout, die: u32) -> u16 {
        match layout.roles[die as usize] {
            _ if self.one_copy => 0,
            Role::Idle => 0,
            Role::Prefill { group, .. } => group,
            Role::Decode { group, .. } => layout.prefill.len() as u16 + group,
        }
    }

    /// The CPU that keeps a block, of those that `usable` accepts.
    pub fn owner(&self, name: BlockName, usable: impl Fn(u32) -> bool) -> Option<u32> {
        self.rings[usize::from(name.copy)].owner(name.key(), usable)
    }

    /// The model that is to be served at a time.
    pub fn model_at(&self, now: Ps) -> u8 {
        u8::from(self.switch.is_some_and(|s| now >= s.drained_ps))
    }

    /// What a CPU owns of the models that were warm from the start.
    pub fn warm_bytes(&self, cpu: u32, warm: [bool; MODELS]) -> u64 {
        let models = warm.iter().zip(&self.owned_bytes);
        let warm = models.filter(|(warm, _)| **warm);
        warm.map(|(_, owned)| owned[cpu as usize]).sum()
    }

    pub fn copies(&self) -> u32 {
        self.rings.len() as u32
    }
}
