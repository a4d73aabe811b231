//! Traces of a live machine over the control API: started, stopped, looked at, fetched; and vLLM's profiler routes,
//! which start and stop the same.

use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_web::body::SizedStream;
use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_core::Stream;
use serde_json::{Value, json};
use supernode_actors::time::{PS_PER_S, Ps, s_from_ps};
use supernode_topology::Machine;

use super::api::unavailable;
use super::control::{Desk, answer, found, look, told};
use super::driver::Driver;
use super::gateway::Gateway;
use super::openai::{ApiError, Asked};
use super::tracer::Tracer;
use crate::fault::span_ps;
use crate::trace::{Header, TraceOptions, said};

/// What is traced if nothing else is said: short enough for a machine under full load.
const REQUESTS: f64 = 0.1;
const LASTS_PS: Ps = 60 * PS_PER_S;
const LIMIT_BYTES: u64 = 256_000_000;
/// A live machine does not fill the disk.
const LIMIT_MOST: u64 = 16_000_000_000;
/// Bytes read from the file at a time.
const CHUNK_BYTES: u64 = 256 * 1024;
/// The writer is looked at so often while a stopped trace is being finished, and not longer than this.
const CLOSING_EVERY: Duration = Duration::from_millis(10);
const CLOSING_MOST: u32 = 1_000;

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/api/trace", web::get().to(state))
        .route("/api/trace/start", web::post().to(start))
        .route("/api/trace/stop", web::post().to(stop))
        .route("/api/trace/file", web::get().to(file))
        .route("/start_profile", web::post().to(start_profile))
        .route("/stop_profile", web::post().to(stop_profile));
}

/// The trace of a machine, as JSON.
fn state_of(d: &mut Driver) -> Value {
    let Some(tracer) = &mut d.tracer else {
        return json!({"state": "none"});
    };
    let look = tracer.look();
    let o = &tracer.options;
    json!({
        "state": look.state,
        "match": o.pattern,
        "requests": o.requests,
        "limit_bytes": o.bytes_max,
        "from_s": s_from_ps(o.from_ps),
        "until_s": (o.until_ps < Ps::MAX).then(|| s_from_ps(o.until_ps)),
        "bytes": look.summary.bytes,
        "spans": look.summary.spans,
        "left_out": look.summary.left_out,
        "lost": look.summary.lost,
        "full": look.full,
        "error": look.error,
    })
}

/// What is asked for, from time 0.
fn asked(body: &Value, machine: &Machine) -> Asked<TraceOptions> {
    let wrong = |key: &'static str, why: String| ApiError::field(key, format!("{key}: {why}"));
    let text_of = |key: &'static str| match body.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.trim().to_string())),
        Some(Value::Number(n)) => Ok(Some(n.to_string())),
        Some(_) => Err(wrong(key, "text is expected".into())),
    };
    let pattern = text_of("match")?;
    if let Some(glob) = &pattern {
        found(glob, machine)?;
    }
    let requests = text_of("requests")?.map(|t| said::share(&t).map_err(|e| wrong("requests", e)));
    let limit = text_of("limit")?.map(|t| said::size(&t).map_err(|e| wrong("limit", e)));
    let lasts = text_of("for")?.map(|t| span_ps(&t).map_err(|e| wrong("for", e)));
    let bytes_max = limit.transpose()?.unwrap_or(LIMIT_BYTES);
    if bytes_max > LIMIT_MOST {
        return Err(wrong("limit", "at most 16GB of a live machine".into()));
    }
    Ok(TraceOptions {
        pattern,
        from_ps: 0,
        until_ps: lasts.transpose()?.unwrap_or(LASTS_PS),
        requests: requests.transpose()?.unwrap_or(REQUESTS),
        bytes_max,
    })
}

fn conflict(message: &str) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, "invalid_request_error", message)
}

/// What a trace says of its machine.
struct Said {
    header: Header,
    seed: u64,
}

impl Said {
    fn of(desk: &Desk) -> Self {
        let scenario = &desk.context.scenario;
        Self {
            header: Header::of(scenario),
            seed: scenario.seed,
        }
    }
}

/// Begins a trace now; times in `options` count from now.
fn begin(d: &mut Driver, mut options: TraceOptions, of: &Said) -> Asked<Value> {
    if d.tracer
        .as_mut()
        .is_some_and(|t| matches!(t.look().state, "running" | "closing"))
    {
        return Err(conflict("a trace is being written: stop it first"));
    }
    let now = d.machine.now();
    options.from_ps = now;
    options.until_ps = now.saturating_add(options.until_ps);
    let begun = Tracer::start(&mut d.machine, &of.header, options, of.seed);
    d.tracer = Some(begun.map_err(|e| unavailable(&e.to_string()))?);
    Ok(state_of(d))
}

async fn state(gateway: web::Data<Gateway>) -> HttpResponse {
    look(&gateway, state_of).await
}

async fn start(
    request: HttpRequest,
    body: web::Payload,
    gateway: web::Data<Gateway>,
    desk: web::Data<Desk>,
) -> HttpResponse {
    let read = |body: &Value| asked(body, &desk.machine);
    let said = Said::of(&desk);
    told(&request, body, &gateway, read, move |d, options| {
        begin(d, options, &said)
    })
    .await
}

async fn stop(gateway: web::Data<Gateway>) -> HttpResponse {
    let stopped = gateway.ask(|d| {
        let Driver {
            tracer, machine, ..
        } = d;
        match tracer {
            Some(tracer) => {
                tracer.stop(machine);
                Ok(())
            }
            None => Err(conflict("no trace has been started")),
        }
    });
    match stopped.await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => return e.response(),
        Err(_) => return unavailable("the machine has shut down").response(),
    }
    for _ in 0..CLOSING_MOST {
        let closing = gateway.ask(|d| {
            d.tracer
                .as_mut()
                .is_some_and(|t| t.look().state == "closing")
        });
        match closing.await {
            Ok(true) => actix_rt::time::sleep(CLOSING_EVERY).await,
            _ => break,
        }
    }
    look(&gateway, state_of).await
}

/// vLLM's: everything of a trace that can be left to choose is left as it is, but it lasts until it is stopped.
async fn start_profile(gateway: web::Data<Gateway>, desk: web::Data<Desk>) -> HttpResponse {
    let options = TraceOptions {
        pattern: None,
        from_ps: 0,
        until_ps: Ps::MAX,
        requests: REQUESTS,
        bytes_max: LIMIT_BYTES,
    };
    let said = Said::of(&desk);
    answer(&gateway, move |d| begin(d, options, &said)).await
}

async fn stop_profile(gateway: web::Data<Gateway>) -> HttpResponse {
    stop(gateway).await
}

/// The trace so far: a file as `supernode run --trace` writes it.
async fn file(gateway: web::Data<Gateway>) -> HttpResponse {
    match gateway.ask(|d| d.tracer.as_mut().map(Tracer::file)).await {
        Ok(Some((file, bytes))) => HttpResponse::Ok()
            .content_type("application/octet-stream")
            .insert_header((
                "Content-Disposition",
                "attachment; filename=\"supernode.pftrace\"",
            ))
            .body(SizedStream::new(bytes, Reading::new(file, bytes))),
        Ok(None) => ApiError {
            status: StatusCode::NOT_FOUND,
            ..ApiError::invalid("no trace has been started: POST /api/trace/start")
        }
        .response(),
        Err(_) => unavailable("the machine has shut down").response(),
    }
}

type Chunk = Pin<Box<dyn Future<Output = std::io::Result<Bytes>>>>;

/// The first bytes of a file that may still grow, read beside the arbiter.
struct Reading {
    file: Arc<File>,
    at: u64,
    end: u64,
    reading: Option<Chunk>,
}

impl Reading {
    fn new(file: Arc<File>, end: u64) -> Self {
        Self {
            file,
            at: 0,
            end,
            reading: None,
        }
    }

    fn read(&self) -> Chunk {
        let (file, at) = (Arc::clone(&self.file), self.at);
        let n = CHUNK_BYTES.min(self.end - at) as usize;
        Box::pin(async move {
            let read = web::block(move || {
                let mut bytes = vec![0; n];
                file.read_exact_at(&mut bytes, at).map(|()| bytes)
            });
            match read.await {
                Ok(bytes) => bytes.map(Bytes::from),
                Err(_) => Err(std::io::Error::other("the server is shutting down")),
            }
        })
    }
}

impl Stream for Reading {
    type Item = std::io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.at >= this.end && this.reading.is_none() {
            return Poll::Ready(None);
        }
        if this.reading.is_none() {
            this.reading = Some(this.read());
        }
        let Some(reading) = &mut this.reading else {
            return Poll::Ready(None);
        };
        let chunk = ready!(reading.as_mut().poll(cx));
        this.reading = None;
        match &chunk {
            Ok(bytes) => this.at += bytes.len() as u64,
            Err(_) => this.at = this.end,
        }
        Poll::Ready(Some(chunk))
    }
}
