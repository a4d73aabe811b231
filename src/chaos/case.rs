//! What a seed makes: a machine of a few nodes, a layout on it, requests, and faults.

use supernode_actors::config::{Balance, Fidelity, KvPlane, Microbatch, Serving};
use supernode_actors::fault::{Effect, Ways};
use supernode_actors::launch::{Load, Phase};
use supernode_actors::model::ModelSpec;
use supernode_actors::request::{Prefix, RequestSpec};
use supernode_actors::runtime::Rng;
use supernode_actors::time::{PS_PER_MS, PS_PER_US, Ps};
use supernode_topology::Machine;

use crate::fault::{Said, Spoken, contradict};

/// One random run.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    nodes: u32,
    planes: u32,
    l2_chips: u32,
    pub model: ModelSpec,
    pub serving: Serving,
    pub load: Load,
    pub plan: Vec<Said>,
}

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.below(of.len() as u64) as usize]
}

impl Case {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 0x0063_6861_6f73);
        let r = &mut rng;
        let model = small_model();
        let mut s = Serving::default();
        s.prefill.instances = 1 + r.below(3) as u32;
        s.prefill.npus_per_instance = 1 + r.below(3) as u32;
        s.decode.instances = 1 + r.below(2) as u32;
        s.decode.npus_per_instance = 1 + r.below(4) as u32;
        s.prefill.batch_tokens_per_npu = 256 + r.below(4_000) as u32;
        s.prefill.microbatch = r.below(2) == 0;
        (s.prefill.redundant, s.prefill.shared_replicas) = (4, 4);
        (s.experts.redundant, s.experts.shared_replicas) = (4, 4);
        s.experts.balance = pick(r, &[Balance::None, Balance::Eplb, Balance::Perfect]);
        s.decode.max_batch_per_npu = 2 + r.below(8) as u32;
        s.decode.microbatch = pick(r, &[Microbatch::On, Microbatch::Off, Microbatch::Auto]);
        s.decode.mtp_tokens = r.below(3) as u32;
        s.cache.enabled = r.below(4) > 0;
        s.cache.dram_gb_per_node = pick(r, &[0.1, 1.0, 100.0]);
        s.cache.ssd_gb_per_node = pick(r, &[0.0, 10.0]);
        s.kv_transfer.plane = pick(r, &[KvPlane::Rdma, KvPlane::Ub, KvPlane::Vpc]);
        s.fidelity.level = pick(r, &[Fidelity::Message, Fidelity::Step]);
        let (nodes, planes, l2_chips) = (
            4 + r.below(2) as u32,
            1 + r.below(7) as u32,
            1 + r.below(4) as u32,
        );
        let mut case = Self {
            seed,
            nodes,
            planes,
            l2_chips,
            model,
            serving: s,
            load: Load {
                phase: Phase::Both,
                requests: Vec::new(),
                concurrency: None,
            },
            plan: Vec::new(),
        };
        case.load.requests = requests(r);
        if r.below(3) == 0 {
            case.load.concurrency = Some(1 + r.below(12) as u32);
        }
        case.plan = plan(r, &case.machine());
        case.moves_experts();
        case.makes_room();
        case
    }

    /// Experts that move while parts fail. Seeds below 1,000 keep the cases in which they found something.
    fn moves_experts(&mut self) {
        let e = &mut self.serving.experts;
        let mut rng = Rng::new(self.seed, 0x6578_7065_7274_7300);
        if self.seed < 1_000 || e.balance != Balance::Eplb || rng.below(4) == 0 {
            return;
        }
        e.eplb_interval_s = (1 + rng.below(10)) as f64 / 10.0;
        e.drift_s = if rng.below(2) == 0 { 0.3 } else { 0.0 };
        e.skew = pick(&mut rng, &[0.5, 1.0]);
    }

    /// What happens when experts find no slot: seeds below 1,000 wait for dies to come back, of the others every second does,
    /// the rest take experts up beside those of their slots.
    fn makes_room(&mut self) {
        let mut rng = Rng::new(self.seed, 0x6265_7369_6465);
        if self.seed < 1_000 || rng.below(2) == 0 {
            self.serving.recovery.kv_for_experts = 0.0;
        }
    }

    pub fn machine(&self) -> Machine {
        small_machine(self.nodes, self.planes, self.l2_chips)
    }

    /// The plan, a line each.
    pub fn lines(&self) -> Vec<String> {
        self.plan.iter().map(|f| f.spoken.text()).collect()
    }

    /// What it is, in a line.
    pub fn text(&self) -> String {
        let s = &self.serving;
        format!(
            "{} nodes, {} planes of {} L2 chips; {} x {} prefill and {} x {} decode NPUs; {} requests{}; {:?} fidelity",
            self.nodes,
            self.planes,
            self.l2_chips,
            s.prefill.instances,
            s.prefill.npus_per_instance,
            s.decode.instances,
            s.decode.npus_per_instance,
            self.load.requests.len(),
            match self.load.concurrency {
                Some(n) => format!(", {n} at a time"),
                None => String::new(),
            },
            s.fidelity.level,
        )
    }
}

/// DeepSeek's shape with few layers, so that a step is short and all experts fit on a few dies.
pub fn small_model() -> ModelSpec {
    let mut model = ModelSpec::builtin("deepseek-r1").expect("a built-in model");
    model.layers = 4;
    model.dense_layers = 1;
    model.routed_experts = 32;
    model
}

/// `mini4`, with another number of nodes, sub-planes and L2 chips.
pub fn small_machine(nodes: u32, planes: u32, l2_chips: u32) -> Machine {
    // Fewer sub-planes have wider lanes, so that the measured rates still fit through them.
    let lane_gb_per_s = 28.0 * 7.0 / f64::from(planes);
    let text = format!(
        "name = \"small\"\nbase = \"mini4\"\n[counts]\nnodes = {nodes}\nplanes = {planes}\nl2_chips_per_plane = {l2_chips}\n\
         [ub]\nlane_gb_per_s = {lane_gb_per_s}\nuplink_gb_per_s = {lane_gb_per_s}\n"
    );
    Machine::from_toml(&text, "a small machine").expect("its counts are in range")
}

/// What a prompt may share with others: nothing, what is cached from the start (1), or blocks with those of its `family`.
pub fn some_prefix(kind: u64, prompt_tokens: u32, family: u64) -> Prefix {
    match kind {
        0 => Prefix::Unique,
        1 => Prefix::Cached {
            tokens: prompt_tokens / 2,
        },
        _ => Prefix::Blocks {
            block_tokens: 512,
            ids: (0..u64::from(prompt_tokens).div_ceil(512))
                .map(|b| family * 1_000 + b)
                .collect(),
        },
    }
}

fn requests(r: &mut Rng) -> Vec<RequestSpec> {
    let n = 1 + r.below(40);
    let mut at: Vec<Ps> = (0..n).map(|_| r.below(3_000) * PS_PER_MS).collect();
    at.sort_unstable();
    at.into_iter()
        .enumerate()
        .map(|(id, arrival_ps)| {
            let prompt_tokens = 1 + r.below(5_000) as u32;
            let family = r.below(4);
            let output_tokens = 1 + r.below(200) as u32;
            RequestSpec {
                id: id as u64,
                arrival_ps,
                prompt_tokens,
                output_tokens,
                prefix: some_prefix(r.below(3), prompt_tokens, family),
            }
        })
        .collect()
}

fn plan(r: &mut Rng, m: &Machine) -> Vec<Said> {
    let mut plan: Vec<Said> = Vec::new();
    let mut found = Vec::new();
    for _ in 0..1 + r.below(6) {
        let start_ps = r.below(4_000) * PS_PER_MS;
        let end_ps = (r.below(4) > 0).then(|| start_ps + (1 + r.below(3_000)) * PS_PER_MS);
        let links = r.below(2) == 0;
        let share = (1 + r.below(90)) as f64 / 100.0;
        let effect = if links {
            match r.below(6) {
                0 => Effect::Slow(share),
                1 => Effect::Delay((1 + r.below(50)) * PS_PER_US),
                2 => Effect::Jitter((1 + r.below(50)) * PS_PER_US),
                3 => Effect::Loss(share / 4.0),
                4 => Effect::Flap {
                    period_ps: (1 + r.below(100)) * PS_PER_MS,
                    up: share,
                },
                _ => Effect::Down,
            }
        } else {
            match r.below(5) {
                0 => Effect::Throttle(share.max(0.1)),
                1 => Effect::HbmSlow(share.max(0.1)),
                2 => Effect::Hang,
                _ => Effect::Crash,
            }
        };
        let ways = match (links, r.below(4)) {
            (true, 0) => Ways::Out,
            (true, 1) => Ways::In,
            _ => Ways::Both,
        };
        let said = Said {
            origin: "chaos".into(),
            spoken: Spoken {
                start_ps,
                end_ps,
                effect,
                ways,
                address: address(r, m, links),
            },
        };
        let Ok(fault) = said.resolve(m) else {
            continue;
        };
        if found.iter().all(|f| contradict(f, &fault).is_none()) {
            found.push(fault);
            plan.push(said);
        }
    }
    plan
}

fn address(r: &mut Rng, m: &Machine, links: bool) -> String {
    let node = r.below(u64::from(m.node_count()));
    let npu = r.below(u64::from(m.npus_per_node()));
    let die = r.below(u64::from(m.dies_per_npu()));
    let cpu = r.below(u64::from(m.cpus_per_node()));
    let plane = r.below(u64::from(m.planes()));
    let chip = r.below(u64::from(m.l2_chips_per_plane()));
    if links {
        match r.below(9) {
            0 => format!("node{node}/npu{npu}/die{die}/ub{plane}"),
            1 => format!("node{node}/npu{npu}/die{die}/ub*"),
            2 => format!("node{node}/npu{npu}/die{die}/rdma"),
            3 => format!("node{node}/l1.{plane}"),
            4 => format!("node{node}/l1.{plane}/up{chip}"),
            5 => format!("plane{plane}/l2.{chip}"),
            6 => format!("node{node}/cpu{cpu}/ub*"),
            7 => format!("node{node}/npu{npu}/sio"),
            _ => format!("node{node}/vpc"),
        }
    } else {
        // The first nodes are those that serve.
        let node = r.below(u64::from(m.node_count().min(2)));
        match r.below(5) {
            0 => format!("node{node}/npu{npu}/*"),
            1 => format!("node{node}/cpu{cpu}"),
            2 => format!("node{node}"),
            _ => format!("node{node}/npu{npu}/die{die}"),
        }
    }
}
