//! Speaking with a live machine's control API, for the commands that look at one or turn it.

use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, Result};

/// Which machine.
#[derive(Clone, Debug, clap::Args)]
pub struct Remote {
    /// The live machine
    #[arg(
        long,
        value_name = "URL",
        env = "SUPERNODE_URL",
        default_value = "http://127.0.0.1:8384"
    )]
    pub url: String,

    /// Its token, if it has one
    #[arg(
        long,
        value_name = "TOKEN",
        env = "SUPERNODE_TOKEN",
        hide_env_values = true
    )]
    pub token: Option<String>,
}

/// A machine under full load answers within milliseconds; one that is stuck is said to be.
const WAIT: Duration = Duration::from_secs(15);

impl Remote {
    pub fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, None)
    }

    /// Asks, and gives the answer's JSON.
    ///
    /// # Errors
    /// No machine there, or what it says is wrong with what was asked.
    pub fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let base = self.url.trim_end_matches('/');
        let url = format!("{base}{path}");
        let unreachable = |e: ureq::Error| {
            Error::failed(format!(
                "no live machine answers at {base} ({e}); `supernode up` starts one, --url names another"
            ))
        };
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(WAIT))
            .http_status_as_error(false)
            .build()
            .into();
        let mut request = ureq::http::Request::builder().method(method).uri(&url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let content = body.map_or(String::new(), |b| b.to_string());
        let request = request
            .header("Content-Type", "application/json")
            .body(content)
            .map_err(|e| Error::user(format!("--url {base}: {e}")))?;
        let mut response = agent.run(request).map_err(unreachable)?;
        let status = response.status();
        let text = response.body_mut().read_to_string().map_err(unreachable)?;
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(value);
        }
        let said = value["error"]["message"].as_str().unwrap_or("");
        let text = format!("{base} says {}: {said}", status.as_u16());
        Err(if status.is_client_error() {
            Error::user(text)
        } else {
            Error::failed(text)
        })
    }
}
