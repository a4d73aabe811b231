//! An answer on its way out: reads the mailboxes of its choices, and writes server-sent events or collects the whole.
//! Dropped before the end, for whatever reason, it gives its requests up inside the machine.

use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use serde_json::{Value, json};
use supernode_actors::request::{Outcome, RequestRecord};

use super::gateway::{Gateway, Submission};
use super::mailbox::{Mailbox, Next, Tokens};
use super::openai::{Asking, Choice};
use super::text;

/// Room for the events of a step, so that they are written without growing.
const EVENTS_BYTES: usize = 1_024;
/// And for what comes before the text in each.
const BEFORE_BYTES: usize = 192;

/// One choice that is being made.
struct Making {
    choice: Choice,
    /// A token's event up to its text: the same for all of a choice.
    before: String,
    mailbox: Arc<Mailbox>,
    made: u32,
    /// Bytes of text written, where a stop string cuts it.
    written: usize,
    ended: Option<Ending>,
    prefill: Option<u32>,
    decode: Option<u32>,
}

enum Ending {
    Done(Box<RequestRecord>),
    Failed(String),
}

pub struct Answering {
    gateway: Gateway,
    pub id: String,
    model: String,
    created: u64,
    asking: Asking,
    making: Vec<Making>,
    begun: bool,
    /// Text that was made while the headers were awaited.
    ahead: String,
    finished: bool,
}

impl Answering {
    /// Puts the requests into the machine; places for them have been taken.
    pub fn start(gateway: &Gateway, asking: Asking, id: String) -> Self {
        let mut making = Vec::with_capacity(asking.choices.len());
        for choice in &asking.choices {
            let tokens = &asking.prompts[choice.prompt];
            let mailbox = Arc::new(Mailbox::new(&gateway.bell));
            gateway.submit(Submission {
                prompt_tokens: tokens.len() as u32,
                output_tokens: choice.tokens,
                prefix: text::prefix(tokens),
                streams: asking.stream,
                mailbox: Arc::clone(&mailbox),
            });
            making.push(Making {
                choice: choice.clone(),
                before: String::new(),
                mailbox,
                made: 0,
                written: 0,
                ended: None,
                prefill: None,
                decode: None,
            });
        }
        let now = std::time::SystemTime::now();
        let mut answering = Self {
            gateway: gateway.clone(),
            id,
            model: gateway.facts.model.clone(),
            created: now
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
            asking,
            making,
            begun: false,
            ahead: String::new(),
            finished: false,
        };
        if answering.asking.stream {
            for i in 0..answering.making.len() {
                let mut before = String::with_capacity(BEFORE_BYTES);
                answering.open(i, &mut before);
                before.push_str(if answering.asking.chat {
                    "\"delta\":{\"content\":\""
                } else {
                    "\"text\":\""
                });
                answering.making[i].before = before;
            }
        }
        answering
    }

    /// Which actors serve the first choice, as far as is known.
    pub fn served_by(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        let Some(m) = self.making.first() else {
            return headers;
        };
        let addresses = &self.gateway.facts.addresses;
        if let Some(t) = m.mailbox.ticket() {
            headers.push(("x-supernode-home", addresses.cpu(t.home)));
            headers.push(("x-supernode-request", t.id.to_string()));
        }
        if let Some(actor) = m.prefill {
            headers.push(("x-supernode-prefill", addresses.actor(actor)));
        }
        if let Some(actor) = m.decode {
            headers.push(("x-supernode-decode", addresses.actor(actor)));
        }
        headers
    }

    /// Waits for the first news of any choice.
    pub fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut out = std::mem::take(&mut self.ahead);
        let moved = self.advance(cx, &mut out);
        self.ahead = out;
        if moved {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Waits for the end of all choices, without writing anything.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut out = String::new();
        self.advance(cx, &mut out);
        if self.making.iter().all(|m| m.ended.is_some()) {
            self.finished = true;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Why a choice failed, if one did.
    pub fn failure(&self) -> Option<&str> {
        self.making.iter().find_map(|m| match &m.ended {
            Some(Ending::Failed(why)) => Some(why.as_str()),
            _ => None,
        })
    }

    /// Takes all that is there. True if that was anything.
    fn advance(&mut self, cx: &mut Context<'_>, out: &mut String) -> bool {
        let mut moved = false;
        for i in 0..self.making.len() {
            while self.making[i].ended.is_none() {
                let Poll::Ready(next) = self.making[i].mailbox.poll(cx) else {
                    break;
                };
                moved = true;
                if self.asking.stream && !self.begun {
                    self.begun = true;
                    self.roles(out);
                }
                let m = &mut self.making[i];
                match next {
                    Next::Tokens(t) => {
                        if m.made == 0 {
                            m.prefill = Some(t.by);
                        } else {
                            m.decode = Some(t.by);
                        }
                        let from = m.made;
                        m.made += t.count;
                        if self.asking.stream {
                            for token in from..from + t.count {
                                self.token(i, token, &t, out);
                            }
                        }
                    }
                    Next::Ended(record) => self.ended(i, record, out),
                    Next::Lost => {
                        m.ended = Some(Ending::Failed("the machine has shut down".into()));
                        self.broke(i, out);
                    }
                }
            }
        }
        moved
    }

    fn ended(&mut self, i: usize, record: Box<RequestRecord>, out: &mut String) {
        match &record.outcome {
            Outcome::Completed => {
                if self.making[i].choice.finish == "stop" {
                    self.gateway.counters.stops.fetch_add(1, Ordering::Relaxed);
                }
                if self.asking.stream {
                    let usage = self.usage_of(i, Some(&record));
                    self.chunk(i, Piece::Finish, usage, out);
                }
                self.making[i].ended = Some(Ending::Done(record));
            }
            Outcome::Failed(why) => {
                self.making[i].ended = Some(Ending::Failed(why.clone()));
                self.broke(i, out);
            }
            Outcome::Cancelled => {
                self.making[i].ended = Some(Ending::Failed("cancelled".into()));
                self.broke(i, out);
            }
        }
    }

    fn broke(&self, i: usize, out: &mut String) {
        if let (true, Some(Ending::Failed(why))) = (self.asking.stream, &self.making[i].ended) {
            let error = json!({"error": {
                "message": why, "type": "server_error", "param": null, "code": "request_failed",
            }});
            let _ = write!(out, "data: {error}\n\n");
        }
    }

    fn roles(&self, out: &mut String) {
        if self.asking.chat {
            for i in 0..self.making.len() {
                self.chunk(i, Piece::Role, self.usage_of(i, None), out);
            }
        }
    }

    fn token(&mut self, i: usize, token: u32, came: &Tokens, out: &mut String) {
        let m = &mut self.making[i];
        let word = m.choice.answer.word(token);
        // Words are ASCII letters: they need no escapes.
        let mut kept = word.len() + 1;
        if let Some(cut) = m.choice.cut {
            kept = kept.min(cut.saturating_sub(m.written));
            m.written += word.len() + 1;
        }
        let usage = if self.asking.continuous_usage {
            let prompt = self.asking.prompts[m.choice.prompt].len() as u64;
            Some(usage(prompt, u64::from(token) + 1, None))
        } else {
            None
        };
        let timing = (self.asking.timing).then(|| {
            let ticket = m.mailbox.ticket();
            Timing {
                arrival_ps: ticket.map_or(0, |t| t.arrival_ps),
                at_ps: came.at_ps,
                late_us: match ticket {
                    Some(t) if token == 0 => came.late_us.max(t.late_us),
                    _ => came.late_us,
                },
            }
        });
        out.push_str(&self.making[i].before);
        if kept > 0 {
            out.push(' ');
            out.push_str(&word[..kept - 1]);
        }
        out.push_str(if self.asking.chat {
            "\"},\"logprobs\":null,\"finish_reason\":null}]"
        } else {
            "\",\"logprobs\":null,\"finish_reason\":null}]"
        });
        close(usage, timing, out);
    }

    fn usage_of(&self, i: usize, record: Option<&RequestRecord>) -> Option<Value> {
        let m = &self.making[i];
        let prompt = self.asking.prompts[m.choice.prompt].len() as u64;
        let cached = record.map(|r| u64::from(r.cached_tokens));
        (self.asking.continuous_usage).then(|| usage(prompt, u64::from(m.made), cached))
    }

    /// The event of a choice, up to what is in it.
    fn open(&self, i: usize, out: &mut String) {
        let object = if self.asking.chat {
            "chat.completion.chunk"
        } else {
            "text_completion"
        };
        let _ = write!(
            out,
            "data: {{\"id\":\"{}\",\"object\":\"{object}\",\"created\":{},\"model\":\"{}\",\"choices\":[{{\"index\":{},",
            self.id, self.created, self.model, self.making[i].choice.index
        );
    }

    /// Writes an event that has no token.
    fn chunk(&self, i: usize, piece: Piece, usage: Option<Value>, out: &mut String) {
        self.open(i, out);
        let (chat, finish) = (self.asking.chat, self.making[i].choice.finish);
        match piece {
            Piece::Role => out.push_str(
                "\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null",
            ),
            Piece::Finish => {
                out.push_str(if chat { "\"delta\":{}" } else { "\"text\":\"\"" });
                let _ = write!(out, ",\"logprobs\":null,\"finish_reason\":\"{finish}\"");
            }
        }
        out.push_str("}]");
        close(usage, None, out);
    }

    /// Usage summed over all choices; each prompt counts once.
    fn total_usage(&self) -> Value {
        let prompt = self.asking.prompts.iter().map(|p| p.len() as u64).sum();
        let made = self.making.iter().map(|m| u64::from(m.made)).sum();
        let mut cached = vec![0; self.asking.prompts.len()];
        for m in &self.making {
            if let Some(Ending::Done(r)) = &m.ended {
                let c = &mut cached[m.choice.prompt];
                *c = u64::from(r.cached_tokens).max(*c);
            }
        }
        usage(prompt, made, Some(cached.iter().sum()))
    }

    /// The answer in one piece, after the end.
    pub fn whole(&self) -> Value {
        let choices: Vec<Value> = self
            .making
            .iter()
            .map(|m| {
                let mut text = String::new();
                (0..m.made).for_each(|i| m.choice.answer.push(i, &mut text));
                if let Some(cut) = m.choice.cut {
                    text.truncate(cut);
                }
                if self.asking.chat {
                    json!({
                        "index": m.choice.index,
                        "message": {"role": "assistant", "content": text, "refusal": null},
                        "logprobs": null,
                        "finish_reason": m.choice.finish,
                    })
                } else {
                    json!({
                        "index": m.choice.index,
                        "text": text,
                        "logprobs": null,
                        "finish_reason": m.choice.finish,
                    })
                }
            })
            .collect();
        let object = if self.asking.chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        let mut body = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices, "usage": self.total_usage(),
        });
        if self.asking.timing {
            let timing: Vec<Value> = self
                .making
                .iter()
                .filter_map(|m| match &m.ended {
                    Some(Ending::Done(r)) => Some(json!({
                        "arrival_ps": r.arrival_ps, "first_token_ps": r.first_token_ps, "end_ps": r.end_ps,
                    })),
                    _ => None,
                })
                .collect();
            body["supernode"] = Value::Array(timing);
        }
        body
    }
}

/// When a token came, and how far the machine was behind the wall then (or, for a first token, when it took the
/// request in, if that was more).
struct Timing {
    arrival_ps: u64,
    at_ps: u64,
    late_us: u32,
}

enum Piece {
    Role,
    Finish,
}

/// The end of an event. By hand, as what is before it: there may be a hundred thousand a second.
fn close(usage: Option<Value>, timing: Option<Timing>, out: &mut String) {
    if let Some(usage) = usage {
        let _ = write!(out, ",\"usage\":{usage}");
    }
    if let Some(Timing {
        arrival_ps,
        at_ps,
        late_us,
    }) = timing
    {
        out.push_str(",\"supernode\":{\"arrival_ps\":");
        digits(arrival_ps, out);
        out.push_str(",\"at_ps\":");
        digits(at_ps, out);
        out.push_str(",\"late_us\":");
        digits(late_us.into(), out);
        out.push('}');
    }
    out.push_str("}\n\n");
}

fn digits(mut n: u64, out: &mut String) {
    let mut text = [0; 20];
    let mut at = text.len();
    loop {
        at -= 1;
        text[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.push_str(std::str::from_utf8(&text[at..]).unwrap_or_default());
}

fn usage(prompt: u64, made: u64, cached: Option<u64>) -> Value {
    let mut usage = json!({
        "prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
    });
    if let Some(cached) = cached {
        usage["prompt_tokens_details"] = json!({"cached_tokens": cached});
    }
    usage
}

impl Stream for Answering {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.finished {
            return Poll::Ready(None);
        }
        let mut out = std::mem::take(&mut this.ahead);
        out.reserve(EVENTS_BYTES);
        this.advance(cx, &mut out);
        if this.making.iter().all(|m| m.ended.is_some()) {
            this.finished = true;
            if this.asking.include_usage && this.failure().is_none() {
                let object = if this.asking.chat {
                    "chat.completion.chunk"
                } else {
                    "text_completion"
                };
                let chunk = json!({
                    "id": this.id, "object": object, "created": this.created, "model": this.model,
                    "choices": [], "usage": this.total_usage(),
                });
                let _ = write!(out, "data: {chunk}\n\n");
            }
            out.push_str("data: [DONE]\n\n");
        }
        if out.is_empty() {
            this.ahead = out;
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(Bytes::from(out))))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut left = false;
        for m in &self.making {
            if m.ended.is_none() {
                left = true;
                self.gateway.cancel(Arc::clone(&m.mailbox));
            }
        }
        if left {
            let http = &self.gateway.counters.http;
            http.disconnects.fetch_add(1, Ordering::Relaxed);
        }
    }
}
