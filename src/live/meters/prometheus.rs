//! `/metrics`: vLLM's names where they mean the same, `supernode_*` for what only this machine has. The number of
//! series does not grow with requests, actors or time.

use std::sync::atomic::Ordering::Relaxed;

use supernode_actors::live::Occupancy;
use supernode_actors::stats::RunStats;
use supernode_actors::time::s_from_ps;

use super::text::{Kind, Text};
use crate::live::driver::Driver;
use crate::live::gateway::{Counters, Facts};

use Kind::{Counter, Gauge};

/// Bounds of vLLM's `iteration_tokens_total`, as powers of two.
const ITERATION_POWERS: [usize; 13] = [0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
/// Tokens of one KV block.
const BLOCK_TOKENS: u64 = 512;

fn n(x: u64) -> f64 {
    x as f64
}

/// All series.
pub fn render(driver: &Driver, facts: &Facts, counters: &Counters) -> String {
    let stats = driver.machine.stats();
    let occupancy = driver.machine.occupancy();
    let labels = format!("model_name=\"{}\",engine=\"0\"", facts.model);
    let mut t = Text::new(labels);
    vllm_state(&mut t, driver, &occupancy);
    vllm_counts(&mut t, driver, &stats, counters);
    for (name, help, h) in driver.meters.families.all() {
        t.histogram(name, help, h);
    }
    let iterations = &stats.iterations;
    let bounds = ITERATION_POWERS.map(|p| ((1u64 << p) as f64, iterations.up_to(p)));
    t.buckets(
        "vllm:iteration_tokens_total",
        "Tokens of a decode step or prefill batch.",
        bounds
            .into_iter()
            .chain([(f64::INFINITY, iterations.up_to(usize::MAX - 1))]),
        n(iterations.sum),
    );
    let mut t = t.labelled(String::new());
    machine(&mut t, driver, &occupancy, facts, counters);
    parts(&mut t, &stats);
    t.out
}

/// How the machine is now, in vLLM's words.
fn vllm_state(t: &mut Text, driver: &Driver, o: &Occupancy) {
    let waiting = n(o.prefill_waiting + o.decode_waiting);
    let running = (n(driver.open_requests() as u64) - waiting).max(0.0);
    let kv = n(o.kv_tokens) / n(o.kv_tokens_max.max(1));
    t.each([
        (
            "vllm:num_requests_running",
            Gauge,
            "Requests in batches, or on their way between them.",
            running,
        ),
        (
            "vllm:num_requests_waiting",
            Gauge,
            "Requests that wait for prefill or for a decode slot.",
            waiting,
        ),
        (
            "vllm:kv_cache_usage_perc",
            Gauge,
            "Share of decode dies' KV memory in use, 0 to 1.",
            kv,
        ),
        (
            "vllm:gpu_cache_usage_perc",
            Gauge,
            "Older name of kv_cache_usage_perc.",
            kv,
        ),
    ]);
    t.by(
        "vllm:num_requests_waiting_by_reason",
        Gauge,
        "Those that wait, by what for: a decode slot (capacity), or prefill (deferred).",
        "reason",
        [
            ("capacity", n(o.decode_waiting)),
            ("deferred", n(o.prefill_waiting)),
        ],
    );
    let blocks = o.kv_tokens_max / BLOCK_TOKENS;
    let config = format!("block_size=\"{BLOCK_TOKENS}\",num_gpu_blocks=\"{blocks}\"");
    t.with(
        "vllm:cache_config_info",
        Gauge,
        "What the KV memory is made of.",
        &[(config, 1.0)],
    );
}

/// What has happened so far, in vLLM's words.
fn vllm_counts(t: &mut Text, driver: &Driver, stats: &RunStats, counters: &Counters) {
    let m = &driver.meters;
    t.each([
        (
            "vllm:prompt_tokens_total",
            Counter,
            "Prompt tokens of completed requests.",
            n(m.prompt_tokens_done),
        ),
        (
            "vllm:prompt_tokens_cached_total",
            Counter,
            "Prompt tokens that came from the pooled cache.",
            n(m.cached_tokens),
        ),
        (
            "vllm:generation_tokens_total",
            Counter,
            "Tokens made.",
            n(m.output_tokens_made),
        ),
        (
            "vllm:num_preemptions_total",
            Counter,
            "Requests thrown out of a slot: never.",
            0.0,
        ),
        (
            "vllm:prefix_cache_queries_total",
            Counter,
            "Prompt tokens looked up in the pooled cache.",
            n(stats.cache.prompt_tokens),
        ),
        (
            "vllm:prefix_cache_hits_total",
            Counter,
            "Prompt tokens found there.",
            n(stats.cache.hit_tokens),
        ),
    ]);
    t.by(
        "vllm:prompt_tokens_by_source_total",
        Counter,
        "Prompt tokens of completed requests, by where their KV came from.",
        "source",
        [
            ("local_compute", n(m.prompt_tokens_done - m.cached_tokens)),
            ("local_cache_hit", 0.0),
            ("external_kv_transfer", n(m.cached_tokens)),
        ],
    );
    let stops = counters.stops.load(Relaxed).min(m.stopped);
    t.by(
        "vllm:request_success_total",
        Counter,
        "Requests that ended, by how.",
        "finished_reason",
        [
            ("stop", n(stops)),
            ("length", n(m.stopped - stops)),
            ("abort", n(m.aborted)),
            ("error", n(m.failed)),
        ],
    );
    t.by(
        "vllm:admission_rejections_total",
        Counter,
        "Requests refused because the queue was full.",
        "reason",
        [("max_num_queued_reqs", n(counters.rejected.load(Relaxed)))],
    );
}

/// The machine as a whole: its time, its load, its clients.
fn machine(t: &mut Text, driver: &Driver, o: &Occupancy, facts: &Facts, counters: &Counters) {
    t.each([
        (
            "supernode_virtual_seconds",
            Gauge,
            "Virtual time.",
            s_from_ps(driver.machine.now()),
        ),
        (
            "supernode_pace_ratio",
            Gauge,
            "Virtual seconds in the last second.",
            driver.meters.pace_reached(),
        ),
        (
            "supernode_pace_late_seconds",
            Gauge,
            "How far virtual time is behind the wall.",
            driver.late.as_secs_f64(),
        ),
        (
            "supernode_pace_lost_seconds_total",
            Counter,
            "Wall time by which virtual time fell behind for good.",
            driver.clock.let_off().as_secs_f64(),
        ),
        (
            "supernode_events_total",
            Counter,
            "Events handled by actors.",
            n(driver.machine.events()),
        ),
        (
            "supernode_uptime_seconds",
            Gauge,
            "Wall time since the machine came up.",
            facts.started.elapsed().as_secs_f64(),
        ),
        (
            "supernode_prefill_backlog_tokens",
            Gauge,
            "Prompt tokens that wait for prefill.",
            n(o.backlog_tokens),
        ),
        ("supernode_decode_slots", Gauge, "Decode slots.", n(o.slots)),
        (
            "supernode_decode_slots_used",
            Gauge,
            "Decode slots in use.",
            n(o.slots_used),
        ),
        (
            "supernode_kv_tokens",
            Gauge,
            "Tokens of KV on decode dies.",
            n(o.kv_tokens),
        ),
        (
            "supernode_disconnects_total",
            Counter,
            "Clients that went away before their request ended.",
            n(counters.http.disconnects.load(Relaxed)),
        ),
    ]);
    let classes = ["2xx", "4xx", "5xx"]
        .into_iter()
        .zip(&counters.http.by_class);
    t.by(
        "http_requests_total",
        Counter,
        "HTTP requests of the OpenAI API, by status.",
        "status",
        classes.map(|(class, count)| (class, n(count.load(Relaxed)))),
    );
}

/// Links, cache, experts and stages, summed over the machine.
fn parts(t: &mut Text, s: &RunStats) {
    let links = |of: fn(&supernode_actors::stats::LinkClassStats) -> f64| {
        s.links.iter().map(move |l| (l.class.as_str(), of(l)))
    };
    t.by(
        "supernode_link_bytes_total",
        Counter,
        "Bytes carried by links, by class.",
        "class",
        links(|l| n(l.bytes)),
    );
    t.by(
        "supernode_link_busy_seconds_total",
        Counter,
        "Time that links were busy, summed over a class, both ways.",
        "class",
        links(|l| l.busy_ps_sum as f64 / 1e12),
    );
    t.by(
        "supernode_link_busy_max_seconds_total",
        Counter,
        "Time that the busiest link of a class was busy.",
        "class",
        links(|l| s_from_ps(l.busy_ps_max)),
    );
    let (c, f, m) = (&s.cache, &s.fidelity, &s.messages);
    for (name, help, key, values) in [
        (
            "supernode_cache_bytes_total",
            "Bytes of the pooled cache, by what was done.",
            "op",
            &[
                ("read", c.read_bytes),
                ("write", c.write_bytes),
                ("ssd_read", c.ssd_read_bytes),
            ][..],
        ),
        (
            "supernode_cache_blocks_total",
            "Blocks of the pooled cache, by what was done.",
            "op",
            &[
                ("lookup", c.lookup_blocks),
                ("hit", c.hit_blocks),
                ("evict", c.evicted_blocks),
            ],
        ),
        (
            "supernode_steps_total",
            "Decode steps and prefill batches, by how they were simulated.",
            "fidelity",
            &[("message", f.message_steps), ("step", f.step_steps)],
        ),
        (
            "supernode_messages_total",
            "Messages between actors, by kind.",
            "kind",
            &[
                ("activation", m.activation_messages),
                ("kv_block", m.kv_block),
                ("tokens", m.tokens),
                ("control", m.control),
            ],
        ),
    ] {
        let values = values.iter().map(|&(label, count)| (label, n(count)));
        t.by(name, Counter, help, key, values);
    }
    t.each([(
        "supernode_expert_load_max_over_mean",
        Gauge,
        "Largest over mean tokens of an expert slot, of steps at message level.",
        s.expert_load_max_over_mean,
    )]);
    for (pool, layer) in [("decode", &s.decode_layer), ("prefill", &s.prefill_layer)] {
        let stages = layer.stages.iter();
        t.by(
            &format!("supernode_{pool}_layer_seconds_total"),
            Counter,
            "Time in each stage of a layer, summed over layers and dies, of steps at message level.",
            "stage",
            stages.map(|(stage, sum)| (stage.as_str(), sum.0 as f64 / 1e12)),
        );
    }
}
