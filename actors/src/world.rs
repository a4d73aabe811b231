//! One shard's part of the machine: its dies, CPUs and links, and what all of them know from the start.
//! An actor sees only its own state, its messages and the services of `env.rs`; none holds a view of the whole.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use supernode_topology::{ActorId, Machine, Part};

use crate::beats::Span;
use crate::compute::{Calibration, DecodeTimes, PrefillTimes};
use crate::config::{Fidelity, Serving};
use crate::cpu::Cpu;
use crate::die::Die;
use crate::experts::{Busiest, Drift, ExpertLayers};
use crate::fabric::{Fabric, Paths, PhaseSend, post};
use crate::fault::{Change, Conditions, Verdict};
use crate::launch::Phase;
use crate::layout::{Layout, Role};
use crate::memory::DieMemory;
use crate::message::{Bulk, Msg};
use crate::meter::Meter;
use crate::model::ModelSpec;
use crate::object_store::ObjectStore;
use crate::runtime::{Actor, Ctx, Model};
use crate::tally::Tally;
use crate::time::Ps;
use crate::trace::Recorder;
use crate::weights::WeightPlan;

/// What every actor knows from the start: the machine's plan and the parts' costs. Never changes in a run.
#[derive(Debug)]
pub struct Shared {
    pub machine: Arc<Machine>,
    pub model: ModelSpec,
    pub serving: Serving,
    pub cal: Calibration,
    pub layout: Layout,
    pub paths: Paths,
    pub decode_times: DecodeTimes,
    pub prefill_times: Option<PrefillTimes>,
    /// How decode's expert load drifts, if it does.
    pub drift: Option<Drift>,
    pub decode_experts: Option<ExpertLayers>,
    pub prefill_experts: Option<ExpertLayers>,
    /// The busiest ranks of a decode group, by the plans and the load of the start.
    pub decode_busiest: Option<Busiest>,
    /// Tokens of KV that a decode die has memory for.
    pub decode_kv_tokens: u64,
    /// Experts that a decode die may hold beside those of its slots, of all layers each, while ranks are missing.
    pub experts_beside_max: u32,
    /// What is in the HBM of a die, by pool.
    pub decode_memory: Option<DieMemory>,
    pub prefill_memory: Option<DieMemory>,
    /// Bytes of one KV block in the cache, and of one token's KV.
    pub block_bytes: u64,
    pub kv_bytes_per_token: f64,
    pub phase: Phase,
    /// Closed loop: requests in the machine at any time.
    pub concurrency: Option<u32>,
    /// Tokens are sent home step by step, not at the end.
    pub stream_tokens: bool,
    /// Weights that a decode or prefill die loads before it can serve.
    pub decode_weight_bytes: u64,
    pub prefill_weight_bytes: u64,
    /// How weights reach the dies, if their loading is simulated.
    pub weights: Option<WeightPlan>,
    /// When faults strike and end: what was learnt of steps of one condition does not hold for those of another.
    /// Written only while nothing runs.
    pub conditions: RwLock<Conditions>,
    /// When beats are sent between neighbours: in order, with time between them. Written as `conditions`.
    pub beats: RwLock<Vec<Span>>,
    /// Requests come from outside while the machine runs, and what it makes is handed out.
    pub live: bool,
    pub shards: u32,
    pub progress: Counters,
    /// Smallest time from starting a dispatch or combine to its first byte at another die.
    pub phase_lookahead_ps: Ps,
    pub control_lookahead_ps: Ps,
}

/// Counted by all homes, for progress bars only: nothing in the machine reads them.
#[derive(Debug, Default)]
pub struct Counters {
    pub offered: AtomicU64,
    pub ended: AtomicU64,
}

impl Shared {
    /// Weights of one expert of one layer.
    pub fn expert_bytes(&self) -> f64 {
        self.model.expert_params() * self.serving.precision.weights.bytes()
    }

    pub fn node_of_die(&self, die: u32) -> u32 {
        die / self.machine.dies_per_node()
    }

    pub fn die_actor(&self, die: u32) -> Actor {
        self.machine.die(die).0
    }

    pub fn cpu_actor(&self, cpu: u32) -> Actor {
        self.machine.cpu(cpu).0
    }

    /// Index of a die from its actor id: dies come first.
    pub fn die_index(&self, actor: Actor) -> u32 {
        debug_assert!(actor < self.machine.die_count());
        actor
    }

    pub fn cpu_index(&self, actor: Actor) -> u32 {
        actor - self.machine.die_count()
    }

    /// Object storage, which is an actor beside those of the machine.
    pub fn object_store(&self) -> Actor {
        self.machine.actor_count()
    }

    pub fn is_die(&self, actor: Actor) -> bool {
        actor < self.machine.die_count()
    }

    pub fn node_of(&self, actor: Actor) -> u32 {
        self.machine.node_of(ActorId(actor))
    }

    pub fn shard_of(&self, actor: Actor) -> usize {
        crate::layout::Layout::shard_of_node(self.node_of(actor), self.shards) as usize
    }

    /// When which faults are in force.
    pub fn conditions(&self) -> RwLockReadGuard<'_, Conditions> {
        self.conditions.read().expect("no writer panics")
    }

    /// A fault has struck, or is known to come.
    pub fn has_faults(&self) -> bool {
        self.conditions().any()
    }

    /// Tokens go home step by step: always where faults may cut a request short.
    pub fn streams_tokens(&self) -> bool {
        self.stream_tokens || self.has_faults()
    }

    pub fn message_level(&self) -> bool {
        self.serving.fidelity.level == Fidelity::Message
    }
}
/// What an actor of `$world` can do while it handles a message from `$from`; leaves the actors themselves alone.
macro_rules! env_of {
    ($world:expr, $ctx:expr, $shared:expr, $from:expr) => {
        $crate::env::Env {
            ctx: $ctx,
            fabric: &mut $world.fabric,
            tally: &mut $world.tally,
            meters: &mut $world.meters,
            trace: &mut $world.trace,
            shared: $shared,
            from: $from,
        }
    };
}
pub(crate) use env_of;

/// One shard's actors.
pub struct World {
    pub shared: Arc<Shared>,
    pub dies: Vec<Option<Box<Die>>>,
    pub cpus: Vec<Option<Box<Cpu>>>,
    /// Object storage, on one shard.
    pub object_store: Option<ObjectStore>,
    pub fabric: Fabric,
    pub tally: Tally,
    /// Of dies and CPUs, by actor; only those of this shard are touched.
    pub meters: Vec<Meter>,
    pub trace: Recorder,
    /// A fault has struck some part of this shard.
    pub struck: bool,
}

impl World {
    /// Hands a message to its actor.
    fn deliver(&mut self, to: Actor, from: Actor, msg: Msg, ctx: &mut Ctx<'_, Self>) {
        if let Some(store) = &mut self.object_store
            && to == self.shared.object_store()
        {
            return store.handle(from, &msg, ctx);
        }
        // No count of references: all shards would write to it, with every event.
        let shared: &Shared = &self.shared;
        if let Some(meter) = self.meters.get_mut(to as usize) {
            meter.handled += 1;
        }
        let mut env = env_of!(self, ctx, shared, from);
        let msg = match msg {
            Msg::Inbound(inbound) => return env.inbound(from, *inbound),
            Msg::Unacked { to, inbound } => return env.unacked(to, *inbound),
            Msg::Copy(copying) => return env.copy(copying),
            Msg::Copied { started_ps } => {
                let took_ps = env.now() - started_ps;
                return env.tally.copies_ps.push(took_ps);
            }
            other => other,
        };
        if shared.is_die(to) {
            let die = self.dies[to as usize].as_mut();
            die.expect("a die gets messages on its own shard only")
                .handle(from, msg, &mut env);
        } else {
            let cpu = self.cpus[shared.cpu_index(to) as usize].as_mut();
            cpu.expect("a CPU gets messages on its own shard only")
                .handle(from, msg, &mut env);
        }
    }
}

impl Model for World {
    type Msg = Msg;
    type Bulk = Bulk;

    fn handle(&mut self, to: Actor, from: Actor, msg: Msg, ctx: &mut Ctx<'_, Self>) {
        if let Msg::NodeStep(step) = msg {
            return self.node_step(to, from, &step, ctx);
        }
        self.struck |= matches!(msg, Msg::Fault(_));
        if !self.struck {
            return self.deliver(to, from, msg, ctx);
        }
        if let Msg::Fault(strike) = &msg {
            self.trace.fault(ctx.now(), to, strike);
        }
        let Verdict::Handle(from, msg) = self.gate(to, from, msg, ctx) else {
            return;
        };
        if let Msg::Fault(strike) = msg {
            let change = self.strike(to, strike, ctx);
            self.deliver(to, from, Msg::Changed(change), ctx);
            if change == Change::Resumed {
                for (from, msg) in self.held(to) {
                    self.deliver(to, from, msg, ctx);
                }
            }
            return;
        }
        self.deliver(to, from, msg, ctx);
    }

    fn absorb(&mut self, bulk: Bulk, ctx: &mut Ctx<'_, Self>) {
        let send = PhaseSend {
            channel: bulk.channel,
            phase: bulk.phase,
            source: bulk.source,
            expected: bulk.expected,
            unit_bytes: bulk.unit_bytes,
            from_ps: bulk.from_ps,
            flags_from_ps: bulk.flags_from_ps,
            flag_ps: bulk.flag_ps,
        };
        post(
            ctx,
            &mut self.fabric,
            &self.shared,
            bulk.board,
            &send,
            &bulk.row,
        );
        // It goes back as a row of this shard.
        self.fabric.keep_row(bulk.row);
    }

    fn class(msg: &Msg) -> usize {
        match msg {
            Msg::AttentionDone { .. }
            | Msg::Collected { .. }
            | Msg::ExpertsDone
            | Msg::LayerDone
            | Msg::Landed { .. }
            | Msg::Computed { .. } => PHASE_CLASS,
            _ => CONTROL_CLASS,
        }
    }

    fn digest(msg: &Msg) -> u64 {
        msg.digest()
    }

    /// Boxes are handed over, small values copied.
    fn take(msg: &mut Msg) -> Msg {
        std::mem::replace(msg, Msg::Taken)
    }

    fn address(&self, actor: Actor) -> String {
        if actor == self.shared.object_store() {
            return "object storage".into();
        }
        self.shared.machine.address(ActorId(actor))
    }

    fn kind(&self, actor: Actor) -> usize {
        if actor == self.shared.object_store() {
            return 2;
        }
        match self.shared.machine.part(ActorId(actor)) {
            Part::Die { .. } => match self.shared.layout.roles[actor as usize] {
                Role::Prefill { .. } => 0,
                Role::Decode { .. } => 1,
                Role::Idle => 2,
            },
            Part::Cpu { .. } => 3,
            _ => 4,
        }
    }

    fn kind_names() -> &'static [&'static str] {
        &["prefill die", "decode die", "idle die", "CPU", "link"]
    }
}

/// Lookahead classes: events that can send small messages at once, and events that can only start a phase.
pub const CONTROL_CLASS: usize = 0;
pub const PHASE_CLASS: usize = 1;
