//! `/metrics`: vLLM's names where they mean the same, `supernode_*` for what only this machine has. The number of
//! series does not grow with requests, actors or time.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use supernode_actors::stats::RunStats;
use supernode_actors::time::s_from_ps;

use super::{Histogram, Meters};
use crate::live::driver::Driver;
use crate::live::gateway::{Counters, Facts};

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

struct Text {
    out: String,
    /// vLLM's labels, as they stand inside braces.
    labels: String,
}

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: f64) {
        let braces = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{labels}}}")
        };
        let _ = writeln!(self.out, "{name}{braces} {value}");
    }

    /// One series with vLLM's labels.
    fn vllm(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        let name = format!("vllm:{name}");
        self.head(&name, kind, help);
        let labels = self.labels.clone();
        self.value(&name, &labels, value);
    }

    /// Several series with one more label.
    fn vllm_by(&mut self, name: &str, kind: &str, help: &str, key: &str, values: &[(&str, f64)]) {
        let name = format!("vllm:{name}");
        self.head(&name, kind, help);
        for (label, value) in values {
            let labels = format!("{},{key}=\"{label}\"", self.labels);
            self.value(&name, &labels, *value);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, h: &Histogram) {
        self.head(name, "histogram", help);
        for (bound, n) in h.cumulative() {
            let bound = if bound.is_infinite() {
                "+Inf".to_string()
            } else {
                format!("{bound:?}")
            };
            let labels = format!("{},le=\"{bound}\"", self.labels);
            self.value(&format!("{name}_bucket"), &labels, n as f64);
        }
        let labels = self.labels.clone();
        self.value(&format!("{name}_sum"), &labels, h.sum());
        self.value(&format!("{name}_count"), &labels, h.count() as f64);
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, "gauge", help);
        self.value(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, "counter", help);
        self.value(name, "", value);
    }

    fn by(&mut self, name: &str, kind: &str, help: &str, key: &str, values: &[(&str, f64)]) {
        self.head(name, kind, help);
        for (label, value) in values {
            self.value(name, &format!("{key}=\"{label}\""), *value);
        }
    }
}

/// All series.
pub fn render(driver: &Driver, facts: &Facts, counters: &Counters) -> String {
    let mut t = Text {
        out: String::with_capacity(32 * 1024),
        labels: format!("model_name=\"{}\",engine=\"0\"", facts.model),
    };
    let stats = driver.machine.stats();
    vllm(&mut t, driver, &stats, counters);
    supernode(&mut t, driver, &stats, facts, counters);
    t.out
}

fn vllm(t: &mut Text, driver: &Driver, stats: &RunStats, counters: &Counters) {
    let m: &Meters = &driver.meters;
    let o = driver.machine.occupancy();
    let n = |x: u64| x as f64;
    let waiting = n(o.prefill_waiting + o.decode_waiting);
    let running = n(driver.open_requests() as u64) - waiting;
    t.vllm(
        "num_requests_running",
        "gauge",
        "Requests in batches, or on their way between them.",
        running.max(0.0),
    );
    t.vllm(
        "num_requests_waiting",
        "gauge",
        "Requests that wait for prefill or for a decode slot.",
        waiting,
    );
    t.vllm_by(
        "num_requests_waiting_by_reason",
        "gauge",
        "Those that wait, by what for: a decode slot (capacity), or prefill (deferred).",
        "reason",
        &[
            ("capacity", n(o.decode_waiting)),
            ("deferred", n(o.prefill_waiting)),
        ],
    );
    let kv = n(o.kv_tokens) / n(o.kv_tokens_max.max(1));
    t.vllm(
        "kv_cache_usage_perc",
        "gauge",
        "Share of decode dies' KV memory in use, 0 to 1.",
        kv,
    );
    t.vllm(
        "gpu_cache_usage_perc",
        "gauge",
        "Older name of kv_cache_usage_perc.",
        kv,
    );
    t.vllm(
        "prompt_tokens_total",
        "counter",
        "Prompt tokens of completed requests.",
        n(m.prompt_tokens_done),
    );
    t.vllm_by(
        "prompt_tokens_by_source_total",
        "counter",
        "Prompt tokens of completed requests, by where their KV came from.",
        "source",
        &[
            ("local_compute", n(m.prompt_tokens_done - m.cached_tokens)),
            ("local_cache_hit", 0.0),
            ("external_kv_transfer", n(m.cached_tokens)),
        ],
    );
    t.vllm(
        "prompt_tokens_cached_total",
        "counter",
        "Prompt tokens that came from the pooled cache.",
        n(m.cached_tokens),
    );
    t.vllm(
        "generation_tokens_total",
        "counter",
        "Tokens made.",
        n(m.output_tokens_made),
    );
    t.vllm_by(
        "request_success_total",
        "counter",
        "Requests that ended, by how.",
        "finished_reason",
        &[
            ("stop", n(counters.stops.load(Ordering::Relaxed))),
            (
                "length",
                n(m.stopped) - n(counters.stops.load(Ordering::Relaxed)).min(n(m.stopped)),
            ),
            ("abort", n(m.aborted)),
            ("error", n(m.failed)),
        ],
    );
    t.vllm(
        "num_preemptions_total",
        "counter",
        "Requests thrown out of a slot: never.",
        0.0,
    );
    let cache = (stats.cache.prompt_tokens, stats.cache.hit_tokens);
    t.vllm(
        "prefix_cache_queries_total",
        "counter",
        "Prompt tokens looked up in the pooled cache.",
        n(cache.0),
    );
    t.vllm(
        "prefix_cache_hits_total",
        "counter",
        "Prompt tokens found there.",
        n(cache.1),
    );
    t.head(
        "vllm:admission_rejections_total",
        "counter",
        "Requests refused because the queue was full.",
    );
    let labels = format!("{},reason=\"max_num_queued_reqs\"", t.labels);
    t.value(
        "vllm:admission_rejections_total",
        &labels,
        n(counters.rejected.load(Ordering::Relaxed)),
    );
    t.head(
        "vllm:cache_config_info",
        "gauge",
        "What the KV memory is made of.",
    );
    let labels = format!(
        "{},block_size=\"512\",num_gpu_blocks=\"{}\"",
        t.labels,
        o.kv_tokens_max / 512
    );
    t.value("vllm:cache_config_info", &labels, 1.0);
    let histograms: [(&str, &str, &Histogram); 14] = [
        (
            "time_to_first_token_seconds",
            "From arrival to the first token.",
            &m.ttft,
        ),
        (
            "inter_token_latency_seconds",
            "Between tokens; of tokens that come together, each its share.",
            &m.itl,
        ),
        (
            "time_per_output_token_seconds",
            "Older name of inter_token_latency_seconds.",
            &m.itl,
        ),
        (
            "request_time_per_output_token_seconds",
            "Mean time per output token of a request.",
            &m.tpot,
        ),
        (
            "e2e_request_latency_seconds",
            "From arrival to the last token.",
            &m.e2e,
        ),
        (
            "request_queue_time_seconds",
            "From arrival to the first prefill batch.",
            &m.queue,
        ),
        (
            "request_prefill_time_seconds",
            "From the first prefill batch to the first token.",
            &m.prefill,
        ),
        (
            "request_decode_time_seconds",
            "From the first token to the last.",
            &m.decode,
        ),
        (
            "request_inference_time_seconds",
            "From the first prefill batch to the last token.",
            &m.inference,
        ),
        (
            "request_prompt_tokens",
            "Prompt tokens of a request.",
            &m.prompt_tokens,
        ),
        (
            "request_generation_tokens",
            "Tokens made for a request.",
            &m.output_tokens,
        ),
        (
            "request_max_num_generation_tokens",
            "Tokens that a request asked for.",
            &m.max_tokens,
        ),
        (
            "request_params_max_tokens",
            "max_tokens of a request.",
            &m.max_tokens,
        ),
        (
            "request_prefill_kv_computed_tokens",
            "Prompt tokens computed, not cached.",
            &m.computed_tokens,
        ),
    ];
    for (name, help, h) in histograms {
        t.histogram(&format!("vllm:{name}"), help, h);
    }
    let help = "Gaps between tokens in SGLang's finer buckets.";
    t.histogram("sglang:inter_token_latency_seconds", help, &m.itl_fine);
}

fn supernode(t: &mut Text, driver: &Driver, s: &RunStats, facts: &Facts, counters: &Counters) {
    let n = |x: u64| x as f64;
    let o = driver.machine.occupancy();
    let now_s = s_from_ps(driver.machine.now());
    t.gauge("supernode_virtual_seconds", "Virtual time.", now_s);
    t.gauge(
        "supernode_pace_ratio",
        "Virtual seconds in the last second.",
        driver.meters.pace_reached(),
    );
    t.gauge(
        "supernode_pace_late_seconds",
        "How far virtual time is behind the wall.",
        driver.late.as_secs_f64(),
    );
    t.counter(
        "supernode_pace_lost_seconds_total",
        "Wall time by which virtual time fell behind for good.",
        driver.clock.let_off().as_secs_f64(),
    );
    t.counter(
        "supernode_events_total",
        "Events handled by actors.",
        n(driver.machine.events()),
    );
    t.gauge(
        "supernode_uptime_seconds",
        "Wall time since the machine came up.",
        facts.started.elapsed().as_secs_f64(),
    );
    t.gauge(
        "supernode_prefill_backlog_tokens",
        "Prompt tokens that wait for prefill.",
        n(o.backlog_tokens),
    );
    t.gauge("supernode_decode_slots", "Decode slots.", n(o.slots));
    t.gauge(
        "supernode_decode_slots_used",
        "Decode slots in use.",
        n(o.slots_used),
    );
    t.gauge(
        "supernode_kv_tokens",
        "Tokens of KV on decode dies.",
        n(o.kv_tokens),
    );
    t.counter(
        "supernode_disconnects_total",
        "Clients that went away before their request ended.",
        n(counters.http.disconnects.load(Ordering::Relaxed)),
    );
    let by = |i: usize| n(counters.http.by_class[i].load(Ordering::Relaxed));
    t.by(
        "http_requests_total",
        "counter",
        "HTTP requests of the OpenAI API, by status.",
        "status",
        &[("2xx", by(0)), ("4xx", by(1)), ("5xx", by(2))],
    );
    let classes: Vec<(&str, f64)> = s
        .links
        .iter()
        .map(|l| (l.class.as_str(), n(l.bytes)))
        .collect();
    t.by(
        "supernode_link_bytes_total",
        "counter",
        "Bytes carried by links, by class.",
        "class",
        &classes,
    );
    let busy: Vec<(&str, f64)> = s
        .links
        .iter()
        .map(|l| (l.class.as_str(), l.busy_ps_sum as f64 / 1e12))
        .collect();
    t.by(
        "supernode_link_busy_seconds_total",
        "counter",
        "Time that links were busy, summed over a class, both ways.",
        "class",
        &busy,
    );
    let most: Vec<(&str, f64)> = s
        .links
        .iter()
        .map(|l| (l.class.as_str(), s_from_ps(l.busy_ps_max)))
        .collect();
    t.by(
        "supernode_link_busy_max_seconds_total",
        "counter",
        "Time that the busiest link of a class was busy.",
        "class",
        &most,
    );
    let c = &s.cache;
    t.by(
        "supernode_cache_bytes_total",
        "counter",
        "Bytes of the pooled cache, by what was done.",
        "op",
        &[
            ("read", n(c.read_bytes)),
            ("write", n(c.write_bytes)),
            ("ssd_read", n(c.ssd_read_bytes)),
        ],
    );
    t.by(
        "supernode_cache_blocks_total",
        "counter",
        "Blocks of the pooled cache, by what was done.",
        "op",
        &[
            ("lookup", n(c.lookup_blocks)),
            ("hit", n(c.hit_blocks)),
            ("evict", n(c.evicted_blocks)),
        ],
    );
    let f = &s.fidelity;
    t.by(
        "supernode_steps_total",
        "counter",
        "Decode steps and prefill batches, by how they were simulated.",
        "fidelity",
        &[("message", n(f.message_steps)), ("step", n(f.step_steps))],
    );
    let msg = &s.messages;
    t.by(
        "supernode_messages_total",
        "counter",
        "Messages between actors, by kind.",
        "kind",
        &[
            ("activation", n(msg.activation_messages)),
            ("kv_block", n(msg.kv_block)),
            ("tokens", n(msg.tokens)),
            ("control", n(msg.control)),
        ],
    );
    t.gauge(
        "supernode_expert_load_max_over_mean",
        "Largest over mean tokens of an expert slot, of steps at message level.",
        s.expert_load_max_over_mean,
    );
    for (pool, layer) in [("decode", &s.decode_layer), ("prefill", &s.prefill_layer)] {
        let name = format!("supernode_{pool}_layer_seconds_total");
        let values: Vec<(&str, f64)> = layer
            .stages
            .iter()
            .map(|(k, v)| (k.as_str(), v.0 as f64 / 1e12))
            .collect();
        t.by(&name, "counter", "Time in each stage of a layer, summed over layers and dies, of steps at message level.", "stage", &values);
    }
}
