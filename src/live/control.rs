//! The control API: the state of the machine as JSON, and the handles that turn it. `/api/openapi.json` describes it.

use std::sync::Arc;

use actix_web::{HttpResponse, web};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use supernode_actors::figures::ActorFigures;
use supernode_actors::request::{Outcome, RequestRecord};
use supernode_actors::stats::ActorHist;
use supernode_actors::time::{Ps, ms_from_ps, s_from_ps, us_from_ps};
use supernode_topology::{ActorId, Machine};

use super::api::{unavailable, whole_body};
use super::driver::Driver;
use super::gateway::Gateway;
use super::openai::{ApiError, Asked};
use super::report::Context;

const OPENAPI: &str = include_str!("openapi.json");
/// Rows of one answer, unless fewer are asked for.
const ACTORS_MOST: usize = 1_000;

/// What the control API keeps beside the machine.
pub struct Desk {
    pub context: Context,
    pub machine: Arc<Machine>,
    map: Mutex<Map>,
}

impl Desk {
    pub fn new(context: Context, machine: Arc<Machine>) -> Self {
        Self {
            context,
            machine,
            map: Mutex::default(),
        }
    }
}

/// Link use of each die between the last two looks that were far enough apart.
#[derive(Default)]
struct Map {
    at_ps: Ps,
    busy_ps: Vec<Ps>,
    share: Vec<f64>,
}

/// Looks at the map closer together than this show the same link use.
const MAP_EVERY_PS: Ps = 300_000_000_000;

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/api/state", web::get().to(state))
        .route("/api/actors", web::get().to(actors))
        .route("/api/map", web::get().to(map))
        .route("/api/series", web::get().to(series))
        .route("/api/slow", web::get().to(slow))
        .route("/api/pace", web::get().to(pace))
        .route("/api/pace", web::put().to(set_pace))
        .route("/api/report", web::get().to(report))
        .route("/api/openapi.json", web::get().to(openapi));
}

/// Has the driver make a value.
pub async fn look(
    gateway: &Gateway,
    what: impl FnOnce(&mut Driver) -> Value + Send + 'static,
) -> HttpResponse {
    answer(gateway, move |driver| Ok(what(driver))).await
}

/// The same, where it may refuse.
pub async fn answer(
    gateway: &Gateway,
    what: impl FnOnce(&mut Driver) -> Asked<Value> + Send + 'static,
) -> HttpResponse {
    match gateway.ask(what).await {
        Ok(Ok(value)) => HttpResponse::Ok().json(value),
        Ok(Err(e)) => e.response(),
        Err(_) => unavailable("the machine has shut down").response(),
    }
}

/// Reads what the body asks for, and has the driver do it.
pub async fn told<T: Send + 'static>(
    request: &actix_web::HttpRequest,
    body: web::Payload,
    gateway: &Gateway,
    read: impl FnOnce(&Value) -> Asked<T>,
    what: impl FnOnce(&mut Driver, T) -> Asked<Value> + Send + 'static,
) -> HttpResponse {
    match json_body(request, body).await.and_then(|body| read(&body)) {
        Ok(wanted) => answer(gateway, move |d| what(d, wanted)).await,
        Err(e) => e.response(),
    }
}

/// The body as a JSON value. Its content type must say so: a web page elsewhere cannot send that unasked.
async fn json_body(request: &actix_web::HttpRequest, body: web::Payload) -> Asked<Value> {
    use actix_web::HttpMessage;
    if !request
        .content_type()
        .eq_ignore_ascii_case("application/json")
    {
        return Err(ApiError::new(
            actix_web::http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            "Content-Type: application/json is expected",
        ));
    }
    let body = whole_body(request, body).await?;
    serde_json::from_slice(&body)
        .map_err(|e| ApiError::invalid(format!("the body is not JSON: {e}")))
}

async fn openapi() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/json")
        .body(OPENAPI)
}

async fn state(gateway: web::Data<Gateway>) -> HttpResponse {
    let facts = gateway.facts.clone();
    let counters = gateway.counters.clone();
    look(&gateway, move |d| {
        use std::sync::atomic::Ordering::Relaxed;
        let o = d.machine.occupancy();
        let (offered, ended) = d.machine.counts();
        let m = &d.meters;
        json!({
            "machine": facts.machine,
            "model": facts.model,
            "uptime_s": facts.started.elapsed().as_secs_f64(),
            "virtual_s": s_from_ps(d.machine.now()),
            "pace": pace_of(d),
            "events": d.machine.events(),
            "requests": {
                "offered": offered, "ended": ended, "open": d.open_requests(),
                "completed": m.stopped, "failed": m.failed, "cancelled": m.aborted,
                "rejected": counters.rejected.load(Relaxed), "most": facts.requests_max,
            },
            "prefill": {
                "waiting": o.prefill_waiting, "running": o.prefill_running, "backlog_tokens": o.backlog_tokens,
            },
            "decode": {
                "waiting": o.decode_waiting, "slots_used": o.slots_used, "slots": o.slots,
                "kv_tokens": o.kv_tokens, "kv_tokens_max": o.kv_tokens_max,
            },
            "faults": super::faults::in_force(d),
            "draining": counters.draining.load(Relaxed),
            "last": m.points.back(),
        })
    })
    .await
}

fn pace_of(d: &Driver) -> Value {
    json!({
        "set": d.clock.pace().to_string(),
        "reached": d.meters.pace_reached(),
        "late_ms": d.late.as_secs_f64() * 1e3,
        "lost_s": d.clock.let_off().as_secs_f64(),
    })
}

async fn pace(gateway: web::Data<Gateway>) -> HttpResponse {
    look(&gateway, |d| pace_of(d)).await
}

async fn set_pace(
    request: actix_web::HttpRequest,
    body: web::Payload,
    gateway: web::Data<Gateway>,
) -> HttpResponse {
    let read = |body: &Value| {
        let text = match body.get("pace") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(n)) => n.to_string(),
            _ => {
                return Err(ApiError::field(
                    "pace",
                    "pace: a number or \"max\" is expected",
                ));
            }
        };
        let pace: Result<super::Pace, String> = text.parse();
        pace.map_err(|why| ApiError::field("pace", format!("pace: {why}")))
    };
    told(&request, body, &gateway, read, |d, pace| {
        let reached = d.machine.now();
        d.clock.set_pace(pace, std::time::Instant::now(), reached);
        Ok(pace_of(d))
    })
    .await
}

async fn series(gateway: web::Data<Gateway>) -> HttpResponse {
    look(&gateway, |d| json!({"points": d.meters.points})).await
}

async fn slow(gateway: web::Data<Gateway>, desk: web::Data<Desk>) -> HttpResponse {
    let machine = Arc::clone(&desk.machine);
    look(&gateway, move |d| {
        let rows: Vec<Value> = d.meters.slow().map(|r| request(r, &machine)).collect();
        json!({"requests": rows})
    })
    .await
}

fn request(r: &RequestRecord, machine: &Machine) -> Value {
    let outcome = match &r.outcome {
        Outcome::Completed => "completed".to_string(),
        Outcome::Cancelled => "cancelled".to_string(),
        Outcome::Failed(why) => why.clone(),
    };
    let started = r.prefill_start_ps.max(r.arrival_ps);
    json!({
        "id": r.id,
        "home": machine.address(machine.cpu(r.home)),
        "arrival_s": s_from_ps(r.arrival_ps),
        "queue_ms": ms_from_ps(started - r.arrival_ps),
        "ttft_ms": ms_from_ps(r.ttft_ps()),
        "tpot_ms": r.tpot_ps().map(ms_from_ps),
        "e2e_ms": ms_from_ps(r.e2e_ps()),
        "prompt_tokens": r.prompt_tokens,
        "cached_tokens": r.cached_tokens,
        "output_tokens": r.output_tokens,
        "retries": r.retries,
        "outcome": outcome,
    })
}

async fn report(gateway: web::Data<Gateway>, desk: web::Data<Desk>) -> HttpResponse {
    let desk = desk.into_inner();
    let uptime_s = gateway.facts.started.elapsed().as_secs_f64();
    let text = gateway
        .ask(move |d| {
            let (stats, offered) = d.stats();
            let dropped = d.dropped_records;
            desk.context
                .report(&stats, &offered, dropped, true, uptime_s)
                .to_json()
        })
        .await;
    match text {
        Ok(text) => HttpResponse::Ok()
            .content_type("application/json")
            .body(text),
        Err(_) => unavailable("the machine has shut down").response(),
    }
}

#[derive(Deserialize)]
struct Query {
    #[serde(rename = "match")]
    glob: Option<String>,
    sort: Option<String>,
    limit: Option<usize>,
}

async fn actors(
    query: web::Query<Query>,
    gateway: web::Data<Gateway>,
    desk: web::Data<Desk>,
) -> HttpResponse {
    let machine = Arc::clone(&desk.machine);
    let q = query.into_inner();
    answer(&gateway, move |d| {
        let matched = match &q.glob {
            None => None,
            Some(glob) => Some(found(glob, &machine)?),
        };
        let key: fn(&ActorFigures) -> u64 = match q.sort.as_deref().unwrap_or("busy") {
            "busy" => |f| f.busy_ps,
            "bytes" => |f| f.bytes,
            "messages" => |f| f.messages,
            "queue" => |f| f.queue.quantile_ps(0.99),
            "service" => |f| f.service.quantile_ps(0.99),
            "transfer" => |f| f.transfer.quantile_ps(0.99),
            other => {
                return Err(ApiError::field(
                    "sort",
                    format!("sort: {other:?}: busy, bytes, messages, queue, service or transfer is expected"),
                ));
            }
        };
        let now = d.machine.now();
        let mut all = d.machine.figures();
        if let Some(ids) = &matched {
            all.retain(|f| (f.first..f.first + f.count).any(|id| ids.binary_search(&id).is_ok()));
        }
        let total = all.len();
        all.sort_by_key(|f| (std::cmp::Reverse(key(f)), f.first));
        all.truncate(q.limit.unwrap_or(100).min(ACTORS_MOST));
        let rows: Vec<Value> = all.iter().map(|f| figures(f, &machine, now)).collect();
        Ok(json!({"total": total, "actors": rows}))
    })
    .await
}

/// Ids that a glob selects, in order.
pub fn found(glob: &str, machine: &Machine) -> Asked<Vec<u32>> {
    let mut ids: Vec<u32> = machine
        .select(glob)
        .map_err(|e| ApiError::field("match", format!("match: {e}")))?
        .into_iter()
        .map(|id| id.0)
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

fn figures(f: &ActorFigures, machine: &Machine, now: Ps) -> Value {
    let hist = |h: &ActorHist| {
        json!({
            "count": h.count(), "mean_us": h.mean_ps() / 1e6,
            "p50_us": us_from_ps(h.quantile_ps(0.5)), "p99_us": us_from_ps(h.quantile_ps(0.99)),
            "max_us": us_from_ps(h.max_ps()),
        })
    };
    json!({
        "actor": machine.address(ActorId(f.first)),
        "stands_for": f.count,
        "side": f.side,
        "messages": f.messages,
        "bytes": f.bytes,
        "lost_bytes": f.lost_bytes,
        "busy_share": if now > 0 { f.busy_ps as f64 / now as f64 } else { 0.0 },
        "queue": hist(&f.queue),
        "service": hist(&f.service),
        "transfer": hist(&f.transfer),
    })
}

/// All dies in rows by node: part, load, link use.
async fn map(gateway: web::Data<Gateway>, desk: web::Data<Desk>) -> HttpResponse {
    let desk = desk.into_inner();
    look(&gateway, move |d| {
        let m = &desk.machine;
        let now = d.machine.now();
        let busy: Vec<Ps> = (0..m.die_count())
            .map(|die| {
                let of = |link: ActorId| {
                    let (_, _, up, down) = d.machine.link_use(link.0);
                    up + down
                };
                of(m.die_lane(die, 0)).max(of(m.rdma(die)))
            })
            .collect();
        let mut map = desk.map.lock();
        if map.busy_ps.is_empty() || now >= map.at_ps + MAP_EVERY_PS {
            let passed = 2.0 * (now - map.at_ps).max(1) as f64;
            map.share = busy
                .iter()
                .enumerate()
                .map(|(i, b)| (b - map.busy_ps.get(i).copied().unwrap_or(0)) as f64 / passed)
                .collect();
            (map.at_ps, map.busy_ps) = (now, busy);
        }
        let loads = d.machine.die_loads();
        let roles = &d.machine.shared().layout.roles;
        let round = |x: f64| (x * 1e3).round() / 1e3;
        let dies: Vec<Value> = loads
            .iter()
            .enumerate()
            .map(|(i, l)| {
                use supernode_actors::layout::Role;
                let (part, group) = match roles[i] {
                    Role::Idle => ("idle", 0),
                    Role::Prefill { group, .. } => ("prefill", group),
                    Role::Decode { group, .. } => ("decode", group),
                };
                json!([
                    part,
                    group,
                    round(l.busy),
                    round(l.memory),
                    round(map.share[i])
                ])
            })
            .collect();
        json!({
            "nodes": m.node_count(),
            "npus_per_node": m.npu_count() / m.node_count(),
            "dies_per_npu": m.dies_per_npu(),
            "columns": ["part", "group", "busy", "memory", "links"],
            "dies": dies,
            "faults": super::faults::in_force(d),
        })
    })
    .await
}
