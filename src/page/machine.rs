//! The machine as racks: nodes of dies, coloured by utilisation, queueing or expert load, and beside them the racks of
//! the L2 switch chips.

use std::collections::BTreeMap;
use std::fmt::Write;

use supernode_topology::{ActorId, Machine};

use crate::error::Result;
use crate::report::{count, number, percent};
use crate::rundir::{RunDir, Which};

#[derive(Clone, Debug, Default)]
struct Heat {
    utilisation: f64,
    /// Longest of: waits of the die itself, of its lanes and its RDMA port, 99th percentile.
    queue_us: f64,
    expert_tokens: u64,
    role: String,
}

pub fn map(run: &RunDir) -> Result<String> {
    let m = &run.machine;
    let histograms = run.histograms()?;
    let mut heat: BTreeMap<u32, Heat> = BTreeMap::new();
    let mut uplinks_busy_ps = 0;
    for row in run.actors()? {
        let id = ActorId(row.first);
        let die = match row.kind.as_str() {
            "die" => m.as_die(id),
            "die_lane" | "rdma" => {
                let parent = row.address.rsplit_once('/').map_or("", |p| p.0);
                m.parse(parent).ok().and_then(|id| m.as_die(id))
            }
            _ => None,
        };
        if row.kind == "uplink" {
            uplinks_busy_ps += u128::from(row.busy_ps);
        }
        let Some(die) = die else { continue };
        let h = heat.entry(die).or_default();
        if row.kind == "die" {
            h.utilisation = row.busy_ps as f64 / run.manifest.end_ps.max(1) as f64;
            h.expert_tokens = row.expert_tokens;
            h.role = row.side.clone();
        }
        if let Some(q) = histograms.of(&row.address, &row.side, Which::Queue) {
            h.queue_us = h.queue_us.max(q.value_at_quantile(0.99) as f64 / 1e3);
        }
    }
    let most = |of: fn(&Heat) -> f64| heat.values().map(of).fold(1e-12, f64::max);
    let (use_max, queue_max) = (most(|h| h.utilisation), most(|h| h.queue_us));
    let experts_max = most(|h| h.expert_tokens as f64);
    let mut page = String::from("<div class=\"switch\">");
    for (show, name) in [
        ("use", "utilisation"),
        ("queue", "queueing"),
        ("experts", "expert load"),
    ] {
        let _ = write!(
            page,
            "<button type=\"button\" data-show=\"{show}\" aria-pressed=\"{}\">{name}</button>",
            show == "use"
        );
    }
    let _ = write!(
        page,
        "</div>\n<p class=\"note\"><span class=\"scale\"></span> \
         <span data-for=\"use\">up to {} of the run</span>\
         <span data-for=\"queue\">waits up to {} µs (p99 of the die, its lanes or its RDMA port; square root)</span>\
         <span data-for=\"experts\">up to {} tokens in message-level steps</span></p>\n<div class=\"racks\">\n",
        percent(use_max),
        number(queue_max),
        count(experts_max as u64)
    );
    for rack in 0..m.rack_count() {
        let nodes: Vec<u32> = (0..m.node_count())
            .filter(|&n| m.rack_of(n) == rack)
            .collect();
        if nodes.is_empty() {
            continue;
        }
        let _ = write!(page, "<div class=\"rack\"><b>rack {rack}</b>");
        for node in nodes {
            let _ = write!(page, "<div class=\"node\">");
            // Both dies of an NPU stand one above the other.
            let per_npu = m.dies_per_npu();
            for i in 0..m.dies_per_node() {
                let npus = m.npus_per_node();
                let die = node * m.dies_per_node() + (i % npus) * per_npu + i / npus;
                let h = heat.get(&die).cloned().unwrap_or_default();
                let address = m.address(m.die(die));
                let role = if h.role.is_empty() { "idle" } else { &h.role };
                let _ = write!(
                    page,
                    "<i style=\"--use:{:.0};--queue:{:.0};--experts:{:.0}\" title=\"{address} ({role}): {} used, waits {} µs, {} expert tokens\"></i>",
                    h.utilisation / use_max * 100.0,
                    (h.queue_us / queue_max).sqrt() * 100.0,
                    h.expert_tokens as f64 / experts_max * 100.0,
                    percent(h.utilisation),
                    number(h.queue_us),
                    count(h.expert_tokens)
                );
            }
            page.push_str("</div>");
        }
        page.push_str("</div>\n");
    }
    // Every chip has a link to each node, in and out, and carries an equal share of what crosses between nodes.
    let links = 2.0 * f64::from(m.node_count());
    let share = uplinks_busy_ps as f64 / links / run.manifest.end_ps.max(1) as f64;
    switch_racks(&mut page, m, share, use_max);
    page.push_str("</div>\n");
    Ok(page)
}

/// The racks of the L2 chips, a row for each sub-plane; `share`: of the time that a link of a chip carries something.
fn switch_racks(page: &mut String, m: &Machine, share: f64, use_max: f64) {
    let (planes, chips) = (m.planes(), m.l2_chips_per_plane());
    for rack in 0..m.switch_rack_count() {
        let here: Vec<u32> = (0..chips)
            .filter(|&c| m.switch_rack_of(c) == rack)
            .collect();
        if here.is_empty() {
            continue;
        }
        let _ = write!(
            page,
            "<div class=\"rack switches\"><b>L2 switches {rack}</b><div class=\"node\" style=\"grid-template-columns:repeat({},1fr)\">",
            here.len()
        );
        for plane in 0..planes {
            for chip in &here {
                let _ = write!(
                    page,
                    "<i style=\"--use:{:.0};--queue:0;--experts:0\" title=\"plane{plane}/l2.{chip}: its links are {} used; they carry equal shares and do not queue\"></i>",
                    (share / use_max * 100.0).min(100.0),
                    percent(share)
                );
            }
        }
        page.push_str("</div></div>\n");
    }
}
