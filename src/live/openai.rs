//! What clients of the OpenAI API ask, read from JSON by hand so that each wrong field gets a clear answer and unknown
//! ones are let be; and errors in OpenAI's shape.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use serde_json::{Map, Value, json};

use super::gateway::Facts;
use super::text::{self, Answer};

/// Prompts times choices of one request.
const CHOICES_MOST: u64 = 512;
const STOPS_MOST: usize = 16;
/// Tokens of an answer that nobody set a limit for: it ends by itself somewhere between.
const OWN_END: std::ops::Range<u64> = 64..512;

/// An error for the client.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    pub kind: &'static str,
    pub param: Option<&'static str>,
    pub code: Option<&'static str>,
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            kind,
            param: None,
            code: None,
            retry_after_s: None,
        }
    }

    /// A field that is not as it should be.
    pub fn field(param: &'static str, message: impl Into<String>) -> Self {
        let wrong = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        Self {
            param: Some(param),
            ..wrong
        }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }

    pub fn response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if let Some(s) = self.retry_after_s {
            response.insert_header(("Retry-After", s.to_string()));
        }
        response.json(self.body())
    }
}

pub type Asked<T> = Result<T, ApiError>;

/// One completion that is to be made.
#[derive(Clone, Debug)]
pub struct Choice {
    pub index: u32,
    pub answer: Answer,
    /// Tokens the machine makes for it.
    pub tokens: u32,
    /// Bytes of text kept, if a stop string cuts it.
    pub cut: Option<usize>,
    pub finish: &'static str,
    /// Which prompt it answers.
    pub prompt: usize,
}

#[derive(Debug)]
pub struct Asking {
    pub chat: bool,
    pub prompts: Vec<Vec<u32>>,
    pub choices: Vec<Choice>,
    pub stream: bool,
    pub include_usage: bool,
    pub continuous_usage: bool,
    /// Extension: virtual times in each chunk.
    pub timing: bool,
}

/// Reads the body of `/v1/completions` or `/v1/chat/completions`.
pub fn read(body: &[u8], chat: bool, facts: &Facts) -> Asked<Asking> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|e| ApiError::invalid(format!("the body is not JSON: {e}")))?;
    let Value::Object(o) = value else {
        return Err(ApiError::invalid("the body is no JSON object"));
    };
    check_model(&o, facts)?;
    let prompts = if chat {
        vec![messages(&o, facts.vocab)?]
    } else {
        prompts(&o, facts.vocab)?
    };
    if prompts.iter().any(Vec::is_empty) {
        return Err(ApiError::field("prompt", "prompt: it has no tokens"));
    }
    let n = whole(&o, "n", 1..=128)?.unwrap_or(1);
    let made = n * prompts.len() as u64;
    if made > CHOICES_MOST {
        return Err(ApiError::field(
            "n",
            format!(
                "n: {made} completions are more than the {CHOICES_MOST} that one request may ask for"
            ),
        ));
    }
    let limit = match whole(&o, "max_completion_tokens", 1..=u64::from(u32::MAX))? {
        Some(limit) => Some(limit),
        None => whole(&o, "max_tokens", 1..=u64::from(u32::MAX))?,
    };
    let stops = stops(&o)?;
    let ignore_eos = flag(&o, "ignore_eos")?;
    let seed = o.get("seed").and_then(Value::as_i64).unwrap_or(0) as u64;
    let mut choices = Vec::with_capacity(made as usize);
    for (p, tokens) in prompts.iter().enumerate() {
        let most = room(tokens.len() as u64, limit, facts)?;
        let hash = text::hash(tokens);
        for i in 0..n {
            let index = (p as u64 * n + i) as u32;
            let answer = Answer(hash ^ (seed << 32) ^ i);
            let own_end = OWN_END.start + answer.0.rotate_left(21) % (OWN_END.end - OWN_END.start);
            let (mut tokens, mut finish, mut cut) = match limit {
                // With a limit, the answer is as long as it may be: tools that set one count on it.
                Some(_) => (most, "length", None),
                None if ignore_eos => (most, "length", None),
                None if own_end > u64::from(most) => (most, "length", None),
                None => (own_end as u32, "stop", None),
            };
            if let Some((stop_tokens, bytes)) = answer.stop_at(&stops, tokens) {
                (tokens, finish, cut) = (stop_tokens, "stop", Some(bytes));
            }
            choices.push(Choice {
                index,
                answer,
                tokens,
                cut,
                finish,
                prompt: p,
            });
        }
    }
    let options = match o.get("stream_options") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(options)) => options.clone(),
        Some(_) => return Err(expected("stream_options", "an object")),
    };
    Ok(Asking {
        chat,
        prompts,
        choices,
        stream: flag(&o, "stream")?,
        include_usage: flag(&options, "include_usage")?,
        continuous_usage: flag(&options, "continuous_usage_stats")?,
        timing: flag(&o, "supernode_timing")?,
    })
}

/// Tokens that may be made for a prompt.
fn room(prompt: u64, limit: Option<u64>, facts: &Facts) -> Asked<u32> {
    let context = u64::from(facts.max_context);
    let too_long = |message: String| ApiError {
        code: Some("context_length_exceeded"),
        ..ApiError::field("messages", message)
    };
    if prompt + limit.unwrap_or(1) > context {
        return Err(too_long(format!(
            "this model's maximum context length is {context} tokens; {prompt} in the prompt and {} to be made are more",
            limit.unwrap_or(1)
        )));
    }
    let memory = facts.kv_tokens_max;
    if prompt + limit.unwrap_or(1) > memory {
        return Err(too_long(format!(
            "KV of {} tokens is more than the {memory} that a decode die has memory for",
            prompt + limit.unwrap_or(1)
        )));
    }
    Ok(limit.unwrap_or(context.min(memory) - prompt) as u32)
}

fn check_model(o: &Map<String, Value>, facts: &Facts) -> Asked<()> {
    let asked = match o.get("model") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::String(asked)) => asked,
        Some(_) => return Err(expected("model", "a string")),
    };
    if *asked == facts.model
        || asked
            .rsplit('/')
            .next()
            .is_some_and(|m| m.eq_ignore_ascii_case(&facts.model))
    {
        return Ok(());
    }
    Err(ApiError {
        status: StatusCode::NOT_FOUND,
        code: Some("model_not_found"),
        ..ApiError::field(
            "model",
            format!(
                "the model `{}` does not exist: this machine serves `{}`",
                excerpt(asked),
                facts.model
            ),
        )
    })
}

/// A client's text in an error message: bounded, and without what would garble a terminal.
fn excerpt(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { '?' } else { c });
    clean.take(80).collect()
}

fn expected(param: &'static str, what: &str) -> ApiError {
    ApiError::field(param, format!("{param}: {what} is expected"))
}

fn flag(o: &Map<String, Value>, name: &'static str) -> Asked<bool> {
    match o.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(b)) => Ok(*b),
        Some(_) => Err(expected(name, "true or false")),
    }
}

fn whole(
    o: &Map<String, Value>,
    name: &'static str,
    range: std::ops::RangeInclusive<u64>,
) -> Asked<Option<u64>> {
    let value = match o.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    match value.as_u64() {
        Some(n) if range.contains(&n) => Ok(Some(n)),
        _ => Err(expected(
            name,
            &format!("a whole number from {} to {}", range.start(), range.end()),
        )),
    }
}

fn stops(o: &Map<String, Value>) -> Asked<Vec<String>> {
    let wrong = || {
        expected(
            "stop",
            &format!("a string or a list of up to {STOPS_MOST} of them"),
        )
    };
    let list = match o.get("stop") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(s)) => vec![s.clone()],
        Some(Value::Array(list)) if list.len() <= STOPS_MOST => {
            let strings = list.iter().map(|v| v.as_str().map(str::to_string));
            strings.collect::<Option<Vec<_>>>().ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    if list.iter().any(|s| s.len() > 1_024) {
        return Err(wrong());
    }
    Ok(list.into_iter().filter(|s| !s.is_empty()).collect())
}

/// `prompt` as a string, a list of strings, a list of token ids, or a list of such lists.
pub fn prompts(o: &Map<String, Value>, vocab: u32) -> Asked<Vec<Vec<u32>>> {
    let wrong = || {
        expected(
            "prompt",
            "a string, a list of strings, a list of token ids or a list of such lists",
        )
    };
    let of_text = |text: &str| {
        let mut tokens = Vec::new();
        text::tokenize(text, vocab, &mut tokens);
        tokens
    };
    match o.get("prompt") {
        Some(Value::String(text)) => Ok(vec![of_text(text)]),
        Some(Value::Array(list)) if list.len() as u64 > CHOICES_MOST && !list[0].is_number() => {
            Err(ApiError::field(
                "prompt",
                format!("prompt: at most {CHOICES_MOST} in one request"),
            ))
        }
        Some(Value::Array(list)) => match list.first() {
            Some(Value::Number(_)) => Ok(vec![ids(list, vocab)?]),
            Some(Value::String(_)) => list
                .iter()
                .map(|v| v.as_str().map(of_text).ok_or_else(wrong))
                .collect(),
            Some(Value::Array(_)) => list
                .iter()
                .map(|v| ids(v.as_array().ok_or_else(wrong)?, vocab))
                .collect(),
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}

pub fn ids(list: &[Value], vocab: u32) -> Asked<Vec<u32>> {
    list.iter()
        .map(|v| {
            v.as_u64()
                .filter(|&id| id < u64::from(vocab))
                .map(|id| id as u32)
                .ok_or_else(|| {
                    ApiError::field(
                        "prompt",
                        format!(
                            "prompt: token ids are whole numbers below {vocab}, found {}",
                            excerpt(&v.to_string())
                        ),
                    )
                })
        })
        .collect()
}

/// `messages`, with content as text or as parts.
pub fn messages(o: &Map<String, Value>, vocab: u32) -> Asked<Vec<u32>> {
    let wrong = |what: &str| ApiError::field("messages", format!("messages: {what}"));
    let Some(Value::Array(list)) = o.get("messages") else {
        return Err(wrong("a list of messages is expected"));
    };
    if list.is_empty() {
        return Err(wrong("there must be at least one"));
    }
    let mut turns: Vec<(&str, String)> = Vec::with_capacity(list.len());
    for message in list {
        let Some(role) = message.get("role").and_then(Value::as_str) else {
            return Err(wrong("each message needs a role"));
        };
        let content = match message.get("content") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                let mut text = String::new();
                for part in parts {
                    match (part, part.get("text").and_then(Value::as_str)) {
                        (Value::String(t), _) => text.push_str(t),
                        (_, Some(t)) => text.push_str(t),
                        _ => {
                            return Err(wrong(
                                "content parts must be text: this model takes nothing else",
                            ));
                        }
                    }
                }
                text
            }
            Some(_) => return Err(wrong("content is text or a list of text parts")),
        };
        turns.push((role, content));
    }
    Ok(text::chat(
        turns
            .iter()
            .map(|(role, content)| (*role, content.as_str())),
        vocab,
    ))
}
