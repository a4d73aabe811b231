//! Faults of a live machine: listed, injected as they are said, cleared.

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};
use supernode_actors::fault::Fault;
use supernode_actors::time::s_from_ps;

use super::control::{Desk, answer, look, told};
use super::driver::Driver;
use super::gateway::Gateway;
use super::openai::{ApiError, Asked};
use crate::error::Error;
use crate::fault::{Said, Spoken, span_ps};

/// Parts of a fault that are listed by address.
const PARTS_MOST: usize = 64;
/// Faults of one machine, over or not.
const FAULTS_MOST: usize = 10_000;

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/api/faults", web::get().to(list))
        .route("/api/faults", web::post().to(inject))
        .route("/api/faults", web::delete().to(clear_all))
        .route("/api/faults/{id}", web::delete().to(clear));
}

/// The faults that are not over.
pub fn in_force(d: &Driver) -> Vec<Value> {
    let now = d.machine.now();
    let faults = d.machine.faults().iter().enumerate();
    faults
        .filter(|(_, f)| f.end_ps.is_none_or(|end| end > now))
        .map(|(number, f)| fault(number, f, d))
        .collect()
}

/// One fault.
fn fault(number: usize, f: &Fault, d: &Driver) -> Value {
    let now = d.machine.now();
    let machine = &d.machine.shared().machine;
    let parts: Vec<String> = f
        .parts
        .iter()
        .take(PARTS_MOST)
        .map(|&p| machine.address(p))
        .collect();
    let state = match f.end_ps {
        Some(end) if end <= now => "over",
        _ if f.start_ps > now => "waiting",
        _ => "in force",
    };
    json!({
        "id": number,
        "fault": f.text,
        "effect": f.effect.word(),
        "state": state,
        "start_s": s_from_ps(f.start_ps),
        "end_s": f.end_ps.map(s_from_ps),
        "parts": f.parts.len(),
        "addresses": parts,
    })
}

async fn list(gateway: web::Data<Gateway>) -> HttpResponse {
    look(&gateway, |d| {
        let faults = d.machine.faults().iter().enumerate();
        let all: Vec<Value> = faults.map(|(n, f)| fault(n, f, d)).collect();
        json!({"faults": all})
    })
    .await
}

/// What is asked for, at time 0, with what is said of it without times.
fn asked(body: &Value, machine: &supernode_topology::Machine) -> Asked<Fault> {
    let text_of = |key: &'static str| match body.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.trim())),
        Some(_) => Err(ApiError::field(key, format!("{key}: text is expected"))),
    };
    let said = text_of("fault")?.ok_or_else(|| {
        ApiError::field(
            "fault",
            "fault: what is to happen is missing, such as \"slow node12/npu3/die1/ub4 x0.3\"",
        )
    })?;
    let span = |key: &'static str| match text_of(key)? {
        None => Ok(None),
        Some(text) => span_ps(text)
            .map(Some)
            .map_err(|why| ApiError::field(key, format!("{key}: {why}"))),
    };
    let (after, lasts) = (span("in")?.unwrap_or(0), span("for")?);
    let wrong = |why: String| ApiError::field("fault", format!("{said}: {why}"));
    let line = if said.contains(": ") {
        said.to_string()
    } else {
        format!("at 0s: {said}")
    };
    let mut spoken = Spoken::parse(&line).map_err(wrong)?;
    let lasts = lasts.or_else(|| spoken.end_ps.map(|end| end - spoken.start_ps));
    spoken.start_ps += after;
    spoken.end_ps = lasts.map(|span| spoken.start_ps + span);
    let mut fault = Said {
        origin: "fault".into(),
        spoken,
    }
    .resolve(machine)
    .map_err(|e: Error| wrong(e.to_string()))?;
    fault.text = said.to_string();
    Ok(fault)
}

async fn inject(
    request: HttpRequest,
    body: web::Payload,
    gateway: web::Data<Gateway>,
    desk: web::Data<Desk>,
) -> HttpResponse {
    let read = |body: &Value| asked(body, &desk.machine);
    told(&request, body, &gateway, read, |d, wanted| {
        if d.machine.faults().len() >= FAULTS_MOST {
            return Err(ApiError::invalid(format!(
                "this machine has had {FAULTS_MOST} faults: no more are taken"
            )));
        }
        let now = d.machine.now();
        let number = d.machine.inject(Fault {
            start_ps: now + wanted.start_ps,
            end_ps: wanted.end_ps.map(|end| now + end),
            ..wanted
        }) as usize;
        let f = d.machine.faults()[number].clone();
        Ok(fault(number, &f, d))
    })
    .await
}

async fn clear(id: web::Path<String>, gateway: web::Data<Gateway>) -> HttpResponse {
    let id = id.into_inner();
    answer(&gateway, move |d| {
        let number = id.parse::<u32>().ok();
        match number.map(|n| d.machine.clear(n)) {
            Some(true) => Ok(json!({"cleared": 1})),
            _ => Err(ApiError {
                status: actix_web::http::StatusCode::NOT_FOUND,
                ..ApiError::field("id", "id: there is no such fault, or it is over")
            }),
        }
    })
    .await
}

async fn clear_all(gateway: web::Data<Gateway>) -> HttpResponse {
    look(&gateway, |d| {
        let faults = d.machine.faults().len() as u32;
        let cleared = (0..faults).filter(|&n| d.machine.clear(n)).count();
        json!({"cleared": cleared})
    })
    .await
}
