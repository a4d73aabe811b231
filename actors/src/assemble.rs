//! Putting a scenario together before a run (plans, memory, costs), and the tallies of all shards together
//! after it.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use supernode_topology::Machine;

use crate::compute::{DecodeTimes, DiePeaks, PrefillTimes, Roofline};
use crate::config::{Fidelity, Number, Serving};
use crate::die::Part;
use crate::experts::{Busiest, Drift, ExpertLayers, ExpertSetup, ExpertTables, start_loads};
use crate::fabric::{Border, Crossed, Direction, Fabric, Paths};
use crate::launch::{Launch, Phase};
use crate::layout::{Group, Layout, mix};
use crate::limits;
use crate::memory::{DieMemory, DieUse};
use crate::runtime::Simulation;
use crate::stats::{LinkClassStats, MemoryStats, PoolStats, RunStats, WeightCounts};
use crate::tally::Layers;
use crate::time::{Ps, ps_from_s, ps_from_us};
use crate::weights::WeightPlan;
use crate::world::{Counters, Shared, World};

/// All that actors know from the start.
///
/// # Errors
/// What does not fit, with the sum.
pub fn shared(launch: &Launch) -> Result<Shared, String> {
    let Launch {
        machine,
        model,
        serving,
        calibration: cal,
        seed,
        shards,
        load,
        experts: tables,
    } = launch;
    cal.check()?;
    let phase = load.phase;
    let layout = Layout::new(
        machine,
        serving,
        phase != Phase::Decode,
        phase != Phase::Prefill,
    )?;
    limits::check(&layout, serving, model, machine.dies_per_npu())?;
    let weights = WeightPlan::new(machine, model, serving, cal, &layout)?;
    let paths = Paths::new(machine);
    let d = &machine.spec.die;
    let roof = Roofline {
        peaks: DiePeaks::of(d),
        int8: serving.precision.weights == Number::Int8,
        cal: cal.clone(),
    };
    check_placement(tables, serving, &layout)?;
    let experts_of = |keys, groups: &[Group], (redundant, shared_replicas)| {
        let make = |g: &Group| {
            ExpertLayers::new(ExpertSetup {
                keys,
                model,
                experts: &serving.experts,
                tables,
                ranks: g.ranks(),
                redundant,
                shared_replicas,
                seed: *seed,
            })
        };
        groups.first().map(make).transpose()
    };
    let (p, e) = (&serving.prefill, &serving.experts);
    let drift = (e.drift_s > 0.0).then(|| {
        let loads = start_loads(model, e, tables, *seed);
        Drift::new(
            loads,
            ps_from_s(e.drift_s),
            e.skew,
            e.drift_correlation,
            model.top_k,
            *seed,
        )
    });
    let decode_experts = experts_of(
        ("decode", "experts"),
        &layout.decode,
        (e.redundant, e.shared_replicas),
    )?;
    let prefill_experts = experts_of(
        ("prefill", "prefill"),
        &layout.prefill,
        (p.redundant, p.shared_replicas),
    )?;
    let kv_bytes_per_token = model.kv_bytes_per_token(serving.precision.kv);
    let dies_per_npu = machine.dies_per_npu();
    let memory_of = |groups: &[Group], e: &Option<ExpertLayers>, per_npu: u64, decode: bool| {
        let (g, e) = (groups.first()?, e.as_ref()?);
        let tokens_max = per_npu.div_ceil(u64::from(dies_per_npu));
        let u = DieUse {
            hbm_gb: d.hbm_gb,
            ranks: g.ranks(),
            experts_per_die: e.slots_per_rank,
            experts_least: e.slots_without_redundant,
            tokens_max,
            decode,
        };
        Some(DieMemory::new(model, serving, cal, u))
    };
    let per_npu =
        u64::from(serving.decode.max_batch_per_npu) * u64::from(1 + serving.decode.mtp_tokens);
    let decode_memory = memory_of(&layout.decode, &decode_experts, per_npu, true);
    // Tokens that a die sends to a slot are counted in 16 bits, those of all experts that it stands for together.
    let counted = u64::from(u16::MAX) / per_npu.div_ceil(u64::from(dies_per_npu)).max(1);
    let per_npu = u64::from(serving.prefill.batch_tokens_per_npu);
    let prefill_memory = memory_of(&layout.prefill, &prefill_experts, per_npu, false);
    let prefill_free_bytes = match &prefill_memory {
        Some(m) => m.kv_bytes("prefill")?,
        None => 0.0,
    };
    let decode_kv_tokens = match &decode_memory {
        Some(m) => (m.kv_bytes("decode")? / kv_bytes_per_token) as u64,
        None => 0,
    };
    // What is neither free nor workspace is weights.
    let held_bytes = d.hbm_gb * 1e9 * (1.0 - cal.memory.workspace_share);
    let decode_free_bytes = decode_kv_tokens as f64 * kv_bytes_per_token;
    let experts_beside_max = decode_memory.as_ref().map_or(0, |m| {
        let bytes = decode_free_bytes * serving.recovery.kv_for_experts;
        let fit = (bytes / m.one_expert_bytes()) as u64;
        fit.min(counted.saturating_sub(1)) as u32
    });
    let phase_startup_us = cal
        .dispatch
        .startup_us
        .min(cal.combine.startup_us)
        .min(cal.prefill.collective_startup_us);
    let phase_lookahead_ps =
        ps_from_us(phase_startup_us).max(1) + paths.npu_npu_write.between.latency_ps;
    Ok(Shared {
        decode_times: DecodeTimes::new(
            roof.clone(),
            model,
            serving.precision.kv,
            layout.decode.first().map_or(1, |g| g.ranks()),
            machine.spec.ub.npu_npu_write.intra_gb_per_s,
        ),
        prefill_times: layout
            .prefill
            .first()
            .map(|g| PrefillTimes::new(roof, model, serving.precision.kv, g.ranks())),
        drift,
        decode_busiest: decode_experts
            .as_ref()
            .map(|x| Busiest::new(x, e.balance, model.moe_layers(), model.shared_experts)),
        decode_experts,
        prefill_experts,
        decode_kv_tokens,
        experts_beside_max,
        decode_memory,
        prefill_memory,
        block_bytes: (kv_bytes_per_token * f64::from(serving.cache.block_tokens)) as u64,
        kv_bytes_per_token,
        phase,
        concurrency: load.concurrency,
        stream_tokens: serving.fidelity.level == Fidelity::Message,
        live: false,
        decode_weight_bytes: (held_bytes - decode_free_bytes).max(0.0) as u64,
        prefill_weight_bytes: (held_bytes - prefill_free_bytes).max(0.0) as u64,
        weights,
        conditions: RwLock::default(),
        beats: RwLock::default(),
        shards: *shards,
        progress: Counters::default(),
        phase_lookahead_ps,
        control_lookahead_ps: paths.least_between_ps(),
        machine: Arc::clone(machine),
        model: model.clone(),
        serving: serving.clone(),
        cal: cal.clone(),
        layout,
        paths,
    })
}

/// A placement map is for groups with as many dies as it has ranks: there must be some.
fn check_placement(
    tables: &ExpertTables,
    serving: &Serving,
    layout: &Layout,
) -> Result<(), String> {
    let Some(p) = &tables.placement else {
        return Ok(());
    };
    let of = |groups: &[Group]| groups.first().map_or(0, Group::ranks);
    let (prefill, decode) = (of(&layout.prefill), of(&layout.decode));
    if p.ranks == prefill || p.ranks == decode {
        return Ok(());
    }
    Err(format!(
        "experts.placement_file {} places experts over {} ranks, but a prefill instance has {prefill} dies and a decode \
         instance {decode}: set prefill.npus_per_instance or decode.npus_per_instance to {}",
        serving.experts.placement_file.as_deref().unwrap_or(""),
        p.ranks,
        p.ranks.div_ceil(2)
    ))
}

/// Every byte that left a port of a plane reached one.
pub fn check_bytes(worlds: &[World], machine: &Machine) -> Result<(), String> {
    let sum = |ids: &mut dyn Iterator<Item = supernode_topology::ActorId>, up: bool| -> u64 {
        ids.map(|id| {
            worlds
                .iter()
                .map(|w| {
                    let l = w.fabric.peek(id);
                    if up {
                        l.up.bytes - l.up.lost_bytes
                    } else {
                        l.down.bytes + l.down.lost_bytes
                    }
                })
                .sum::<u64>()
        })
        .sum()
    };
    let dies = machine.die_count();
    let cpus = machine.cpu_count();
    let ub = |up| {
        sum(&mut (0..dies).map(|d| machine.die_lane(d, 0)), up)
            + sum(&mut (0..cpus).map(|c| machine.cpu_lane(c, 0)), up)
    };
    // What was posted for steps that were given up has left its lanes, and reached none.
    let given_up: u64 = worlds
        .iter()
        .flat_map(|w| &w.fabric.boards)
        .map(crate::fabric::Board::lost_bytes)
        .sum();
    let stored: u64 = worlds
        .iter()
        .filter_map(|w| w.object_store.as_ref())
        .map(|s| s.sent_bytes)
        .sum();
    let rdma = |up| sum(&mut (0..dies).map(|d| machine.rdma(d)), up);
    let vpc = |up| sum(&mut (0..machine.node_count()).map(|n| machine.vpc(n)), up);
    for (plane, sent, got) in [
        ("UB", ub(true), ub(false) + given_up),
        ("RDMA", rdma(true), rdma(false)),
        ("VPC", vpc(true) + stored, vpc(false)),
    ] {
        if sent != got {
            return Err(format!(
                "{plane} plane: {sent} bytes were sent, {got} delivered or accounted as lost"
            ));
        }
    }
    Ok(())
}

/// The statistics of a run so far.
pub fn stats(sim: &Simulation<World>, shared: &Shared, concurrency: Option<u32>) -> RunStats {
    let mut s = RunStats {
        events: sim.events(),
        ..RunStats::default()
    };
    let mut hash = 0u64;
    let npus = |groups: &[crate::layout::Group]| {
        groups.iter().map(|g| g.ranks()).sum::<u32>() / shared.machine.dies_per_npu()
    };
    s.prefill.npus = npus(&shared.layout.prefill);
    s.decode.npus = npus(&shared.layout.decode);
    for (pool, groups, experts) in [
        (
            &mut s.prefill,
            &shared.layout.prefill,
            &shared.prefill_experts,
        ),
        (&mut s.decode, &shared.layout.decode, &shared.decode_experts),
    ] {
        pool.ep_degree = groups.first().map_or(0, |g| g.ranks());
        pool.experts_per_die = experts.as_ref().map_or(0, |e| e.most_on_a_rank());
    }
    let (mut p_steady, mut d_steady) = ((0u64, 0 as Ps), (0u64, 0 as Ps));
    let add = |sum: &mut (u64, Ps), (tokens, ps): (u64, Ps)| {
        *sum = (sum.0 + tokens, sum.1 + ps);
    };
    for w in sim.models() {
        let t = &w.tally;
        s.notes.extend_from_slice(&t.notes);
        s.retried.extend_from_slice(&t.retried);
        s.lost_messages += t.lost_messages;
        hash = hash.wrapping_add(t.hash);
        s.offered += t.offered;
        s.end_ps = s.end_ps.max(t.end_ps);
        s.records.extend_from_slice(&t.records);
        s.itl.merge(&t.itl);
        let (m, o) = (&mut s.messages, &t.messages);
        m.activation += o.activation;
        m.activation_messages += o.activation_messages;
        m.kv_block += o.kv_block;
        m.weight_block += o.weight_block;
        m.tokens += o.tokens;
        m.control += o.control;
        let (c, o) = (&mut s.cache, &t.cache);
        c.lookup_blocks += o.lookup_blocks;
        c.hit_blocks += o.hit_blocks;
        c.hit_tokens += o.hit_tokens;
        c.prompt_tokens += o.prompt_tokens;
        c.read_bytes += o.read_bytes;
        c.write_bytes += o.write_bytes;
        c.ssd_read_bytes += o.ssd_read_bytes;
        c.evicted_blocks += o.evicted_blocks;
        c.deduplicated_blocks += o.deduplicated_blocks;
        c.dram_bytes_peak += w
            .cpus
            .iter()
            .flatten()
            .map(|c| c.store.dram_bytes())
            .sum::<u64>();
        let (f, o) = (&mut s.fidelity, &t.fidelity);
        f.message_steps += o.message_steps;
        f.step_steps += o.step_steps;
        f.rechecked_steps += o.rechecked_steps;
        f.drawn_ps += o.drawn_ps;
        f.simulated_ps += o.simulated_ps;
        f.abs_error_ps += o.abs_error_ps;
        s.iterations.merge(&t.iterations);
        for (pool, t) in [(&mut s.prefill, &t.prefill), (&mut s.decode, &t.decode)] {
            pool.steps += t.steps;
            pool.busy_ps += t.busy_ps;
            pool.batch_sum += t.batch_sum;
            pool.tokens += t.tokens;
        }
        add(&mut p_steady, t.prefill.steady.total());
        add(&mut d_steady, t.decode.steady.total());
        s.experts.plans_made += t.experts.plans_made;
        s.experts.plans += t.experts.plans;
        s.experts.moved_bytes += t.experts.moved_bytes;
    }
    let tallies = sim.models().iter().map(|w| &w.tally);
    s.decode_layer = Layers::times(tallies.clone().map(|t| &t.decode_layers));
    s.prefill_layer = Layers::times(tallies.map(|t| &t.prefill_layers));
    s.weights = weight_counts(sim.models(), shared);
    s.notes
        .sort_unstable_by_key(|n| (n.at_ps, n.part, n.kind as u8));
    s.retried.sort_unstable();
    s.records.sort_unstable_by_key(|r| r.id);
    // A run that was stopped has come as far as its latest event.
    if (s.records.len() as u64) < s.offered {
        s.end_ps = s.end_ps.max(sim.now());
    }
    s.expert_load_max_over_mean = load_max_over_mean(sim.models());
    // A closed loop measures what the pool can keep up: from each group's first full step to its last. An open one
    // measures what it did over the run.
    // A group without such a part counts with neither tokens nor time.
    let pool = |p: &mut PoolStats, (tokens, ps): (u64, Ps), groups: usize| {
        if concurrency.is_some() && ps > 0 {
            p.tokens = tokens;
            p.span_ps = ps / groups.max(1) as Ps;
        } else {
            p.span_ps = s.end_ps;
        }
    };
    pool(&mut s.prefill, p_steady, shared.layout.prefill.len());
    pool(&mut s.decode, d_steady, shared.layout.decode.len());
    s.memory = memory_stats(shared);
    s.links = links(sim.models(), shared);
    s.digest = mix(sim.digest() ^ mix(hash));
    s
}

/// How weights came to the dies, where that is simulated.
fn weight_counts(worlds: &[World], shared: &Shared) -> Option<WeightCounts> {
    let plan = shared.weights.as_ref()?;
    let mut sum = WeightCounts {
        model_bytes: plan.image.bytes(),
        copies: plan.copies(),
        loads_at_start: plan.loads_at_start,
        switch_ps: plan.switch.map(|s| s.at_ps),
        ..WeightCounts::default()
    };
    for w in worlds {
        for (all, own) in sum.loads.iter_mut().zip(&w.tally.weights.loads) {
            all.merge(own);
        }
        sum.pool_bytes += w.tally.weights.pool_bytes;
        sum.object_store_bytes += w.object_store.as_ref().map_or(0, |s| s.sent_bytes);
        let cpus = w.cpus.iter().flatten();
        sum.dram_bytes += cpus.map(|c| c.weights.dram_bytes(shared)).sum::<u64>();
    }
    Some(sum)
}

/// HBM of a die of each pool.
fn memory_stats(shared: &Shared) -> Vec<MemoryStats> {
    let pools = [
        ("prefill", &shared.prefill_memory),
        ("decode", &shared.decode_memory),
    ];
    let stats = |(pool, m): (&str, &Option<DieMemory>)| {
        let m = m.as_ref()?;
        let bytes = |b: f64| b.round() as u64;
        Some(MemoryStats {
            pool: pool.into(),
            hbm_bytes: bytes(m.hbm_bytes),
            experts_per_die: m.experts_per_die,
            attention_bytes: bytes(m.attention_bytes),
            dense_bytes: bytes(m.dense_bytes),
            experts_bytes: bytes(m.experts_bytes),
            head_bytes: bytes(m.head_bytes),
            buffers_bytes: bytes(m.buffers_bytes),
            staging_bytes: bytes(m.staging_bytes),
            workspace_bytes: bytes(m.workspace_bytes),
            kv_bytes: bytes(m.hbm_bytes - m.used_bytes()),
        })
    };
    pools.into_iter().filter_map(stats).collect()
}

/// Tokens of the busiest die of a group over the mean of its dies, averaged over layers and groups: of decode, or of
/// prefill where nothing is decoded. 0 when no step was simulated.
fn load_max_over_mean(worlds: &[World]) -> f64 {
    // By decode or prefill, group and layer: largest, sum and number of dies.
    let mut loads: BTreeMap<(bool, u16, usize), (u64, u64, u64)> = BTreeMap::new();
    for die in worlds.iter().flat_map(|w| w.dies.iter().flatten()) {
        let (prefill, group, served) = match &die.part {
            Part::Idle => continue,
            Part::Prefill(p) => (true, p.group(), p.served()),
            Part::Decode(d) => (false, d.group(), d.served()),
        };
        for (layer, &n) in served.iter().enumerate() {
            let l = loads.entry((prefill, group, layer)).or_default();
            *l = (l.0.max(n), l.1 + n, l.2 + 1);
        }
    }
    let over_mean = |prefill: bool| {
        let of = loads.iter().filter(|(k, l)| k.0 == prefill && l.1 > 0);
        let ratios: Vec<f64> = of
            .map(|(_, l)| l.0 as f64 * l.2 as f64 / l.1 as f64)
            .collect();
        let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
        (!ratios.is_empty()).then_some(mean)
    };
    over_mean(false).or_else(|| over_mean(true)).unwrap_or(0.0)
}

/// Link classes, summed over shards. All lanes of a part carry the same, and so do all links of an L1 chip.
fn links(worlds: &[World], shared: &Shared) -> Vec<LinkClassStats> {
    let m = &shared.machine;
    let mut classes = Vec::new();
    let mut class =
        |name: &str,
         links: u32,
         lanes: u32,
         ids: &mut dyn Iterator<Item = supernode_topology::ActorId>| {
            let mut c = LinkClassStats {
                class: name.into(),
                links: links * lanes,
                ..LinkClassStats::default()
            };
            for id in ids {
                for w in worlds {
                    let l = w.fabric.peek(id);
                    for d in [&l.up, &l.down] {
                        let Direction {
                            busy_ps,
                            bytes,
                            messages,
                            lost_bytes,
                            ..
                        } = d;
                        // Up to here one lane has stood for all of them.
                        c.bytes += bytes;
                        c.messages += messages * u64::from(lanes);
                        c.busy_ps_sum += u128::from(*busy_ps) * u128::from(lanes);
                        c.busy_ps_max = c.busy_ps_max.max(*busy_ps);
                        c.lost_bytes += lost_bytes;
                        c.queue.absorb(&d.queue());
                    }
                }
            }
            classes.push(c);
        };
    let planes = m.planes();
    class(
        "die_lane",
        m.die_count(),
        planes,
        &mut (0..m.die_count()).map(|d| m.die_lane(d, 0)),
    );
    class(
        "cpu_lane",
        m.cpu_count(),
        planes,
        &mut (0..m.cpu_count()).map(|c| m.cpu_lane(c, 0)),
    );
    class(
        "sio",
        m.npu_count(),
        1,
        &mut (0..m.npu_count()).map(|n| m.sio(n)),
    );
    class(
        "rdma",
        m.die_count(),
        1,
        &mut (0..m.die_count()).map(|d| m.rdma(d)),
    );
    class(
        "vpc",
        m.node_count(),
        1,
        &mut (0..m.node_count()).map(|n| m.vpc(n)),
    );
    let per_node = planes * m.l2_chips_per_plane();
    let mut up = LinkClassStats {
        class: "uplink".into(),
        links: m.node_count() * per_node,
        ..LinkClassStats::default()
    };
    let per_byte_ps = 1e3 / m.spec.ub.uplink_gb_per_s;
    for node in 0..m.node_count() as usize {
        let Border {
            up: out,
            down: into,
        } = Fabric::border(worlds.iter().map(|w| &w.fabric), node);
        for Crossed { bytes, messages } in [out, into] {
            let busy = (bytes as f64 / f64::from(per_node) * per_byte_ps) as Ps;
            up.bytes += bytes;
            up.messages += messages * u64::from(planes);
            up.busy_ps_sum += u128::from(busy) * u128::from(per_node);
            up.busy_ps_max = up.busy_ps_max.max(busy);
        }
    }
    classes.push(up);
    classes
}
