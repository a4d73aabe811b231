//! The routes that clients of an OpenAI-compatible server ask.

use std::future::poll_fn;
use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_LENGTH, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Map, Value, json};

use super::gateway::{Gateway, Refusal};
use super::meters;
use super::openai::{self, ApiError, Asked};
use super::sse::Answering;
use super::text;

/// A context of 128 K tokens as text is about 0.6 MB; as JSON lists of ids a few.
const BODY_MOST: usize = 32 << 20;
/// Bodies above this are read off the arbiter.
const BODY_HERE: usize = 128 << 10;
const RETRY_AFTER_S: u32 = 1;

pub fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/v1/chat/completions", web::post().to(chat))
        .route("/v1/completions", web::post().to(completions))
        .route("/v1/models", web::get().to(models))
        .route("/v1/models/{id:.*}", web::get().to(model))
        .route("/health", web::get().to(health))
        .route("/health", web::head().to(health))
        .route("/ping", web::get().to(health))
        .route("/ping", web::post().to(health))
        .route("/version", web::get().to(version))
        .route("/metrics", web::get().to(metrics))
        .route("/metrics", web::head().to(metrics))
        .route("/tokenize", web::post().to(tokenize))
        .route("/detokenize", web::post().to(detokenize))
        .route("/reset_prefix_cache", web::post().to(reset_prefix_cache));
}

async fn chat(
    request: HttpRequest,
    body: web::Payload,
    gateway: web::Data<Gateway>,
) -> HttpResponse {
    answer(request, body, gateway, true).await
}

async fn completions(
    request: HttpRequest,
    body: web::Payload,
    gateway: web::Data<Gateway>,
) -> HttpResponse {
    answer(request, body, gateway, false).await
}

async fn answer(
    request: HttpRequest,
    body: web::Payload,
    gateway: web::Data<Gateway>,
    chat: bool,
) -> HttpResponse {
    let began = Instant::now();
    let mut response = match try_answer(&request, body, &gateway, chat).await {
        Ok(response) => response,
        Err(e) => e.response(),
    };
    gateway.counters.http.answered(response.status().as_u16());
    let headers = response.headers_mut();
    let ms = began.elapsed().as_millis() as u64;
    let mut set = |name: &'static str, value: HeaderValue| {
        headers.insert(
            actix_web::http::header::HeaderName::from_static(name),
            value,
        );
    };
    set("openai-processing-ms", HeaderValue::from(ms));
    set("openai-version", HeaderValue::from_static("2020-10-01"));
    // Whoever asks under a name of their own finds it again.
    let given = request.headers().get("x-request-id").cloned();
    set(
        "x-request-id",
        given
            .unwrap_or_else(|| HeaderValue::from_str(&new_id("req-")).expect("hexadecimal digits")),
    );
    response
}

async fn try_answer(
    request: &HttpRequest,
    body: web::Payload,
    gateway: &Gateway,
    chat: bool,
) -> Asked<HttpResponse> {
    let body = whole_body(request, body).await?;
    let facts = gateway.facts.clone();
    let asking = if body.len() <= BODY_HERE {
        openai::read(&body, chat, &facts)?
    } else {
        let read = web::block(move || openai::read(&body, chat, &facts)).await;
        read.map_err(|_| unavailable("the server is shutting down"))??
    };
    gateway
        .admit(asking.choices.len() as u64)
        .map_err(refused)?;
    let stream = asking.stream;
    let id = new_id(if chat { "chatcmpl-" } else { "cmpl-" });
    let mut answering = Answering::start(gateway, asking, id);
    if !stream {
        poll_fn(|cx| answering.poll_end(cx)).await;
        if let Some(why) = answering.failure() {
            return Err(failed(why));
        }
        let mut response = HttpResponse::Ok();
        for header in answering.served_by() {
            response.insert_header(header);
        }
        return Ok(response.json(answering.whole()));
    }
    // Headers wait for the first token, so that a request that fails before it has a status that says so.
    poll_fn(|cx| answering.poll_begin(cx)).await;
    if let Some(why) = answering.failure() {
        return Err(failed(why));
    }
    let mut response = HttpResponse::Ok();
    for header in answering.served_by() {
        response.insert_header(header);
    }
    Ok(response
        .insert_header(("Cache-Control", "no-cache"))
        .content_type("text/event-stream; charset=utf-8")
        .streaming(answering))
}

fn new_id(prefix: &str) -> String {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static KEY: OnceLock<RandomState> = OnceLock::new();
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let key = KEY.get_or_init(RandomState::new);
    format!("{prefix}{:016x}{n:08x}", key.hash_one(n))
}

pub fn refused(why: Refusal) -> ApiError {
    match why {
        Refusal::Full => ApiError {
            code: Some("rate_limit_exceeded"),
            retry_after_s: Some(RETRY_AFTER_S),
            ..ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "the machine holds as many requests as it may: try again later",
            )
        },
        Refusal::Draining => unavailable("the machine is shutting down"),
    }
}

pub fn unavailable(message: &str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
}

fn failed(why: &str) -> ApiError {
    ApiError {
        code: Some("request_failed"),
        ..ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", why)
    }
}

/// The body, refused unread if it says itself that it is too large.
pub async fn whole_body(request: &HttpRequest, body: web::Payload) -> Asked<web::Bytes> {
    let too_large = || {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            format!("the body is larger than {BODY_MOST} bytes"),
        )
    };
    let length = request.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|n| n > BODY_MOST) {
        return Err(too_large());
    }
    match body.to_bytes_limited(BODY_MOST).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(e)) => Err(ApiError::invalid(format!(
            "the body could not be read: {e}"
        ))),
        Err(_) => Err(too_large()),
    }
}

fn entry(gateway: &Gateway) -> Value {
    let f = &gateway.facts;
    json!({
        "id": f.model, "object": "model", "created": f.created, "owned_by": "supernode",
        "root": f.model, "parent": null, "max_model_len": f.max_context, "permission": [],
    })
}

async fn models(gateway: web::Data<Gateway>) -> HttpResponse {
    HttpResponse::Ok().json(json!({"object": "list", "data": [entry(&gateway)]}))
}

async fn model(id: web::Path<String>, gateway: web::Data<Gateway>) -> HttpResponse {
    if *id == gateway.facts.model {
        return HttpResponse::Ok().json(entry(&gateway));
    }
    ApiError {
        status: StatusCode::NOT_FOUND,
        code: Some("model_not_found"),
        ..ApiError::field("model", "no such model")
    }
    .response()
}

/// Healthy as long as the driver answers.
async fn health(gateway: web::Data<Gateway>) -> HttpResponse {
    match gateway.ask(|_| ()).await {
        Ok(()) => HttpResponse::Ok().finish(),
        Err(_) => HttpResponse::ServiceUnavailable().finish(),
    }
}

async fn version() -> HttpResponse {
    HttpResponse::Ok().json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

async fn metrics(gateway: web::Data<Gateway>) -> HttpResponse {
    let (facts, counters) = (gateway.facts.clone(), gateway.counters.clone());
    let text = gateway
        .ask(move |driver| meters::render(driver, &facts, &counters))
        .await;
    match text {
        Ok(text) => HttpResponse::Ok()
            .content_type(meters::CONTENT_TYPE)
            .body(text),
        Err(_) => unavailable("the machine has shut down").response(),
    }
}

async fn object(request: &HttpRequest, body: web::Payload) -> Asked<Map<String, Value>> {
    let body = whole_body(request, body).await?;
    match serde_json::from_slice(&body) {
        Ok(Value::Object(o)) => Ok(o),
        Ok(_) => Err(ApiError::invalid("the body is no JSON object")),
        Err(e) => Err(ApiError::invalid(format!("the body is not JSON: {e}"))),
    }
}

async fn tokenize(
    request: HttpRequest,
    body: web::Payload,
    gateway: web::Data<Gateway>,
) -> HttpResponse {
    let facts = &gateway.facts;
    let tokens = async {
        let o = object(&request, body).await?;
        if o.contains_key("messages") {
            return openai::messages(&o, facts.vocab);
        }
        openai::prompts(&o, facts.vocab)?
            .into_iter()
            .next()
            .ok_or_else(|| ApiError::field("prompt", "prompt: one is expected"))
    };
    match tokens.await {
        Ok(tokens) => HttpResponse::Ok().json(json!({
            "count": tokens.len(), "max_model_len": facts.max_context, "tokens": tokens,
        })),
        Err(e) => e.response(),
    }
}

async fn detokenize(
    request: HttpRequest,
    body: web::Payload,
    gateway: web::Data<Gateway>,
) -> HttpResponse {
    let text = async {
        let o = object(&request, body).await?;
        let list = o.get("tokens").and_then(Value::as_array);
        let list = list
            .ok_or_else(|| ApiError::field("tokens", "tokens: a list of token ids is expected"))?;
        Ok::<_, ApiError>(text::detokenize(&openai::ids(list, gateway.facts.vocab)?))
    };
    match text.await {
        Ok(text) => HttpResponse::Ok().json(json!({"prompt": text})),
        Err(e) => e.response(),
    }
}

/// Forgets the pooled cache.
async fn reset_prefix_cache(gateway: web::Data<Gateway>) -> HttpResponse {
    match gateway.ask(|driver| driver.machine.forget_cache()).await {
        Ok(()) => HttpResponse::Ok().finish(),
        Err(_) => unavailable("the machine has shut down").response(),
    }
}
